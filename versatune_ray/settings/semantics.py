"""From configuration to the parts of a run: policy, starting shares, number of steps,
adjustments.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ray import mixture as mix
from versatune_ray.errors import UserError
from versatune_ray.settings import MICROWORLD, Config, given
from versatune_ray.settings.mixing import (
    asked_samples,
    check_adjustments,
    policy,
    rule_of,
    starting_shares,
)
from versatune_ray.settings.recipe import Recipe, StagePlan, Unit
from versatune_ray.settings.stage_config import stage_configs

# up to which repeated records are nearly as good as new ones (Muennighoff, arXiv 2305.16264)
_GOOD_PASSES = 4.0
_MOST_STEPS = 1e9


def domain_names(config: Config) -> list[str]:
    """Also of a configuration whose microworld is not filled in yet."""
    return list(config.domains or config.base.corpora or MICROWORLD)


# folders that a run makes in its own, so that no other run can have one
RUN_FOLDERS = (
    "cofitune",
    "detection",
    "evaluation",
    "finetune",
    "group",
    "hub",
    "reference",
    "replay",
    "study",
    "sweep",
    "trials",
)


def check_run(config: Config) -> None:
    """Whether the run has a folder of its own.

    Raises:
        UserError: it would lie inside another run's.
    """
    _, *inner = config.run.split("/")
    for part in inner:
        if part in RUN_FOLDERS or part.startswith("report"):
            above = config.run[: config.run.index(f"/{part}")]
            raise UserError(
                f"run: {config.run!r} would lie in the folder of run {above!r}, which keeps its "
                f"own {part} there; choose another name, such as {config.run.replace('/', '-')}"
            )


def check(config: Config, names: Sequence[str]) -> None:
    """Everything about mixture, batch and trackers that can be wrong before anything is computed.

    Raises:
        UserError: as ``policy`` and ``starting_shares``; or fewer samples per step than workers.
    """
    for name, package in (("wandb", "wandb"), ("mlflow", "mlflow-skinny")):
        if name in config.training.metrics and find_spec(name) is None:
            raise UserError(f"training.metrics: {name} is not installed; pip install {package}")
    for file in config.training.soft_mask:
        if not Path(file).is_file():
            raise UserError(
                f"training.soft_mask: {file!r}: no such file; jobs/cofitune.py makes them"
            )
    for part in stage_configs(config, names):
        own, k = part.sources, len(part.sources)
        with _told_of(part.name):
            policy(part.config, own)
            starting_shares(part.over(own), own, [1 / k] * k, [1] * k)
            batch, workers = part.config.training.batch_size, config.training.least_and_most[1]
            if batch < workers:
                raise UserError(
                    f"training.batch_size: {batch} is less than one sample for each of {workers} "
                    f"workers"
                )
    if config.training.keep.kl and config.data.shards_at_once:
        raise UserError(
            "training.keep.kl: draws from all shards at each step; leave out data.shards_at_once"
        )
    general = config.training.keep.kl_domain
    if general is not None and general not in names:
        raise UserError(f"training.keep.kl_domain: {general!r}; valid: {', '.join(names)}")
    for name in config.training.keep.replay:
        if name not in names:
            raise UserError(f"training.keep.replay: {name!r}; valid: {', '.join(names)}")
    best = config.training.keep_best
    if best is not None and best not in ("loss", *(f"loss.{name}" for name in names)):
        raise UserError(
            f"training.keep_best: {best!r}; valid: loss, "
            f"{', '.join(f'loss.{name}' for name in names)}"
        )
    if best is not None and config.mixture.feedback == "train":
        raise UserError(
            "training.keep_best: mixture.feedback=train measures held-out losses at the ends alone"
        )


def stages(
    config: Config,
    names: Sequence[str],
    sizes: Sequence[int],
    detected: Sequence[float] | None,
    unit: Unit,
) -> list[StagePlan]:
    """The stages of a run; one of a configuration without any.

    Args:
        sizes: training records per domain, [k].
        detected: detected shares [k], if a start needs them.

    Raises:
        UserError: as ``stage_configs``, ``policy``, ``starting_shares``, ``check_passes``; or a
            stage is left without records.
    """
    found: list[StagePlan] = []
    for part in stage_configs(config, names):
        records = part.records(dict(zip(names, sizes, strict=True)))
        own = [name for name in part.sources if records[name]] if part.stage else list(part.sources)
        counts, places = [records[name] for name in own], [names.index(name) for name in own]
        with _told_of(part.name):
            if not sum(counts):
                raise UserError(
                    f"no record is left of {', '.join(part.sources)}; raise records or fraction"
                )
            alone = part.over(own)
            asked = asked_samples(alone, own, counts)
            each = sum(counts) if asked is None else asked / alone.training.epochs
            one = replace(
                recipe(alone, sum(counts), unit, asked),
                order=len(found),
                orders=tuple(
                    config.domains[name].order if name in config.domains else "random"
                    for name in names
                ),
            )
            check_passes(alone, own, counts, one)
            chosen = policy(alone, own)
            every = alone.training.adjust_every or max(1, round(one.steps / alone.training.epochs))
            check_adjustments(alone, chosen, len(own), one.steps, every)
            start = np.zeros(len(names))
            start[places] = starting_shares(
                alone, own, None if detected is None else _among(detected, places), counts
            )
            part.check_start(dict(zip(own, start[places], strict=True)))
            found.append(
                StagePlan(
                    name=part.name,
                    sources=tuple(places),
                    records=tuple(records.get(name, 0) for name in names),
                    start=start,
                    policy=chosen,
                    recipe=one,
                    adjust_every=every,
                    epoch_samples=alone.training.samples_per_epoch or each,
                    fresh=part.fresh,
                    first=found[-1].last if found else 0,
                    first_epoch=found[-1].epoch(found[-1].last) if found else 0.0,
                )
            )
    return _with_schedules(found)


def _among(shares: Sequence[float], places: Sequence[int]) -> list[float]:
    """Some domains' shares, summing to 1; equal ones where none of them has any."""
    chosen = np.asarray(shares, dtype=np.float64)[list(places)]
    found: list[float] = (
        chosen / chosen.sum() if chosen.sum() > 0 else np.full(len(places), 1 / len(places))
    ).tolist()
    return found


