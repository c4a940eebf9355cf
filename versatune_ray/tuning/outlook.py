"""What searches and studies would do, as text, before anything is started: ``--plan``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from versatune_ray.pipeline.plans import plan_detection, plan_reference, plan_tuning
from versatune_ray.settings import Config, semantics
from versatune_ray.settings.location import shown
from versatune_ray.tuning.lookahead import settings_of
from versatune_ray.tuning.plan import Plan
from versatune_ray.tuning.study import alone, trials_of


def plan_sweep(config: Config) -> str:
    """Trials of a search, those that are done, and what one takes."""
    settings = config.sweep
    ends = {
        key: values["min"] if isinstance(values, Mapping) else values[0]
        for key, values in settings.space.items()
    }
    sizes = [len(values) for values in settings.space.values() if not isinstance(values, Mapping)]
    total = math.prod(sizes) if settings.search == "grid" else settings.trials
    how = f"{settings.search} over {', '.join(settings.space)}"
    if settings.prune:
        how += "; hopeless trials are stopped early"
    return _trials(config, f"sweep: {how}", total, settings.concurrency, [ends])


def plan_study(config: Config) -> str:
    """Methods × seeds, those that are done, and what one takes."""
    settings = config.study
    listed = trials_of(config)
    changes = [alone(one) for one in settings.chosen.values()]
    what = f"study: {len(settings.chosen)} methods × {len(settings.seeds)} seeds"
    return _trials(config, what, len(listed), settings.concurrency, changes)


def plan_cofitune(config: Config) -> str:
    """The tree of the search, and what one fine-tuning takes."""
    settings = config.cofitune
    widest = max((len(some) for some in settings.modules.values()), default=0)
    tree = len(settings.layers) + len(settings.modules) + widest
    total = min(tree, settings.trials or tree)
    what = (
        f"cofitune: {len(settings.layers)} ranges of layers, then {len(settings.modules)} groups "
        f"of modules, then up to {widest} projections"
    )
    first = [{"training.trainable.layers": settings.layers[0]}]
    return _trials(config, what, total, settings.concurrency, first)


def plan_replay(config: Config) -> str:
    """Settings, and the losses that they answer to."""
    own = config.run_folder / "finetune" / "adjustments.jsonl"
    log = Path(config.replay.losses or own)
    there = "" if log.is_file() else ", which is not there: a fine-tuning writes it"
    return (
        f"replay: {len(settings_of(config))} settings on the losses of {shown(log)}{there}\n"
        f"  a second, without Ray; nothing is trained"
    )


def _trials(
    config: Config,
    what: str,
    total: int,
    at_once: int | None,
    alternatives: Sequence[Mapping[str, Any]],
) -> str:
    """
    Args:
        alternatives: what trials change; the first of them is described.
    """
    plan = Plan(config)
    done = len(list(plan.trials.glob("*/outcome.json")))
    configs = [plan.config("check", changes) for changes in alternatives]
    together = "as many as the cluster has room for" if at_once is None else str(at_once)
    before = f", {done} trial(s) of this run done before" if done else ""
    parts = [f"{what}\n  {total:,} fine-tunings{before}; {together} at a time"]
    parts += [
        plan_of(config)
        for needs, plan_of in (
            (semantics.needs_detection, plan_detection),
            (semantics.needs_reference, plan_reference),
        )
        if any(needs(one) for one in configs)
    ]
    return "\n\n".join([*parts, f"each, as the first:\n{plan_tuning(configs[0])}"])
