"""What a person should hear of while a run goes on: failure signs of loss-driven mixing, read off
the log of adjustments alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from versatune_ray.mixture.arrays import FloatArray
from versatune_ray.mixture.feedback import REPEATED

VANISHED = 0.1  # of the starting share
TURNS = 4  # changes of direction in a row …
RISE = 0.01  # of a held-out loss above its lowest: below, it is noise
# … of moves at least so large, relative to the share before: below, it is noise that does no harm
SWING = 0.1
# kinds that are about what losses make of shares
_OF_SHARES = ("potential", "share", "overfitting", "swings")

Line = Mapping[str, Any]


def new_warnings(
    lines: Sequence[Line], warn_passes: float = 4.0, *, planned: bool = False
) -> list[str]:
    """Sentences with numbers and a way out, one per kind of trouble that began at the last line;
    more serious kinds first.

    A kind of trouble is told once per domain, and again only after it had gone. Nothing is
    remembered, so a resumed run says the same:

    - losses: every domain's loss rose at each of the last two adjustments (measured in the same
    way, held out or while training).
    - potential: γ is 0 in every domain, so the policy has nothing left to go by.
    - share: less than a tenth is left of a domain's share at the first line. The ratio needs no
      scale: it means the same for two domains or two hundred, and says that the losses, and not
          whoever chose the start, have all but removed the domain.
    - overfitting: after two passes or more over a domain's records, its held-out loss is 1 % or
      more above its lowest, and its share has grown since. The learnable potential (Eq. 2) counts
      such a rise as something to learn.
    - swings: a domain's share changed direction at each of the last four adjustments, each time by
    10 % of itself or more.
    - passes: more than ``warn_passes`` passes over a domain's records, to one decimal. Up to four
      are nearly as good as new data (Muennighoff et al. 2023, arXiv 2305.16264).

    Args:
        lines: ``adjustments.jsonl`` so far; of each, ``share`` (domain → share, with the same
            domains in all), ``loss``, ``learnable_potential``, ``passes`` (domain → number or None;
            or None) and ``feedback`` are read.
        warn_passes: passes over a domain's records, > 0.
        planned: shares follow a plan and no losses: how they move is no sign of anything.
    """
    if not lines:
        return []
    names = list(lines[-1]["share"])
    before, found = _signs(lines[:-1], names, warn_passes), []
    for kind, now in _signs(lines, names, warn_passes).items():
        if planned and kind in _OF_SHARES:
            continue
        if begun := np.flatnonzero(now & ~before.get(kind, np.zeros_like(now))).tolist():
            found.append(_SENTENCES[kind](lines, names, begun, warn_passes))
    return found


def _signs(lines: Sequence[Line], names: Sequence[str], warn_passes: float) -> dict[str, Any]:
    """Which kinds of trouble there are at the last line, [k] per kind; one that is about all
    domains is true for each or none.
    """
    if not lines:
        return {}
    last = lines[-1]
    share, least = _values(last, "share", names), VANISHED * _values(lines[0], "share", names)
    alike = [line for line in lines[-3:] if line.get("feedback") == last.get("feedback")]
    rises = np.diff([_values(line, "loss", names) for line in alike], axis=0) > 0
    signs: dict[str, Any] = {
        "losses": np.full(len(names), len(rises) == 2 and rises.all()),
        "potential": np.full(len(names), (_values(last, "learnable_potential", names) == 0).all()),
        # not where a floor of exactly this holds it, as in ``balanced``
        "share": (share < least) & ~np.isclose(share, least, rtol=1e-6),
        "overfitting": _overfits(lines, names),
        "swings": np.zeros(len(names), dtype=np.bool_),
        "passes": np.round(_values(last, "passes", names), 1) > warn_passes,
    }
    if len(lines) >= TURNS + 2:
        shares = np.array([_values(line, "share", names) for line in lines[-TURNS - 2 :]])
        moves = np.diff(shares, axis=0)
        large = (np.abs(moves) >= SWING * shares[:-1]).all(axis=0)
        signs["swings"] = large & (moves[1:] * moves[:-1] < 0).all(axis=0)
    return signs


def _overfits(lines: Sequence[Line], names: Sequence[str]) -> Any:
    best = _best(lines, names)
    if best is None:
        return np.zeros(len(names), dtype=np.bool_)
    loss, share = best
    rose = _values(lines[-1], "loss", names) > (1 + RISE) * loss
    return (
        rose
        & (_values(lines[-1], "share", names) > share)
        & (_values(lines[-1], "passes", names) >= REPEATED)
    )


def _best(lines: Sequence[Line], names: Sequence[str]) -> tuple[FloatArray, FloatArray] | None:
    """Each domain's lowest held-out loss and the share decided by it, [k] each; None where the last
    loss is no held-out one, or one is missing.
    """
    held_out = [line for line in lines if line.get("feedback") == "held_out"]
    if not held_out or held_out[-1] is not lines[-1]:
        return None
    losses = np.array([_values(line, "loss", names) for line in held_out])
    if np.isnan(losses).any():
        return None
    at = losses.argmin(axis=0), np.arange(len(names))
    return losses[at], np.array([_values(line, "share", names) for line in held_out])[at]


def _losses(
    lines: Sequence[Line], names: Sequence[str], begun: Sequence[int], warn_passes: float
) -> str:
    rise = _values(lines[-1], "loss", names) - _values(lines[-3], "loss", names)
    least, most = int(rise.argmin()), int(rise.argmax())
    by = f"by {rise[least]:.3g} in {names[least]} to {rise[most]:.3g} in {names[most]}"
    return (
        f"the loss of every domain rose at two adjustments running ({by}): lower "
        f"training.learning_rate, or look at the records"
    )


def _potential(
    lines: Sequence[Line], names: Sequence[str], begun: Sequence[int], warn_passes: float
) -> str:
    loss = _values(lines[-1], "loss", names)
    return (
        f"the loss of every domain ({loss.min():.3g} to {loss.max():.3g}) is no longer above its "
        f"reference loss, so nothing guides the "
        "shares any more: find a lower ceiling with a stronger reference.model or more "
        "reference.epochs"
    )


def _share(
    lines: Sequence[Line], names: Sequence[str], begun: Sequence[int], warn_passes: float
) -> str:
    told = _listing(
        f"{names[i]} ({_percent(lines[0], names[i])} → {_percent(lines[-1], names[i])})"
        for i in begun
    )
    return (
        f"less than a tenth is left of the starting share of {told}: mixture.min_share is a floor "
        f"under every share"
    )


def _overfitting(
    lines: Sequence[Line], names: Sequence[str], begun: Sequence[int], warn_passes: float
) -> str:
    loss, share = _best(lines, names) or (np.zeros(0), np.zeros(0))
    told = _listing(
        f"{name} (loss {loss[i]:.3f} → {lines[-1]['loss'][name]:.3f}, share {100 * share[i]:.3g} % "
        f"→ {_percent(lines[-1], name)}, "
        f"{lines[-1]['passes'][name]:.1f} passes)"
        for i in begun
        for name in [names[i]]
    )
    return (
        f"records are learned by heart in {told}, and the learnable potential takes the rising "
        f"loss for something to learn: "
        "set mixture.max_passes (versatune and expansion: mixture.heed_overfitting=true, too), or "
        "add records"
    )


def _swings(
    lines: Sequence[Line], names: Sequence[str], begun: Sequence[int], warn_passes: float
) -> str:
    told = _listing(
        f"{names[i]} (last {_percent(lines[-2], names[i])} → {_percent(lines[-1], names[i])})"
        for i in begun
    )
    calmer = (
        "raise mixture.smoothing"
        if lines[-1].get("feedback") == "train"
        else "measure on more records (data.max_validation)"
    )
    return (
        f"the share of {told} turned at each of the last {TURNS} adjustments: lower mixture.sigma "
        f"or mixture.delta, or {calmer}"
    )


def _passes(
    lines: Sequence[Line], names: Sequence[str], begun: Sequence[int], warn_passes: float
) -> str:
    told = _listing(f"{names[i]} ({lines[-1]['passes'][names[i]]:.1f} passes)" for i in begun)
    return (
        f"records repeat in {told}; beyond {warn_passes:g} passes they teach less than new ones: "
        "add records, lower training.epochs, or set mixture.max_passes"
    )


_SENTENCES = {
    "losses": _losses,
    "potential": _potential,
    "share": _share,
    "overfitting": _overfitting,
    "swings": _swings,
    "passes": _passes,
}


def _values(line: Line, key: str, names: Sequence[str]) -> FloatArray:
    """One number per domain, [k]; NaN, which no comparison holds for, where it is not known."""
    values = line.get(key) or {}
    return np.array(
        [np.nan if values.get(name) is None else values[name] for name in names], dtype=np.float64
    )


def _percent(line: Line, name: str) -> str:
    return f"{100 * line['share'][name]:.3g} %"


def _listing(told: Iterable[str], limit: int = 6) -> str:
    items = list(told)
    if len(items) > limit:
        items = [*items[: limit - 1], f"{len(items) - limit + 1} more"]
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))
