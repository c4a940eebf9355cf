"""Keys of knowledge detection, with the presets of the paper and of its release."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import Field, field_validator, model_validator

from versatune_ray.errors import UserError
from versatune_ray.settings.common import Section, WithPreset, setting
from versatune_ray.settings.yaml12 import plain, read_yaml

_SEEDS = 2**32  # of sequences (``detection.generate``)


class Engine(Section):
    """A vLLM stage of `ray.data.llm`."""

    replicas: int | list[int] = setting(
        1, "engine replicas: the most, Ray scales between 1 and it; or [least, most]"
    )
    tensor_parallel: int = setting(1, "devices per replica", ge=1)
    cpus: int = setting(1, "CPUs (threads) per device of a replica", ge=1)
    accelerator: str | None = setting(
        None, "Ray's accelerator type that a replica needs, such as H100; none: any"
    )
    resources: dict[str, Annotated[float, Field(ge=0)]] = setting(
        dict, "custom Ray resources per device of a replica"
    )
    labels: dict[str, str] = setting(
        dict, "labels that a replica's node must have, as Ray selects them: {market-type: spot}"
    )
    kv_cache_gib: int = setting(1, "key-value cache of one replica on CPU", "GiB", ge=1)
    batch_size: int = setting(128, "rows per Ray Data batch", "rows", ge=1)
    concurrent_batches: int = setting(4, "batches in flight per replica", ge=1)
    options: dict[str, Any] = setting(dict, "further vLLM engine arguments, passed as they are")

    @field_validator("replicas")
    @classmethod
    def _ordered(cls, value: int | list[int]) -> int | list[int]:
        least, most = (1, value) if isinstance(value, int) else value if len(value) == 2 else (0, 0)
        if not 1 <= least <= most:
            raise ValueError(
                f"write the most replicas, or [least, most] with 1 ≤ least ≤ most; found {value}"
            )
        return value


class Generation(Section):
    """Sampling of sequences from the start token alone (Algorithm 1)."""

    max_tokens: int = setting(256, "longest generation", "tokens", ge=1)
    temperature: float = setting(1.0, "1 samples the model's own distribution", ge=0)
    top_p: float = setting(1.0, "nucleus; 1 keeps everything", gt=0, le=1)
    repetition_penalty: float = setting(1.0, "1 leaves the distribution as it is", gt=0)
    start: Literal["bos", "eos"] = setting(
        "bos", "token that a sequence begins with; a model without BOS begins with EOS either way"
    )
    seeded: bool = setting(
        True,
        "every request has its own seed, so that a sequence can be made again; slower without a "
        "GPU",
    )


class Http(Section):
    """An OpenAI-compatible endpoint. Its key comes from the environment alone."""

    url: str | None = setting(
        None,
        "address up to and with /v1, such as http://localhost:8000/v1; another machine's is https, "
        "or VERSATUNE_ALLOWED_HOSTS of the cluster names it",
    )
    key_variable: str = setting(
        "OPENAI_API_KEY",
        "environment variable, on the nodes of the cluster, that holds the key; it ends in "
        "_API_KEY, or VERSATUNE_ALLOWED_KEYS there names it",
    )
    concurrency: int = setting(32, "requests at the same time, of all actors together", ge=1)
    actors: int = setting(1, "processes that ask, where one does not keep up", ge=1)
    requests_per_minute: float | None = setting(
        None, "most requests that all actors begin in a minute; none: as fast as answers come", gt=0
    )
    max_cost: float | None = setting(
        None,
        "what this job may spend, in the currency of the prices; what is judged by then stays",
        gt=0,
    )
    input_price: float = setting(0.0, "price of a million tokens of prompt", ge=0)
    output_price: float = setting(0.0, "price of a million tokens of answer", ge=0)
    timeout: float = setting(60.0, "longest wait for one answer", "s", gt=0)
    retries: int = setting(
        6, "further tries, with growing pauses, after 429, 5xx or a time-out", ge=0
    )


class Judge(Section):
    kind: Literal["vllm", "http", "classifier"] = setting(
        "vllm",
        "a model served here by vLLM; any OpenAI-compatible endpoint; or a Hugging Face sequence "
        "classifier",
    )
    path: str | None = setting(
        None,
        "judge model: folder, Hugging Face id, or name at the endpoint; none: the tiny one of "
        "`base`",
        path=True,
    )
    prompt: str | None = setting(
        None,
        "prompt with {text}, optionally {options} and {domains}; none: a multiple-choice question",
    )
    labels: Literal["letters", "names"] = setting(
        "letters", "what the answer spells: an option letter, or the domain's name"
    )
    answer: Literal["probabilities", "label"] = setting(
        "probabilities",
        "one token's probabilities over the labels; or a label read from a written answer (the "
        "paper's release)",
    )
    answer_tokens: int = setting(
        512, "longest written answer, with `answer: label`", "tokens", ge=1
    )
    permute: bool = setting(
        True,
        "rotate the options from text to text, where the prompt lists them, so that a liking for A "
        "cancels",
    )
    max_text_tokens: int = setting(
        1024,
        "tokens of a text shown to the judge (over HTTP four characters count as one)",
        "tokens",
        ge=1,
    )
    chat_template_kwargs: dict[str, Any] = setting(
        dict, "for the judge's chat template, such as {enable_thinking: false}"
    )
    classes: dict[str, str] = setting(
        dict, "classifier: domain → its class; none: classes are called like the domains"
    )
    records: int = setting(
        100,
        "labelled records per domain, held out, on which the judge is measured; 0: it is not",
        "records",
        ge=0,
        resumable=True,
    )
    http: Http = setting(Http, "the endpoint, with `kind: http`", results=False)
    engine: Engine = setting(
        Engine, "vLLM stage of the judge; replicas and resources of a classifier", results=False
    )


class Subject(Section):
    """One of several base models to detect."""

    path: str = setting(..., "folder or Hugging Face id", path=True)
    name: str | None = setting(
        None, "how it is called in files and tables; none: the last part of its path"
    )
    engine: Engine = setting(Engine, "what differs from detection.engine")


# Settings of detection as they are printed in the paper (arXiv 2411.11266) or found in its release;
# what a user sets wins over them.
_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "samples": 40_000,
        "repeats": 5,
        "generation": {"temperature": 1.0, "top_p": 1.0, "start": "bos"},
    },
    "release": {
        "samples": 10_000,
        "repeats": 1,
        "generation": {
            "max_tokens": 15_999,
            "temperature": 1.0,
            "top_p": 1.0,
            "repetition_penalty": 1.1,
            "start": "eos",
        },
        "judge": {"answer": "label", "answer_tokens": 512, "permute": False},
    },
}


class Detection(WithPreset):
    """Algorithm 1: what the base model knows."""

    PRESETS = _PRESETS
    distribution: str | None = setting(
        None,
        "skip detection: a distribution.json, or the name of a published one (such as llama-2-7b)",
        path=True,
    )
    preset: Literal["paper", "release"] | None = setting(
        None, "settings of the paper or of its release, for every key not set here"
    )
    models: list[Subject] = setting(
        list,
        "base models that jobs/detect.py detects: paths, {path, name, engine}, or a .txt or .yaml "
        "file of them; none: model.path",
        resumable=True,
    )
    concurrency: int | None = setting(
        None,
        "models that write at the same time; none: as many as the cluster now has room for",
        ge=1,
        results=False,
    )
    samples: int = setting(400, "sequences per repeat, N_S (paper: 40,000)", "sequences", ge=2)
    repeats: int = setting(5, "repeats, T (paper: 5)", ge=1)
    tolerance: float | None = setting(
        None,
        "in rounds, up to samples × repeats: stop when each 95 % interval is at most this far from "
        "its share",
        "share",
        gt=0,
        lt=1,
    )
    exclude_degenerate: bool = setting(
        False,
        "leave out sequences that repeat a token or a short cycle; they are counted in any case",
    )
    estimate: Literal["raw", "corrected"] = setting(
        "raw",
        "shares that start training: as judged (the paper), or corrected by the judge's measured "
        "confusions",
    )
    generation: Generation = setting(Generation, "sampling settings")
    engine: Engine = setting(Engine, "vLLM stage of the base model", results=False)
    judge: Judge = setting(Judge, "the judge model")

    @field_validator("models", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """A file of models, one path per line or YAML; a path alone stands for ``{path: …}``."""
        if isinstance(value, str) and value.endswith((".txt", ".yaml", ".yml")):
            value = _listed(Path(value).expanduser())
        entries = [value] if isinstance(value, str | Mapping) else value
        return (
            [{"path": entry} if isinstance(entry, str) else entry for entry in entries]
            if isinstance(entries, list)
            else entries
        )

    @model_validator(mode="after")
    def _complete(self) -> Detection:
        """Every model of the list gets its name, and the engine settings that it does not set
        itself.
        """
        judge = self.judge
        if judge.kind == "http" and (judge.http.url is None or judge.path is None):
            raise ValueError(
                "judge.kind: http needs judge.http.url (such as http://localhost:8000/v1) and "
                "judge.path, the model there"
            )
        if judge.kind == "classifier" and judge.path is None:
            raise ValueError("judge.path: missing; name the sequence-classification model")
        if self.estimate == "corrected" and not judge.records:
            raise ValueError(
                "judge.records: 0 measures no judge, so estimate: corrected has nothing to correct "
                "by"
            )
        if judge.http.max_cost and not judge.http.input_price + judge.http.output_price:
            raise ValueError(
                "judge.http.max_cost: what a request costs is not known; set input_price and "
                "output_price beside it, of a million tokens each"
            )
        if self.samples * self.repeats > _SEEDS:
            raise ValueError(
                f"samples: {self.samples:,} × {self.repeats:,} repeats are more sequences than the "
                f"{_SEEDS:,} that have seeds of their own"
            )
        userinfo = urlsplit(judge.http.url or "")
        if userinfo.username or userinfo.password or userinfo.query:
            raise ValueError(
                "judge.http.url: a name, a password or a query in it would be written down; put "
                "the key in the environment"
            )
        models = []
        for subject in self.models:
            own = {key: getattr(subject.engine, key) for key in subject.engine.model_fields_set}
            engine = self.engine.model_copy(update=own)
            models.append(
                subject.model_copy(
                    update={"name": subject.name or Path(subject.path).name, "engine": engine}
                )
            )
        engines = [self.engine, *(model.engine for model in models)]
        if not self.generation.seeded and any(
            engine.replicas not in (1, [1, 1]) for engine in engines
        ):
            raise ValueError(
                "generation.seeded: false with several replicas would write the same texts in "
                "each: vLLM seeds them alike"
            )
        names = [str(model.name) for model in models]
        for name in names:
            if not name or name.startswith(".") or "/" in name:
                raise ValueError(
                    f"models: {name!r} cannot be a model's name, since a folder is called by it; "
                    f"give {{path: …, name: …}}"
                )
            if names.count(name) > 1:
                raise ValueError(
                    f"models: {name!r} is there {names.count(name)} times; give each its own name "
                    f"with {{path: …, name: …}}"
                )
        object.__setattr__(self, "models", models)
        return self


def _listed(file: Path) -> Any:
    if not file.is_file():
        raise ValueError(f"{file}: no such file of models")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: no text in UTF-8: {error.reason}") from None
    if file.suffix == ".txt":
        return [
            line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")
        ]
    try:
        return plain(read_yaml(text, str(file)))
    except (yaml.YAMLError, UserError) as error:
        raise ValueError(f"{file}: no list of models: {' '.join(str(error).split())}") from None
