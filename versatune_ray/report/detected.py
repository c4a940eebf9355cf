"""What the page says of the detection of one model: its figure, the facts about it, the judge's
quality, and examples.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

from versatune_ray.report.data import RunData
from versatune_ray.report.detections import Detection, Estimate
from versatune_ray.report.figures import Figure
from versatune_ray.report.generations import Generation
from versatune_ray.report.judge_quality import positions
from versatune_ray.report.tables import Cell, Table, domain_cell
from versatune_ray.report.traces import Trace, bare_layout, domain_index, dots
from versatune_ray.report.writing import (
    count,
    decimal,
    interval,
    percent,
    short,
    significant,
)

_WORDS = {"raw": "as judged", "corrected": "corrected"}


def model_section(run: RunData, detection: Detection, number: int) -> dict[str, Any]:
    """Everything that the template shows of one model."""
    top = max(
        range(len(detection.domains)), key=lambda index: detection.start.share[index], default=None
    )
    gist = [f"{count(detection.samples)} generations"] if detection.samples else []
    gist += (
        [f"most {short(detection.domains[top])}, {percent(detection.start.share[top])}"]
        if top is not None
        else []
    )
    return {
        "name": detection.called,
        "gist": " · ".join(gist),
        "figure": detected_shares(run, detection, number),
        "facts": facts(detection),
        "positions": positions(detection),
        "examples": [
            (domain_cell(run, domain), [_example(run, item) for item in items])
            for domain, items in groupby(detection.kept_examples, key=lambda item: item.domain)
        ],
        "discarded": [
            (
                reason,
                detection.discarded.reasons.get(reason) if detection.discarded else None,
                list(items),
            )
            for reason, items in groupby(detection.discarded_examples, key=lambda item: item.reason)
        ],
        "problem": detection.problem,
    }


def detected_shares(run: RunData, detection: Detection, number: int) -> Figure:
    """Bars with 95 % intervals, corrected ones beside them, the repeats as dots, and the known and
    the published distribution.
    """
    order = sorted(range(len(detection.domains)), key=lambda index: detection.share[index])
    amended = detection.amended
    traces = [_bars(run, detection, order, "raw", detection.raw, 0.2 if amended else 0.0)]
    key: list[tuple[int | None, str, str]] = [
        (None, "pale" if amended and detection.used == "corrected" else "full", traces[0]["name"])
    ]
    if amended:
        traces.append(_bars(run, detection, order, "corrected", amended, -0.2))
        key.append((None, "full" if detection.used == "corrected" else "pale", "corrected"))
    repeats = detection.repeats if detection.repeats and len(detection.repeats) > 1 else []
    if repeats:
        away = 0.44 if amended else -0.42
        points = [
            (repeat[index], place + away)
            for repeat in repeats
            for place, index in enumerate(order)
            if index < len(repeat)
        ]
        traces.append(
            dots("single repeats", points, "repeat", {"symbol": "circle", "size": 6}, "muted")
        )
        key.append((None, "dot", "single repeats"))
    if detection.published:
        points = [(detection.published.share[index], place) for place, index in enumerate(order)]
        marker = {"symbol": "square-open", "size": 9, "line": {"width": 2}}
        traces.append(dots("published", points, "published", marker, "text"))
        key.append((None, "square", f"published for {detection.published.model}"))
    if detection.known:
        points = [(detection.known[index], place) for place, index in enumerate(order)]
        traces.append(
            dots(
                "known pre-training mixture",
                points,
                "known",
                {"symbol": "diamond", "size": 10},
                "text",
            )
        )
        key.append((None, "diamond", "known pre-training mixture"))
    layout = bare_layout(ticks=[detection.domains[index] for index in order])
    layout["xaxis"] |= {
        "tickformat": "~%",
        "rangemode": "tozero",
        "title": {"text": "share of generations"},
    }
    layout |= {"hovermode": "closest", "showlegend": False, "barmode": "overlay"}
    height = 100 + (46 if amended else 34) * len(order)
    table = _numbers(run, detection, order[::-1])
    sentence = _sentence(detection, bool(repeats))
    shown = tuple(key) if len(key) > 1 else ()
    return Figure(
        f"detected-{number}",
        "What the base model writes about",
        sentence,
        traces,
        layout,
        [],
        (table,),
        height,
        key=shown,
    )


def _bars(
    run: RunData, detection: Detection, order: list[int], kind: str, found: Estimate, away: float
) -> Trace:
    name = _WORDS[kind] if detection.amended else "detected"
    bars: Trace = {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": [place + away for place in range(len(order))],
        "x": [found.share[index] for index in order],
        "width": 0.38 if detection.amended else 0.65,
        "opacity": 1 if detection.amended is None or kind == detection.used else 0.5,
        "hovertemplate": f"%{{x:.2%}}<extra>{name}</extra>",
        "meta": {"domains": [domain_index(run, detection.domains[index]) for index in order]},
    }
    bounds = [(found.share[index], *found.ci95[index]) for index in order]
    if any(low is not None or high is not None for _, low, high in bounds):
        bars["error_x"] = {
            "type": "data",
            "symmetric": False,
            "array": [(share if high is None else high) - share for share, _, high in bounds],
            "arrayminus": [share - (share if low is None else low) for share, low, _ in bounds],
            "thickness": 1.5,
            "width": 5,
        }
    return bars


def _sentence(detection: Detection, repeats: bool) -> str:
    said = (
        "Each bar is a domain’s share of what the base model writes when nothing is asked of it; "
        "the whisker is the 95 % interval"
    )
    if detection.amended:
        pale = (
            "as judged"
            if detection.used == "corrected"
            else "corrected by the judge’s measured confusions"
        )
        full = (
            "corrected by the judge’s measured confusions"
            if detection.used == "corrected"
            else "as judged"
        )
        said = (
            f"Each domain has two bars: its share of what the base model writes when nothing is "
            f"asked of it, {full} (full colour; "
            f"training starts from these) and {pale} (pale); the whiskers are 95 % intervals"
        )
    said += ", and the dots beside the bars are the single repeats" * repeats
    marks = ["squares mark what the paper’s code published"] if detection.published else []
    marks += ["diamonds mark the mixture it was really pre-trained on"] if detection.known else []
    return "; ".join([said, *marks]) + "."


def _numbers(run: RunData, detection: Detection, order: list[int]) -> Table:
    columns = (
        [("detected", detection.raw)]
        if detection.amended is None
        else [("as judged", detection.raw), ("corrected", detection.amended)]
    )
    others = [
        ("known", detection.known),
        ("published", detection.published and detection.published.share),
    ]
    head = ["Domain"]
    for name, _ in columns:
        head += [name, "95 % interval"]
    head += [name for name, values in others if values]
    rows = []
    for index in order:
        cells = [domain_cell(run, detection.domains[index])]
        for _, found in columns:
            cells += [Cell(percent(found.share[index], 2)), Cell(interval(*found.ci95[index], 2))]
        cells += [Cell(percent(values[index], 2)) for _, values in others if values]
        rows.append(tuple(cells))
    return Table("Detected shares", tuple(head), tuple(rows))


def facts(detection: Detection) -> list[str]:
    """Plain sentences about how the shares came about and how far to trust them."""
    return [*_how_far(detection), *_how_made(detection), *_which_starts(detection)]


def _how_far(detection: Detection) -> list[str]:
    if detection.total_variation is None or detection.known is None:
        return []
    said = (
        f"Total variation between detected and known mixture: "
        f"{percent(detection.total_variation, 2)} "
    )
    said += (
        "(half the sum of absolute differences: the share that would have to move to make them "
        "equal)"
    )
    if detection.corrected and detection.corrected.total_variation is not None:
        said += f"; after the correction {percent(detection.corrected.total_variation, 2)}"
    return [said + "."]


def _how_made(detection: Detection) -> list[str]:
    said = []
    if detection.samples is not None:
        repeats = f" in {len(detection.repeats)} repeats" if detection.repeats else ""
        tokens = f", {count(detection.tokens)} tokens" if detection.tokens is not None else ""
        said.append(
            f"{count(detection.samples)} generations{repeats}{tokens}"
            + (f", judged by {detection.judge}." if detection.judge else ".")
        )
    if detection.tolerance:
        said.append(_tolerance(detection))
    if detection.repeats_differ is not None:
        alarming = detection.repeats_differ < 0.001
        p = "p < 0.001" if alarming else f"p = {significant(detection.repeats_differ, 2)}"
        how = "differ more than chance allows" if alarming else "agree as far as chance lets them"
        said.append(f"The repeats {how} ({p}).")
    if detection.generations:
        said.append(_written(detection))
    if detection.discarded is not None:
        reasons = ", ".join(
            f"{reason}: {count(n)}" for reason, n in detection.discarded.reasons.items()
        )
        said.append(
            f"{count(detection.discarded.total)} generations were discarded"
            + (f" ({reasons})." if reasons else ".")
        )
    return said


def _tolerance(detection: Detection) -> str:
    found = detection.tolerance
    assert found
    rounds = (
        f" after {count(found.rounds)} round{'' if found.rounds == 1 else 's'} of generating"
        if found.rounds is not None
        else ""
    )
    said = f"The widest 95 % interval reaches ± {_points(found.reached)}{rounds}"
    if found.asked is None:
        return said + "; no tolerance was asked for."
    if found.reached is not None and found.reached > found.asked:
        return (
            said + f"; ± {_points(found.asked)} were asked for and not reached "
            f"with at most {count(found.cap)} generations."
        )
    return said + f"; ± {_points(found.asked)} were asked for."


def _written(detection: Detection) -> str:
    found = detection.generations
    assert found
    kept = "left out of the shares" if found.degenerate_excluded else "counted in the shares"
    parts = [f"{count(found.empty)} empty"] if found.empty is not None else []
    parts += (
        [f"{count(found.degenerate)} of few tokens repeated ({kept})"]
        if found.degenerate is not None
        else []
    )
    parts += [f"{count(found.distinct)} different texts"] if found.distinct is not None else []
    return (
        f"Among the generations: {', '.join(parts)}."
        if parts
        else "The generations were not counted by kind."
    )


def _which_starts(detection: Detection) -> list[str]:
    if detection.corrected is None:
        return []
    if detection.amended is None:
        return [
            f"The shares could not be corrected by the judge’s confusions: "
            f"{detection.corrected.problem or 'no reason is given'}"
        ]
    return [
        f"Training starts from the "
        f"{'corrected shares' if detection.used == 'corrected' else 'shares as judged'}."
    ]


def _example(run: RunData, item: Generation) -> dict[str, Any]:
    shown = [
        (name, value) for name, value in item.probabilities[:3] if value >= 0.005
    ] or item.probabilities[:1]
    return {
        "id": item.id,
        "text": item.text,
        "tokens": item.tokens,
        "judged": " · ".join(f"{name} {percent(value, 0)}" for name, value in shown),
        "strip": [
            (run.domains.index(name), f"{100 * value:.2f}")
            for name, value in item.probabilities
            if value >= 0.005
        ],
    }


def _points(value: float | None) -> str:
    return f"{decimal(None if value is None else 100 * value, 2)} points"
