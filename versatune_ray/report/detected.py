"""Detected shares: one model or many side by side, the judge, and what the models wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from versatune_ray.report.charts import Figure, Row, Rows
from versatune_ray.report.doubts import judges
from versatune_ray.report.generations import Generation
from versatune_ray.report.read import RunData
from versatune_ray.report.tables import Cell, Given, Table, domain_cell, table
from versatune_ray.report.writing import count, decimal, interval, listing, percent, short
from versatune_ray.runs.artefacts import Detection, Estimate, JudgeQuality


def models(run: RunData) -> list[dict[str, Any]]:
    """Of each model: its chart, a gist, and the generations that are shown."""
    made = []
    for number, (one, shown) in enumerate(zip(run.detections, run.examples, strict=True)):
        top = max(range(len(one.domains)), key=lambda k: one.start.share[k], default=None)
        gist = [f"{count(one.samples)} generations"] if one.samples else []
        if top is not None:
            gist.append(f"most {short(one.domains[top])}, {percent(one.start.share[top])}")
        kept = groupby(shown.kept, key=lambda item: item.domain)
        lost = groupby(shown.discarded, key=lambda item: item.reason)
        reasons = one.discarded.reasons if one.discarded else {}
        about = {"name": one.called, "gist": " · ".join(gist), "found": one}
        about |= {"figure": detected(run, one, number), "problem": shown.problem}
        about["kept"] = [
            (domain_cell(run, name), [_example(run, item) for item in items])
            for name, items in kept
        ]
        about["lost"] = [(reason, reasons.get(reason), list(items)) for reason, items in lost]
        made.append(about)
    return made


def detected(run: RunData, one: Detection, number: int) -> Figure:
    """Bars with 95 % intervals, corrected ones beside them, the repeats as dots, and the known and
    the published distribution.
    """
    order = sorted(range(len(one.domains)), key=lambda k: -one.share[k])
    estimates = [("as judged" if one.amended else "detected", one.raw)]
    estimates += [("corrected", one.amended)] if one.amended else []
    repeats = [repeat for repeat in one.repeats or () if repeat is not None]
    repeats = repeats if len(repeats) > 1 else []
    rows = []
    for k in order:
        colour, marks = f"d{run.index(one.domains[k])}", []
        for lane, (name, found) in enumerate(estimates):
            share, (low, high) = found.share[k], found.ci95[k]
            kind = "bar" if found == one.start else "pale"
            marks.append((kind, 0.0, share, colour, f"{name}: {percent(share, 2)}", lane))
            if low is not None and high is not None:
                marks.append(("interval", low, high, "text", f"95 %: {interval(low, high)}", lane))
        dots = [("dot", repeat[k], "muted", "repeat") for repeat in repeats]
        dots += [("square", one.published.share[k], "text", "published")] if one.published else []
        dots += [("diamond", one.known[k], "text", "known")] if one.known else []
        lane = len(estimates) if repeats or len(dots) > 1 else 0
        marks += [
            (kind, at, at, tone, f"{what}: {percent(at, 2)}", lane)
            for kind, at, tone, what in dots
            if at is not None
        ]
        rows.append(Row(short(one.domains[k]), marks, percent(one.start.share[k]), colour))
    pale = next((name for name, found in estimates if found != one.start), "")
    full = next(name for name, found in estimates if found == one.start)
    key = [("muted", "bar", full, "")] + [("muted", "pale", pale, "")] * bool(pale)
    key += [("muted", "dot", "single repeats", "")] * bool(repeats)
    if one.published:
        key.append(("text", "square", f"published for {short(one.published.model)}", ""))
    key += [("text", "diamond", "known pre-training mixture", "")] * bool(one.known)
    columns = [*estimates]
    columns += [("published", Estimate(one.published.share, ()))] if one.published else []
    columns += [("known", Estimate(one.known, ()))] if one.known else []
    numbers = []
    for k in order:
        cells = [domain_cell(run, one.domains[k])]
        for _, found in columns:
            bounds = interval(*found.ci95[k]) if found.ci95 else ""
            cells.append(Cell(percent(found.share[k], 2), "" if bounds == "–" else bounds))
        numbers.append(cells)
    head = ("Domain", *(name for name, _ in columns))
    tables = [table("Detected shares, with 95 % intervals", head, numbers)]
    views = [("", Rows(rows, "share of generations"))]
    facts = {"full": full, "pale": pale}
    title = "What the base model writes about"
    return Figure(f"detected-{number}", title, views, tables, key if len(key) > 1 else (), facts)


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
        row = [Cell(one.called), count(one.samples), *cells, Cell(count(lost), part)]
        rows.append([*row, *[""] * far])
        for told, values in _asides(one):
            shares = [None if k is None else decimal(100 * values[k], 1) for k in places]
            pairs = zip(one.start.share, values, strict=True)
            away = decimal(100 * sum(abs(a - b) for a, b in pairs) / 2, 1)
            line = (told, "", *shares, "", away)
            rows.append([Cell(text if text is not None else "–", tone="aside") for text in line])
    amended = any(one.used == "corrected" for one in run.detections)
    caption = "Shares per model in percent, ± half of the 95 % interval"
    caption += "; corrected where asked for" * amended
    domains = [short(name, 24) for name in names]
    head = ("Model", "generations", *domains, "discarded", *["total variation"] * far)
    return table(caption, head, rows)


def _share(found: Estimate, place: int) -> Cell:
    half, share = found.half_width(place), found.share[place]
    note = f"± {100 * half:.1f}" if half is not None else ""
    return Cell(decimal(100 * share, 1), note, heat=share)


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
        rows.append([domain_cell(run, name), *shaded, *right, count(quality.records[k])])
    names = [short(name, 24) for name in domains]
    head = ("True domain", *names, *["right"] * bool(recall), "records")
    groups = (("", 1), ("judged as", len(domains)), ("", 2 if recall else 1))
    return table("The judge on records whose domain is known", head, rows, groups=groups)


def _example(run: RunData, item: Generation) -> dict[str, Any]:
    likely = [(name, part) for name, part in item.probabilities if part >= 0.005]
    shown = likely[:3] or item.probabilities[:1]
    strip = [(run.index(name), f"{100 * part:.2f}") for name, part in likely]
    judged = " · ".join(f"{name} {percent(part, 0)}" for name, part in shown)
    return {"item": item, "judged": judged, "strip": strip}
