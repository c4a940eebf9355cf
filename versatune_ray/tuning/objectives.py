"""What a run achieved, in one number per aim; and the runs that no other beats. Pure NumPy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Losses = Mapping[str, float]


def achieved(before: Losses, after: Losses, targets: Sequence[str] = ()) -> dict[str, float]:
    """The objectives of a run from its held-out losses before training and now, both in the same
    unit.

    - ``gain``: mean over all domains of the relative decrease of the loss, (ℓ(0) − ℓ) / ℓ(0).
    - ``target_gain``: the same mean over ``targets``. ``forgetting``: mean over all other domains
      of the relative increase, (ℓ − ℓ(0)) / ℓ(0), negative where they learn. Both are missing where
      there are no targets.

    Raises:
        ValueError: a domain lacks a loss, a loss before training is 0, or every domain is a target.
    """
    missing = [name for name in before if name not in after or not before[name] > 0]
    if missing:
        raise ValueError(f"{missing[0]}: no loss after training, or one of 0 before")
    gains = {name: (before[name] - after[name]) / before[name] for name in before}
    found = {"gain": float(np.mean(list(gains.values())))}
    if targets:
        others = [gain for name, gain in gains.items() if name not in targets]
        if not others:
            raise ValueError("targets: every domain is one, so that none can be forgotten")
        found |= {
            "target_gain": float(np.mean([gains[name] for name in targets])),
            "forgetting": -float(np.mean(others)),
        }
    return found


def accuracies(scores: Mapping[str, float], targets: Sequence[str] = ()) -> dict[str, float]:
    """Means of the domains' accuracies, within 0 and 1: of all as ``accuracy``, and of the targets
    and the others where there are some.

    CoFiTune's speciality and versatility are ``target_accuracy`` and ``other_accuracy``.
    """
    of = {"accuracy": list(scores), "target_accuracy": [name for name in scores if name in targets]}
    if targets:
        of["other_accuracy"] = [name for name in scores if name not in targets]
    return {
        name: float(np.mean([scores[domain] for domain in domains]))
        for name, domains in of.items()
        if domains
    }


def by_epoch(lines: Sequence[Mapping[str, Any]]) -> list[Losses | None]:
    """Held-out losses at the end of each epoch, from ``adjustments.jsonl``: of the last adjustment
    within it that measured them; ``None`` where none did.
    """
    measured = {
        math.ceil(line["epoch"] - 1e-6): line["loss"]
        for line in lines
        if line["feedback"] == "held_out"
    }
    return [measured.get(end) for end in range(1, math.floor(lines[-1]["epoch"] + 1e-6) + 1)]


def seconds_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of a whole run's ``training`` and ``measuring``, from ``adjustments.jsonl``."""
    spent = [line.get("seconds") or {} for line in lines]
    return {
        name: sum(float(part.get(name, 0)) for part in spent) for name in ("training", "measuring")
    }


def score(found: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Σ weight · objective: higher is better, so a weight of forgetting is negative. Raises
    ``KeyError`` for one that is not there.
    """
    return float(sum(weight * found[name] for name, weight in weights.items()))


def pareto_front(points: npt.ArrayLike) -> list[int]:
    """Indices of the points [n, m] that no other point beats, in their order; higher is better in
    each of the m columns.

    A point is beaten by one that is at least as good in every column and better in one. Equal
    points stay together. One with a coordinate that is no finite number is not compared at all.
    """
    table = np.asarray(points, dtype=np.float64)
    if table.size == 0:
        return []
    places = np.flatnonzero(np.isfinite(table).all(axis=1))
    table = table[places]
    return [
        int(place)
        for place, one in zip(places, table, strict=True)
        if not ((table >= one).all(axis=1) & (table > one).any(axis=1)).any()
    ]