def _with_schedules(found: Sequence[StagePlan]) -> list[StagePlan]:
    """Stages that go on with the schedule of the one before share one over the steps of all of
    them.
    """
    group = np.cumsum([stage.fresh for stage in found])
    steps = np.bincount(group, [stage.recipe.steps for stage in found])
    return [
        replace(one, recipe=replace(one.recipe, scheduled=int(steps[g])))
        for one, g in zip(found, group, strict=True)
    ]


@contextmanager
def _told_of(stage: str | None) -> Iterator[None]:
    """A mistake that concerns one of several stages names it."""
    try:
        yield
    except UserError as error:
        raise error if stage is None else UserError(f"stages.{stage}: {error}") from None


def controller_arguments(
    config: Config,
    names: Sequence[str],
    stages: Sequence[StagePlan],
    reference: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What ``WeightController`` is made of; ``reference``: content of ``losses.json``, if a policy
    needs it.
    """
    return {
        "domains": names,
        "stages": stages,
        "reference_loss": None
        if reference is None
        else np.array([reference["domains"][name]["loss"] for name in names]),
        "timeout": config.training.exchange_timeout,
        "warn_passes": config.mixture.warn_passes,
        "smoothing": config.mixture.smoothing,
    }


def needs_detection(config: Config) -> bool:
    found = [part.config.mixture for part in stage_configs(config, domain_names(config))]
    starts = [one.start for one in found if not rule_of(one.policy).starts]
    return any(isinstance(start, str) and mix.STARTS[start].needs_detection for start in starts)


def needs_reference(config: Config) -> bool:
    policies = {part.config.mixture.policy for part in stage_configs(config, domain_names(config))}
    return any(rule_of(policy).needs_reference for policy in policies)


def recipe(config: Config, train_records: int, unit: Unit, asked: float | None = None) -> Recipe:
    """Steps = epochs × samples per epoch / batch size, rounded up; an epoch without
    ``samples_per_epoch`` has all records. ``asked``: samples of all epochs, where shares say it.

    Raises:
        UserError: more steps than a run can have.
    """
    training = config.training
    # exact: in floats 2.2 · 100 is more than 220
    total = Fraction(str(training.epochs)) * (training.samples_per_epoch or train_records)
    if asked is not None:
        total = Fraction(str(round(asked, 6)))
    wanted = total / training.batch_size
    if wanted > _MOST_STEPS:
        raise UserError(f"training.epochs: {training.epochs:g} make too many steps; lower it")
    steps, cap = max(1, math.ceil(wanted)), config.mixture.max_passes
    return Recipe(
        steps=steps,
        batch_size=training.batch_size,
        micro_batch_tokens=training.micro_batch_tokens,
        learning_rate=training.learning_rate,
        warmup=training.warmup,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        seed=config.seed,
        unit=unit,
        schedule=training.schedule,
        decay=training.decay,
        min_lr_ratio=training.min_lr_ratio,
        betas=(training.betas[0], training.betas[1]),
        eps=training.eps,
        optimizer=training.optimizer,
        on_nonfinite=training.on_nonfinite,
        max_skipped=training.max_skipped,
        kl=training.keep.kl,
        kl_domain=training.keep.kl_domain,
        kl_records=training.keep.kl_records,
        l2=training.keep.l2,
        max_passes=max(_GOOD_PASSES, 2 * steps * training.batch_size / train_records)
        if cap == "auto"
        else cap,
        length_correction=config.mixture.length_correction,
        counted="samples" if config.mixture.unit == "samples" else config.mixture.tokens,
        shards_at_once=config.data.shards_at_once,
    )


def check_passes(
    config: Config, names: Sequence[str], sizes: Sequence[int], recipe: Recipe
) -> None:
    """Whether the records last for the run under ``mixture.max_passes``, before it begins.

    Args:
        sizes: training records per domain, [k].

    Raises:
        UserError: the run's samples are more than the cap allows over all domains that can have a
            share; or fixed shares are given as more epochs of a domain.
    """
    cap = recipe.max_passes
    if cap is None:
        return
    if asked_samples(config, names, sizes) is not None and rule_of(config.mixture.policy).fixed:
        start, records = config.mixture.start, dict(zip(names, sizes, strict=True))
        for name, samples in given.parts(start, records).items():  # type: ignore[arg-type]
            if samples > cap * records[name] + 1e-6:
                raise UserError(
                    f"mixture.max_passes: {cap:g} is below the {samples / records[name]:g} epochs "
                    f"of {name} in mixture.start; raise it, or set it to null"
                )
    drawn = _drawn(config, names, sizes)
    allowed, asked = (
        sum(math.floor(cap * size) for size in drawn.values()),
        recipe.steps * recipe.batch_size,
    )
    if asked > allowed:
        raise UserError(
            f"mixture.max_passes: {cap:g} over the {sum(drawn.values()):,} records of "
            f"{', '.join(drawn)} give {allowed:,} samples, "
            f"but the run trains on {asked:,}; lower training.epochs, raise mixture.max_passes, or "
            f"add records"
        )


def _drawn(config: Config, names: Sequence[str], sizes: Sequence[int]) -> dict[str, int]:
    """Sizes of the domains that have a share or can get one: where a policy multiplies, 0 stays 0
    but for a target or a floor.
    """
    settings, all_ = config.mixture, dict(zip(names, sizes, strict=True))
    rule = rule_of(settings.policy)
    lifted = settings.min_share > 0 and not rule.fixed
    if needs_detection(config) or lifted or not rule.multiplicative:
        return all_
    start = starting_shares(config, names, None, sizes)
    raised = settings.targets if rule.needs_targets else []
    return {
        name: size
        for (name, size), share in zip(all_.items(), start, strict=True)
        if share > 0 or name in raised
    }
