"""What came of a run, in words: what got better and what worse, by more than what chance does. Read
off the files that it left, and pure otherwise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# A loss of one training has no error of its own: a change of less is called none.
_LOSS = 0.01
_NAMED = 6  # domains of a kind that are named
Change = tuple[str, int, str]  # what; 1 better, -1 worse, 0 neither; by how much
Row = Mapping[str, Any]


def verdict(folder: Path, job: str) -> list[str]:
    """Sentences on what ``job`` found in the run in ``folder``; none where it measured nothing."""
    finder = {
        "detect": _detected,
        "reference": _ceilings,
        "sweep": _best,
        "cofitune": _best,
        "study": _compared,
        "replay": _replayed,
    }.get(job, _tuned)
    return list(finder(folder))


def changes(rows: Sequence[Row]) -> dict[str, list[Change]]:
    """Base → tuned by measure, of rows as in ``evaluation/results.json``. A score moves where it
    does by more than two standard errors of the difference (taken as independent, which is
    cautious).
    """
    found: dict[str, list[Change]] = {}
    tuned = {_of(row): row for row in rows if row["model"] == "tuned"}
    for before in rows:
        after = tuned.get(_of(before)) if before["model"] == "base" else None
        if after is None:
            continue
        old, new = before["value"], after["value"]
        if before["metric"] == "loss":
            found.setdefault("held-out loss", []).append(_fallen(before["domain"], old, new))
            continue
        errors = [row["standard_error"] for row in (before, after)]
        clear = None not in errors and abs(new - old) > 2 * math.hypot(*errors)
        own = before["benchmark"] == "questions"
        found.setdefault("right answers" if own else "benchmarks", []).append(
            (
                before["domain"] if own else f"{before['domain']}/{before['benchmark']}",
                (1 if new > old else -1) if clear else 0,
                f"{100 * (new - old):+.0f} points".replace("-", "−"),
            )
        )
    return found


def told(measure: str, listed: Sequence[Change]) -> str:
    """One line: ``held-out loss: better in law (−34 %); worse in code (+3 %)``."""
    sides = [
        (words, [f"{what} ({much})" for what, side, much in listed if side == sign])
        for sign, words in ((1, "better in "), (-1, "worse in "))
    ]
    parts = [words + _listed(some) for words, some in sides if some]
    same = [what for what, side, _ in listed if not side]
    if same:
        why = f"within {_LOSS:.0%}" if measure == "held-out loss" else "within their errors"
        parts.append(f"{'all' if len(same) == len(listed) else _listed(same)} as before, {why}")
    return f"{measure}: {'; '.join(parts)}"


def _tuned(folder: Path) -> Iterator[str]:
    rows = (_read(folder / "evaluation" / "results.json") or {"results": []})["results"]
    found = changes(rows)
    if "held-out loss" not in found and (lines := _adjustments(folder)):
        first, last = lines[0]["loss"], lines[-1]["loss"]
        losses = [_fallen(name, first[name], last[name]) for name in first if name in last]
        found = {"held-out loss": losses} | found
    yield from (told(measure, listed) for measure, listed in found.items())


def _detected(folder: Path) -> Iterator[str]:
    files = sorted((folder / "detection").glob("*/distribution.json"))
    for file in files[:_NAMED]:
        one = _read(file)
        used = one["corrected"] if one.get("used") == "corrected" else one
        ranked = sorted(
            zip(used["share"], one["domains"], strict=True), key=lambda found: -found[0]
        )
        (most, top), (least, low) = ranked[0], ranked[-1]
        yield f"{file.parent.name} knows most of {top} ({most:.0%}), least of {low} ({least:.0%})"


def _ceilings(folder: Path) -> Iterator[str]:
    found = _read(folder / "reference" / "losses.json")
    for name, one in (found or {"domains": {}})["domains"].items():
        if one.get("curve"):
            before = one["curve"][0]["held_out"]
            less = 1 - one["loss"] / before if before else 0.0
            much = f"up to {less:.0%} of its loss can go" if less > 0 else "nothing left to learn"
            yield f"{name}: {much} ({before:.3f} → {one['loss']:.3f})"


def _best(folder: Path) -> Iterator[str]:
    front = _read(folder / "sweep" / "pareto.json")
    if front:
        keys = [key for key in front[0] if "." in key]
        best = max(front, key=lambda one: one.get("score", -math.inf))
        settings = ", ".join(f"{key}={best[key]}" for key in keys)
        yield f"best: {settings or best['trial']}; {len(front)} trial(s) that no other beats"


def _compared(folder: Path) -> Iterator[str]:
    for table in (_read(folder / "study" / "tables.json") or [])[:1]:
        among = {name: one for name, one in table["differences"].items() if one is not None}
        if all(math.isnan(one["half_width"]) for one in among.values()):
            yield f"{table['title']}: one seed gives no intervals; study.seeds=[0,1,2] does"
            return
        for words, sign in (("below", -1), ("above", 1)):
            clear = [
                f"{name} ({one['mean']:+.{table['digits']}f})".replace("-", "−", 1)
                for name, one in among.items()
                if one["holm"] < 0.05 and one["mean"] * sign > 0
            ]
            if clear:
                yield f"{table['title']}: {words} {table['baseline']}, clearly: {_listed(clear)}"
        rest = [name for name, one in among.items() if not one["holm"] < 0.05]
        if rest:
            yield f"not told apart from {table['baseline']}: {_listed(rest)}"


def _replayed(folder: Path) -> Iterator[str]:
    if found := _read(folder / "replay" / "trajectories.json"):
        yield (
            f"{len(found['shares']) - 1} other setting(s) on recorded losses; what training under "
            f"their shares would measure, a sweep tells"
        )


def _fallen(name: str, before: float, after: float) -> Change:
    change = after / before - 1 if before > 0 else 0.0
    side = 0 if abs(change) < _LOSS else 1 if change < 0 else -1
    return name, side, f"{100 * change:+.0f} %".replace("-", "−")


def _of(row: Row) -> tuple[str, str, str]:
    return row["domain"], row["benchmark"], row["metric"]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _adjustments(folder: Path) -> list[dict[str, Any]]:
    file = folder / "finetune" / "adjustments.jsonl"
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
