"""Detected shares: one model or many side by side, the judge, and what the models wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from versatune_ray.report.charts import Figure, Mark, Row, Rows
from versatune_ray.report.doubts import judges
from versatune_ray.report.generations import Examples, Generation
from versatune_ray.report.read import RunData
from versatune_ray.report.tables import Cell, Given, Table, domain_cell, table
from versatune_ray.report.writing import (
    count,
    interval,
    listing,
    percent,
    points,
    short,
    within,
)
from versatune_ray.runs.artefacts import Detection, Estimate, JudgeQuality


def models(run: RunData) -> list[dict[str, Any]]:
    """Of each model: its chart, a gist, and the generations that are shown."""
    pairs = zip(run.detections, run.examples, strict=True)
    return [_model(run, one, shown, number) for number, (one, shown) in enumerate(pairs)]


def _model(run: RunData, one: Detection, shown: Examples, number: int) -> dict[str, Any]:
    gist = [f"{count(one.samples)} generations"] if one.samples else []
    if one.domains:
        share, name = max(zip(one.start.share, one.domains, strict=True))
        gist.append(f"most {short(name)}, {percent(share)}")
    kept = groupby(shown.kept, key=lambda item: item.domain)
    lost = groupby(shown.discarded, key=lambda item: item.reason)
    reasons = one.discarded.reasons if one.discarded else {}
    return {
        "name": one.called,
        "gist": " · ".join(gist),
        "found": one,
        "figure": detected(run, one, number),
        "problem": shown.problem,
        "kept": [
            (domain_cell(run, name), [_example(run, item) for item in items])
            for name, items in kept
        ],
        "lost": [(reason, reasons.get(reason), list(items)) for reason, items in lost],
    }


def _example(run: RunData, item: Generation) -> dict[str, Any]:
    likely = [(name, part) for name, part in item.probabilities if part >= 0.005]
    shown = likely[:3] or item.probabilities[:1]
    strip = [(run.index(name), part) for name, part in likely]
    judged = " · ".join(f"{name} {percent(part, 0)}" for name, part in shown)
    return {"item": item, "judged": judged, "strip": strip}


def detected(run: RunData, one: Detection, number: int) -> Figure:
    """Bars with 95 % intervals, corrected ones beside them, the repeats as dots, and the known and
    the published distribution.
    """
    estimates = {"as judged" if one.amended else "detected": one.raw}
    estimates |= {"corrected": one.amended} if one.amended else {}
    repeats = [repeat for repeat in one.repeats or () if repeat is not None]
    dots: list[tuple[str, str, str, Sequence[float | None]]]
    dots = [("dot", "single repeats", "muted", repeat) for repeat in repeats if len(repeats) > 1]
    if one.published:
        whose = f"published for {short(one.published.model)}"
        dots.append(("square", whose, "text", one.published.share))
    if one.known:
        dots.append(("diamond", "known pre-training mixture", "text", one.known))
    own = len(estimates) if len(dots) > 1 else 0  # the lane of the dots
    rows = []
    for k in sorted(range(len(one.domains)), key=lambda k: -one.share[k]):
        colour, marks = f"d{run.index(one.domains[k])}", list[Mark]()
        for lane, (name, found) in enumerate(estimates.items()):
            kind, share, (low, high) = "pale", found.share[k], found.ci95[k]
            kind = "bar" if found == one.start else "pale"
            marks.append(Mark(kind, 0.0, share, colour, name, percent(share, 2), lane))
            if low is not None and high is not None:
                text = interval(low, high)
                marks.append(Mark("interval", low, high, "text", name, text, lane))
        marks += [
            Mark(kind, at, at, tone, name, percent(at, 2), own)
            for kind, name, tone, shares in dots
            if (at := shares[k]) is not None
        ]
        rows.append(Row(short(one.domains[k]), marks, percent(one.start.share[k]), colour))
    drawn = Rows(rows, "share of generations")
    full, *pale = sorted(estimates, key=lambda name: estimates[name] != one.start)
    tables = [drawn.numbers("Detected shares, with 95 % intervals", "Domain")]
    title, facts = "What the base model writes about", {"full": full, "pale": "".join(pale)}
    return Figure(f"detected-{number}", title, [("", drawn)], tables, facts)


def compared(run: RunData) -> Table | None:
    """A row per model, shaded by share, with what is published or known below it."""
    if len(run.detections) < 2:
        return None
    names = [name for name in run.domains if any(name in one.domains for one in run.detections)]
    far = any(one.published or one.known for one in run.detections)
    rows: list[list[Given]] = []
    for one in run.detections:
        places = [one.domains.index(name) if name in one.domains else None for name in names]
        lost = one.discarded.total if one.discarded else None
        part = percent(lost / one.samples) if lost is not None and one.samples else ""
        cells = [None if k is None else _share(one.start, k) for k in places]
        rows.append([one.called, one.samples, *cells, Cell(count(lost), part), *[""] * far])
        for told, values in _asides(one):
            shares = [points(None if k is None else values[k]) for k in places]
            pairs = zip(one.start.share, values, strict=True)
            away = points(sum(abs(a - b) for a, b in pairs) / 2)
            rows.append([Cell(text, tone="aside") for text in (told, "", *shares, "", away)])
    caption = "Shares per model in percent, ± half of the 95 % interval"
    if any(one.used == "corrected" for one in run.detections):
        caption += "; corrected where asked for"
    domains = [short(name, 24) for name in names]
    head = ("Model", "generations", *domains, "discarded", *["total variation"] * far)
    return table(caption, head, rows)


def _share(found: Estimate, place: int) -> Cell:
    share = found.share[place]
    return Cell(points(share), within(found.half_width(place)), heat=share)


def _asides(one: Detection) -> Iterator[tuple[str, Sequence[float]]]:
    """What a model's own shares are compared with."""
    if one.published:
        yield f"published for {one.published.model}", one.published.share
    if one.known:
        yield "known mixture", one.known


def judge_sections(run: RunData) -> list[dict[str, Any]]:
    """How good each judge is, and of which models."""
    return [
        {
            "models": listing([short(one.called) for one in group]),
            "table": _quality(run, group[0].domains, quality),
            "quality": quality,
            "records": sum(quality.records),
        }
        for group, quality in judges(run.detections)
    ]


def _quality(run: RunData, domains: Sequence[str], quality: JudgeQuality) -> Table | None:
    """Mean probability of every domain (columns) on records of every domain (rows)."""
    recall, rows = quality.recall, list[list[Given]]()
    for k, name in enumerate(domains):
        shaded = [Cell(percent(value, 0), heat=value) for value in quality.confusion[k]]
        right = [percent(recall[k], 0)] if recall else []
        rows.append([domain_cell(run, name), *shaded, *right, quality.records[k]])
    names = [short(name, 24) for name in domains]
    head = ("True domain", *names, *["right"] * bool(recall), "records")
    groups = (("", 1), ("judged as", len(domains)), ("", 2 if recall else 1))
    return table("The judge on records whose domain is known", head, rows, groups=groups)
