"""Every key of the configuration, declared once with its type, unit, default and meaning;
``--keys`` prints exactly these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator, model_validator

from versatune_ray.mixture import POLICIES, STARTS, Constant, Rule, Start
from versatune_ray.settings.cofitune import CoFiTune, Trainable
from versatune_ray.settings.common import MOST_SEED, Paths, Section, Shares, nearest, setting
from versatune_ray.settings.detection import Detection, Engine, Generation, Http, Judge, Subject
from versatune_ray.settings.domains import Data, Domain, Source
from versatune_ray.settings.evaluation import Benchmark, Evaluation
from versatune_ray.settings.given import leaves
from versatune_ray.settings.grouping import Group
from versatune_ray.settings.location import root
from versatune_ray.settings.mixture import Mixture
from versatune_ray.settings.stages import Stage
from versatune_ray.settings.training import Lora, Reference, Training
from versatune_ray.settings.tuning import Replay, Study, Sweep
from versatune_ray.settings.world import MICROWORLD, Base, Microworld

__all__ = [
    "MICROWORLD",
    "Base",
    "Benchmark",
    "CoFiTune",
    "Config",
    "Data",
    "Detection",
    "Domain",
    "Engine",
    "Evaluation",
    "Generation",
    "Group",
    "Http",
    "Judge",
    "Lora",
    "Microworld",
    "Mixture",
    "Model",
    "Paths",
    "Reference",
    "Replay",
    "Section",
    "Shares",
    "Source",
    "Stage",
    "Study",
    "Subject",
    "Sweep",
    "Trainable",
    "Training",
    "nearest",
    "setting",
]


class Model(Section):
    path: str | None = setting(
        None,
        "base model: a folder, a Hugging Face id, a .gguf file, or demo:smollm2 (real, of 135M, "
        "with the extra demo); none: pre-train the tiny one described under `base`",
        path=True,
    )
    trust_remote_code: bool = setting(
        False,
        "run Python code that comes with this model and every other that the run loads (only for "
        "sources you trust)",
    )


# columns of the tables of detection and evaluation
_COLUMNS = ("id", "repeat", "text", "tokens", "answer", "discarded")


def _no_domain(name: str) -> str | None:
    """Why ``name`` is none of a domain, which is a folder's and a column's as well."""
    if name in _COLUMNS or not name:
        return "it would clash with a column or a folder"
    if "/" in name or "\\" in name or not name.strip("."):
        return "a folder is called by it, so it has no slashes and is not of dots alone"
    if not name.isprintable() or len(name.encode()) > 200:
        return "it has letters that nobody sees, or more than a folder's name may have"
    return None


class Config(Section):
    run: str = setting(
        "quickstart",
        "name of the run, and of its folder; the same name resumes",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$",
        results=False,
    )
    storage: str = setting(
        "runs",
        "runs and cache: a folder that every node sees, or a URI (s3://, gs://, …) that each "
        "reaches",
        results=False,
    )
    seed: int = setting(0, "seed of sampling, training and detection", ge=0, le=MOST_SEED)
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto",
        "auto: GPUs if the cluster has some now; cuda: also those that it would start for the job",
        results=False,
    )
    model: Model = setting(Model, "the model to fine-tune")
    domains: dict[str, Domain] = setting(
        dict, "name → sources, at least two; none: the embedded microworld"
    )
    data: Data = setting(Data, "how records become tokens")
    detection: Detection = setting(Detection, "knowledge detection")
    reference: Reference = setting(Reference, "reference losses")
    mixture: Mixture = setting(Mixture, "starting shares and policy")
    training: Training = setting(Training, "fine-tuning")
    stages: list[Stage] = setting(
        list,
        "parts of the fine-tuning that follow each other, each on sources of its own; none: one "
        "part",
    )
    evaluation: Evaluation = setting(
        Evaluation, "questions before and after, and benchmarks", resumable=True
    )
    sweep: Sweep = setting(Sweep, "search over settings (jobs/sweep.py)", resumable=True)
    study: Study = setting(Study, "methods compared over seeds (jobs/study.py)", resumable=True)
    cofitune: CoFiTune = setting(
        CoFiTune, "search for the parameters that may move (jobs/cofitune.py)", resumable=True
    )
    replay: Replay = setting(
        Replay, "recorded losses through other settings (jobs/replay.py)", resumable=True
    )
    group: Group = setting(
        Group, "domains out of unlabelled records (jobs/group.py)", resumable=True
    )
    base: Base = setting(Base, "tiny base model made here")
    microworld: Microworld = setting(Microworld, "embedded default world")

    @field_validator("domains", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """``law: law.jsonl`` stands for ``law: {train: law.jsonl}``."""
        if not isinstance(value, Mapping):
            return value
        return {
            name: {"train": spec} if isinstance(spec, str | list) else {} if spec is None else spec
            for name, spec in value.items()
        }

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if len(self.domains) == 1:
            raise ValueError(
                f"domains: {next(iter(self.domains))!r} is the only one; name at least two, or "
                f"none for the microworld"
            )
        for name, domain in self.domains.items():
            if (reason := _no_domain(name)) is not None:
                raise ValueError(f"domains: {name!r} cannot be a domain's name; {reason}")
            # jobs/detect.py needs names and descriptions only
            if not domain.train and not self.detection.models:
                raise ValueError(
                    f"domains.{name}.train: missing; name a file, a folder, a URI or a dataset id"
                )
        for name in self.group.labels:
            if (reason := _no_domain(name)) is not None:
                raise ValueError(f"group.labels: {name!r} cannot be a domain's name; {reason}")
        if (
            self.domains
            and self.model.path is None
            and not self.base.corpora
            and not self.detection.models
        ):
            raise ValueError(
                "model.path: missing; name a base model, or base.corpora to pre-train a tiny one"
            )
        if self.base.corpora and len(self.base.corpora) < 2:
            raise ValueError("base.corpora: at least two domains are needed")
        if self.domains and self.base.corpora and set(self.base.corpora) != set(self.domains):
            raise ValueError(
                f"base.corpora: domains {sorted(self.base.corpora)} differ from those under "
                f"`domains` {sorted(self.domains)}"
            )
        names = list(self.domains or self.base.corpora)
        capped = list(self.data.max_train) if isinstance(self.data.max_train, dict) else []
        if not names and capped and not self.group.sources:  # which may be about to make some
            names = list(MICROWORLD)
        for key, given in (
            ("data.max_train", capped),
            ("mixture.targets", self.mixture.targets),
            ("mixture.start", self._start_names()),
        ):
            for name in given if names else ():
                if name not in names:
                    raise ValueError(f"{key}: unknown domain {name!r}; {nearest(name, names)}")
        rule = POLICIES.get(self.mixture.policy, Rule(Constant))
        start = STARTS.get(str(self.mixture.start), Start())
        if self.mixture.targets == [] and (rule.needs_targets or start.needs_targets):
            raise ValueError("mixture.targets: missing; name at least one domain to expand")
        if start.needs_trajectory and self.mixture.trajectory is None:
            raise ValueError(
                "mixture.trajectory: missing; name the adjustments.jsonl of the run whose average "
                "mixture to start from"
            )
        if start.needs_embeddings and self.mixture.embeddings is None:
            raise ValueError(
                "mixture.embeddings: missing; name a JSON file with the mean embedding of each "
                "domain"
            )
        return self

    def _start_names(self) -> Sequence[str]:
        return leaves(self.mixture.start) if isinstance(self.mixture.start, dict) else []

    @property
    def title(self) -> str:
        """What lines of progress call this fine-tuning: one of many goes by its own name."""
        return self.run.rpartition("/")[2] if "/" in self.run else "fine-tuning"

    @property
    def run_folder(self) -> Path:
        return root(self.storage) / self.run

    @property
    def cache_folder(self) -> Path:
        return root(self.storage) / ".cache"
