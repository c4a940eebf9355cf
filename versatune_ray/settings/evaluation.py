"""Keys of the evaluation: questions before and after, and benchmarks on any models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, field_validator

from versatune_ray.settings.common import Section, WithPreset, setting
from versatune_ray.settings.detection import Engine


class Benchmark(Section):
    """One benchmark of a domain."""

    task: str = setting(
        ...,
        "a task of lm-evaluation-harness or of ours, or a file of your own records (JSONL, CSV, "
        "Parquet)",
        path=True,
    )
    name: str | None = setting(
        None, "what it is called in tables; none: the task's or the file's name"
    )
    shots: int | None = setting(
        None, "solved examples before each question; none: the task's own number", ge=0
    )
    metric: str | None = setting(
        None,
        "what counts of a task that counts several things, by the harness's name, as acc_norm; "
        "none: the usual one (acc, exact_match, pass@1)",
    )
    choices: Literal["letters", "texts"] = setting(
        "letters",
        "own multiple choice: the letters of listed choices are compared, or the choices "
        "themselves as continuations",
    )


def _named(value: object) -> object:
    return {"task": value} if isinstance(value, str) else value


Benchmarks = list[Annotated[Benchmark, BeforeValidator(_named)]]

_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "benchmarks": {
            "law": [{"task": "legalbench", "shots": 1}, {"task": "lawbench", "shots": 1}],
            "medicine": [{"task": "medqa_4options", "shots": 1}, {"task": "medmcqa", "shots": 1}],
            "finance": [{"task": "fineval", "shots": 1}, {"task": "financeiq", "shots": 5}],
            "science": [{"task": "scieval", "shots": 1}, {"task": "mmlu_stem", "shots": 0}],
            "code": [{"task": "humaneval", "shots": 0}, {"task": "mbpp", "shots": 0}],
            "general": [{"task": "agieval", "shots": 0}, {"task": "hellaswag", "shots": 0}],
        }
    }
}


class Evaluation(WithPreset):
    PRESETS = _PRESETS
    preset: Literal["paper"] | None = setting(
        None, "paper: the twelve benchmarks of VersaTune's Table 1 with its shots"
    )
    max_tokens: int = setting(32, "longest answer to a question", "tokens", ge=1)
    limit: int | None = setting(
        None,
        "questions per domain, and per benchmark or each of its parts; none: all",
        "questions",
        ge=1,
    )
    engine: Engine = setting(Engine, "vLLM that answers")
    benchmarks: dict[str, Benchmarks] = setting(
        dict, "domain → benchmarks; a domain's score is the mean of its own"
    )
    models: dict[str, str] = setting(
        dict,
        "name → folder or Hugging Face id of more models to measure beside the base and the tuned "
        "one",
        path=True,
    )
    run_code: bool = setting(
        False,
        "run programs that models write (code benchmarks), in a process without network, with "
        "little time and memory",
    )
    chat: bool = setting(False, "put benchmarks as turns of a chat, by the model's chat template")

    @field_validator("models")
    @classmethod
    def _others(cls, value: dict[str, str]) -> dict[str, str]:
        for name in ("base", "tuned"):
            if name in value:
                raise ValueError(f"{name!r} is the run's own; give this model another name")
        return value
