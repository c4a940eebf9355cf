"""What a job is given, checked before Ray starts: all that costs seconds here and would cost GPU
time later.

Two things are met later, since they take the reading of all records: a malformed one, and too few
of them (``mixture.max_passes``). ``Run.finetune`` meets them in the token stores, which no GPU
makes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from versatune_ray.detection.distribution import given
from versatune_ray.detection.prompt import DEFAULT_PROMPT, Question
from versatune_ray.domains import expand, load_tokenizer
from versatune_ray.domains.records import Rules, read_questions
from versatune_ray.errors import UserError
from versatune_ray.microworld.prepare import check_judge
from versatune_ray.runs.folder import say
from versatune_ray.runtime.models import check_length, find_model
from versatune_ray.settings import Config, idle, semantics
from versatune_ray.settings.location import is_mirrored
from versatune_ray.training.finetune import checked_importance
from versatune_ray.training.given_losses import given_losses

Use = Literal["records", "mixture", "detection", "reference", "models"]
TUNING: tuple[Use, ...] = ("records", "mixture")


def check_named(config: Config, uses: Collection[Use] = TUNING) -> None:
    """Whether what the configuration names is there; in a second, for no large library is loaded.

    Args:
        uses: what the job works on: the records of the domains; what the mixture needs of detected
            shares and reference losses; either of these for its own sake; or the models of the
            evaluation. Trials, which may change the mixture, use the records alone.

    Raises:
        UserError: it is not; the key and what it names are told.
    """
    names = semantics.domain_names(config)
    semantics.check_run(config)
    semantics.check(config, names)
    own, path = list(config.domains), config.model.path
    if path is not None and not ("detection" in uses and config.detection.models):
        find_model("model.path", path)
    if "records" in uses:
        _check_records(config)
    mixes = "mixture" in uses and bool(own)
    if "reference" in uses or (mixes and semantics.needs_reference(config)):
        _check_reference(config, names)
    if _detects(config, uses):
        _check_detection(config, own)
    for name, model in config.evaluation.models.items() if "models" in uses else ():
        find_model(f"evaluation.models.{name}", model)


def check_models(config: Config, uses: Collection[Use] = TUNING) -> None:
    """Whether texts fit into the models' contexts, there is a tokenizer with a template, and the
    model has what is to train of it.

    Raises:
        UserError: they do not, there is none, or it has not.
    """
    path, data, remote = config.model.path, config.data, config.model.trust_remote_code
    if "records" in uses and path is not None:
        check_length("data.max_length", data.max_length, path, remote)
        load_tokenizer(path, data.chat_template, remote, data.chat_template_kwargs)
        if "reference" not in uses:  # whose models train whole
            checked_importance(config, path)
    if _detects(config, uses) and config.detection.distribution is None:
        key, longest = "detection.generation.max_tokens", config.detection.generation.max_tokens + 1
        for model in [subject.path for subject in config.detection.models] or [path or ""]:
            if model:
                check_length(key, longest, model, remote)


def tell_idle(config: Config, uses: Collection[Use], job: str) -> None:
    """Say which keys are set and do nothing in this job; ``uses``: as of ``check_named``."""
    tunes = idle.TUNING if "mixture" in uses else ()
    detects = ("detection",) if _detects(config, uses) else ()
    for line in idle.told(config, (job, *tunes, *detects)):
        say("settings", line)


def _detects(config: Config, uses: Collection[Use]) -> bool:
    return bool(config.domains) and (
        "detection" in uses or ("mixture" in uses and semantics.needs_detection(config))
    )


def _check_records(config: Config) -> None:
    data = config.data
    for name, domain in config.domains.items():
        for key in ("train", "validation", "questions"):
            for spec in domain.specs(key):
                expand(spec, f"domains.{name}.{key}")
        if domain.questions:  # they are few, and are asked after the training
            key, limit = f"domains.{name}.questions", config.evaluation.limit
            read_questions(domain.questions, limit, key, Rules(domain.fields))
    if data.chat_template is not None and not is_mirrored(data.chat_template):
        file = Path(data.chat_template).expanduser()
        if not file.is_file():
            raise UserError(f"data.chat_template: {data.chat_template}: no such file")


def _check_reference(config: Config, names: Sequence[str]) -> None:
    losses, model = config.reference.losses, config.reference.model
    if losses is not None:
        given_losses(losses, names)
    if losses is None and model is not None:
        find_model("reference.model", model)


def _check_detection(config: Config, names: list[str]) -> None:
    settings, judge = config.detection, config.detection.judge
    if settings.distribution is not None:
        given(settings.distribution, names)
        return
    check_judge(config)
    for subject in settings.models:
        find_model("detection.models", subject.path)
    if judge.kind != "http" and judge.path is not None:
        find_model("detection.judge.path", judge.path)
    if judge.kind != "classifier" and judge.path is not None:
        Question(
            tuple(names),
            {name: domain.description for name, domain in config.domains.items()},
            judge.prompt or DEFAULT_PROMPT,
            judge.labels,
        )
