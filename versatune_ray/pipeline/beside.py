"""The same budget spent another way, beside a run: another mixture on its model, data and seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from versatune_ray.pipeline.plans import plan_pipeline
from versatune_ray.pipeline.run import Run
from versatune_ray.runs.folder import RunFolder, check_unchanged, say
from versatune_ray.settings import Config
from versatune_ray.settings.loading import parse, with_keys

Rows = Sequence[Mapping[str, Any]]


def check_beside(config: Config) -> None:
    """Whether the run beside that of ``config`` may begin or go on, before either does.

    Raises:
        UserError: it was begun with other settings.
    """
    if config.mixture.policy != "balanced":
        check_unchanged(_balanced(config))


def plan_beside(config: Config) -> str:
    """What both would do and take."""
    plan = plan_pipeline(config)
    if config.mixture.policy == "balanced":
        return plan
    name = _balanced(config).run
    return f"{plan}\n\nthe same again as run {name}, with mixture.preset=balanced: no detection"


def balanced_beside(run: Run) -> None:
    """Tune as ``mixture.preset: balanced`` does, as a run of its own beside ``run``, whose results
    are there; print both. What does not depend on the mixture is taken from the cache.
    """
    config = run.given_config
    if config.mixture.policy == "balanced":
        return
    say("beside", "the same again with mixture.preset=balanced: no detection, no judge")
    with RunFolder(_balanced(config)) as folder:
        other = Run(folder)
        theirs = other.evaluate()["results"]
        other.report()
    for line in side_by_side(run.evaluate()["results"], theirs):
        say("beside", line)


def _balanced(config: Config) -> Config:
    changes = {"run": f"{config.run}-balanced", "mixture.preset": "balanced"}
    tree = config.model_dump(mode="json")
    tree["mixture"]["options"] = {}  # of this run's policy
    return parse(with_keys(tree, changes))


def side_by_side(ours: Rows, theirs: Rows) -> Iterator[str]:
    """Right answers by domain and their mean, in percent: before, after, after with the other; or
    held-out losses where nothing was asked.
    """
    asked = any(row["metric"] == "exact_match" for row in ours)
    metric, scale, digits = ("exact_match", 100.0, 1) if asked else ("loss", 1.0, 3)
    columns = {
        "base": _values(ours, "base", metric),
        "this run": _values(ours, "tuned", metric),
        "balanced": _values(theirs, "tuned", metric),
    }
    names = list(columns["base"])
    width = max(map(len, ["right answers, %", *names]))
    yield f"{'right answers, %' if asked else 'held-out loss':<{width}}" + "".join(
        f"{name:>10}" for name in columns
    )
    for name in names:
        yield f"{name:<{width}}" + "".join(
            f"{scale * one[name]:>10.{digits}f}" for one in columns.values()
        )
    means = [sum(one[name] for name in names) / len(names) for one in columns.values()]
    yield f"{'mean':<{width}}" + "".join(f"{scale * mean:>10.{digits}f}" for mean in means)


def _values(rows: Rows, model: str, metric: str) -> dict[str, float]:
    return {
        row["domain"]: row["value"]
        for row in rows
        if row["model"] == model and row["metric"] == metric
    }
