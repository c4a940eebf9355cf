"""Keys that decide nothing beside what the other keys say. Such a key is no mistake, for one file
may serve runs of several kinds: it is told, and refused where trials would differ by it alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from operator import attrgetter

from versatune_ray.mixture import POLICIES, STARTS
from versatune_ray.settings import Config, Http
from versatune_ray.settings.mixing import rule_of
from versatune_ray.settings.semantics import domain_names
from versatune_ray.settings.stage_config import StageConfig, stage_configs

TUNING = ("mixture", "training", "stages")
# keys that one start alone goes by
_OF_STARTS = {
    "tau": "temperature",
    "trajectory": "trajectory",
    "embeddings": "chameleon",
    "target_share": "uniform_remainder",
}
_OF_POLICIES = {key for rule in POLICIES.values() for key in rule.keys} - {"min_share"}
_GRADIENTS = ("needs_gradients", "needs_variances", "needs_held_out_gradient")


def idle(config: Config) -> dict[str, str]:
    """Why each dotted key that does nothing here does nothing, whatever its value is.

    Raises:
        UserError: as ``stage_configs`` and ``rule_of``.
    """
    parts = stage_configs(config, domain_names(config))
    return dict(
        [
            *_mixture(config, parts),
            *_training(config, parts),
            *_detection(config),
            *_group(config),
            *_searches(config),
        ]
    )


def told(config: Config, sections: Collection[str]) -> Iterator[str]:
    """A line for each key of the ``sections`` that is set to something, and does nothing."""
    plain = Config()
    for key, why in idle(config).items():
        if key.partition(".")[0] not in sections:
            continue
        if key.startswith("stages."):
            yield f"{key} does nothing here: {why}"
            continue
        value = attrgetter(key)(config)
        if value != attrgetter(key)(plain):
            yield f"{key}={value} does nothing here: {why}"


def _mixture(config: Config, parts: list[StageConfig]) -> Iterator[tuple[str, str]]:
    mixture = config.mixture
    rules = {part.config.mixture.policy: rule_of(part.config.mixture.policy) for part in parts}
    starts = [
        part.config.mixture.start for part in parts if not rules[part.config.mixture.policy].starts
    ]
    policies = f"policy={', '.join(rules)}"
    taken = {key for rule in rules.values() for key in rule.keys}
    for key in sorted(_OF_POLICIES - taken):
        yield f"mixture.{key}", f"{policies} does not go by it"
    if all(rule.fixed for rule in rules.values()):
        yield "mixture.min_share", f"the shares of {policies} never move, so no floor lifts them"
    if not starts:
        yield "mixture.start", f"{policies} has a start of its own"
    for key, name in _OF_STARTS.items():
        if name not in starts:
            yield f"mixture.{key}", f"start={name} alone goes by it"
    aimed = any(isinstance(one, str) and STARTS[one].needs_targets for one in starts)
    if not aimed and not any(rule.needs_targets for rule in rules.values()):
        yield "mixture.targets", f"neither the start nor {policies} favours a domain"
    if mixture.unit != "tokens":
        yield "mixture.tokens", f"unit={mixture.unit} counts none"
    if mixture.feedback != "train":
        yield "mixture.smoothing", f"feedback={mixture.feedback} is taken as it is measured"
    kinds = [rule.kind for rule in rules.values()]
    if not any(getattr(kind, flag, False) for kind in kinds for flag in _GRADIENTS):
        yield "mixture.gradient_records", f"{policies} does not go by gradients"


def _training(config: Config, parts: list[StageConfig]) -> Iterator[tuple[str, str]]:
    training, keep = config.training, config.training.keep
    if training.lora.rank is None:
        for key in ("alpha", "dropout", "targets", "export"):
            yield f"training.lora.{key}", "there is no adapter without training.lora.rank"
    if training.schedule != "wsd":
        yield "training.decay", f"schedule={training.schedule} falls otherwise; wsd alone has it"
    if training.schedule == "constant":
        yield "training.min_lr_ratio", "schedule=constant does not fall"
    if training.on_nonfinite != "skip":
        yield "training.max_skipped", "training.on_nonfinite=stop leaves none out"
    if not keep.kl:
        yield "training.keep.kl_domain", "training.keep.kl is 0"
        yield "training.keep.kl_records", "training.keep.kl is 0"
    if not any(keep.replay.values()):
        yield "training.keep.replay_samples", "training.keep.replay names no domain"
    if config.stages:
        yield "training.samples_per_epoch", "stages have their own: stages.NAME.samples_per_epoch"
    for part in parts:
        if part.stage is not None and part.stage.rehearses and not part.rehearsed:
            yield f"stages.{part.name}.rehearse", "no stage before it has other sources"


def _detection(config: Config) -> Iterator[tuple[str, str]]:
    detection, judge = config.detection, config.detection.judge
    key = "detection.judge"
    if judge.kind != "http":
        for name in Http.model_fields:
            yield f"{key}.http.{name}", f"judge.kind={judge.kind} asks no endpoint"
    if judge.kind == "classifier":
        asked = ("prompt", "labels", "answer", "permute", "chat_template_kwargs")
        for name in asked:
            yield f"{key}.{name}", "a classifier is asked no question"
    else:
        yield f"{key}.classes", f"judge.kind={judge.kind} has none; a classifier has"
    if judge.kind == "classifier" or judge.answer != "label":
        yield f"{key}.answer_tokens", "the judge writes no answer; judge.answer=label lets it"
    if len(detection.models) < 2:
        yield "detection.concurrency", "one model is detected"


def _group(config: Config) -> Iterator[tuple[str, str]]:
    group = config.group
    if not group.sources:
        yield "group.fields", "no group.sources are named; those of domains have their own"
    if group.by == "judge":
        for key in ("embedding", "model", "depth", "max_tokens", "domains", "least", "most"):
            yield f"group.{key}", "by=judge makes no vectors"
        return
    for key in ("labels", "confidence"):
        yield f"group.{key}", "by=embedding asks no judge"
    if group.embedding == "words":
        yield "group.model", "embedding=words needs none"
    if group.embedding != "base":
        for key in ("depth", "max_tokens"):
            yield f"group.{key}", f"embedding={group.embedding} does not go by it"
    if group.domains is not None:
        for key in ("least", "most"):
            yield f"group.{key}", f"domains={group.domains} says how many"


def _searches(config: Config) -> Iterator[tuple[str, str]]:
    if config.sweep.search == "grid":
        yield "sweep.trials", "search=grid tries every combination; random and Optuna count"
    if not config.sweep.prune:
        yield "sweep.grace", "prune=false stops none"
    if not config.cofitune.general:
        for key in ("records", "dropout"):
            yield f"cofitune.{key}", "cofitune.general names no domain to measure on"
