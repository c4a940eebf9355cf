"""Several models side by side: one stacked bar each, what is published or known below it, and the
same numbers as a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from versatune_ray.report.data import RunData
from versatune_ray.report.detections import Detection, Estimate, distance
from versatune_ray.report.figures import Figure
from versatune_ray.report.tables import Cell, Table
from versatune_ray.report.traces import Trace, domain_index, label
from versatune_ray.report.writing import count, decimal, interval, listing, percent, short

# Heights in pixels; the vertical axis counts them, so that a chart of two models and one of twenty
# look alike.
_NAME, _BAR, _LANE, _ASIDE, _GAP, _AXIS = 22, 20, 4, 9, 20, 70


def comparison(run: RunData) -> Figure | None:
    """Stacked bars of all models, where there are several."""
    if len(run.detections) < 2:
        return None
    places, height = _places(run.detections)
    domains = compared_domains(run)
    kinds = (
        ["start"]
        if not any(detection.amended for detection in run.detections)
        else ["start", "other"]
    )
    traces = [
        trace
        for kind in kinds
        for name in domains
        for trace in _model_traces(run, name, kind, places)
    ]
    for kind, look in (
        ("published", {"pattern": {"shape": "/", "size": 5, "solidity": 0.45}}),
        ("known", {"opacity": 0.5}),
    ):
        traces += [
            trace for name in domains if (trace := _aside_trace(run, name, kind, look, places))
        ]
    reach = max(
        [
            1.0,
            *(
                max(point for point in trace["x"] if point is not None)
                for trace in traces
                if trace["type"] == "scatter"
            ),
        ]
    )
    layout: dict[str, Any] = {
        "xaxis": {
            "range": [0, reach * 1.005],
            "tickvals": [0, 0.2, 0.4, 0.6, 0.8, 1],
            "tickformat": "~%",
            "automargin": True,
            "zeroline": False,
        },
        "yaxis": {"range": [height, 0], "visible": False, "fixedrange": True},
        "margin": {"l": 2, "r": 2, "t": 30, "b": 8},
        "barmode": "overlay",
        "hovermode": "closest",
        "showlegend": False,
        "annotations": [
            {
                "text": label(detection.called, 38),
                "x": 0,
                "y": place + _NAME / 2,
                "xanchor": "left",
                "yanchor": "middle",
                "showarrow": False,
            }
            for detection, place in zip(run.detections, places, strict=True)
        ],
        "uirevision": "kept",
    }
    views = []
    if len(kinds) > 1:
        corrected = any(detection.used == "corrected" for detection in run.detections)
        names = ("Corrected", "As judged") if corrected else ("As judged", "Corrected")
        views = [
            {"label": name, "show": [kind, "published", "known"]}
            for name, kind in zip(names, kinds, strict=True)
        ]
    shown = {trace["meta"]["set"] for trace in traces}
    whiskers = any(trace["type"] == "scatter" for trace in traces)
    sentence = (
        "Each bar is one model: its segments are the shares of the domains in what it writes."
    )
    sentence += (
        " The whisker below the right end of a segment is the 95 % interval of that segment’s own "
        "length."
        if whiskers
        else ""
    )
    sentence += (
        " Hatched bars are what the paper’s code published for the model."
        if "published" in shown
        else ""
    )
    sentence += (
        " Pale bars are the mixture that it was really pre-trained on." if "known" in shown else ""
    )
    if views:
        lacking = [
            short(detection.called) for detection in run.detections if detection.amended is None
        ]
        sentence += f" Training starts from “{views[0]['label']}”"
        sentence += (
            f"; without a correction, and the same in both: {listing(lacking)}." if lacking else "."
        )
    key: list[tuple[int | None, str, str]] = [
        (domain_index(run, name), "", name) for name in domains
    ]
    signs = {"published": (None, "hatched", "published"), "known": (None, "pale", "known")}
    key += [sign for kind, sign in signs.items() if kind in shown]
    return Figure(
        "comparison",
        "All models",
        sentence,
        traces,
        layout,
        views,
        (),
        height + _AXIS,
        key=tuple(key),
    )


def comparison_table(run: RunData) -> Table | None:
    """One row per model, with what is published or known below it."""
    if len(run.detections) < 2:
        return None
    domains = compared_domains(run)
    corrected = any(detection.used == "corrected" for detection in run.detections)
    far = any(detection.published or detection.known for detection in run.detections)
    rows = []
    for detection in run.detections:
        lost = detection.discarded
        places = [
            detection.domains.index(name) if name in detection.domains else None for name in domains
        ]
        cells = [Cell("–") if place is None else _share(detection.start, place) for place in places]
        part = percent(lost.total / detection.samples) if lost and detection.samples else ""
        rows.append(
            (
                Cell(detection.called),
                Cell(count(detection.samples)),
                *cells,
                Cell(count(lost.total if lost else None), part),
            )
        )
        rows[-1] += (Cell(""),) * far
        for _, name, values in _asides(detection):
            shares = [
                Cell("–" if place is None else decimal(100 * values[place], 1), tone="aside")
                for place in places
            ]
            away = Cell(decimal(100 * distance(detection.start.share, values), 1), tone="aside")
            rows.append(
                (
                    Cell(name, tone="aside"),
                    Cell("", tone="aside"),
                    *shares,
                    Cell("", tone="aside"),
                    away,
                )
            )
    head = (
        "Model",
        "generations",
        *(short(name, 24) for name in domains),
        "discarded",
        *(["total variation"] if far else []),
    )
    caption = "Shares per model in percent, ± half of the 95 % interval" + (
        "; corrected where asked for" if corrected else ""
    )
    return Table(caption, head, tuple(rows))


def compared_domains(run: RunData) -> list[str]:
    """The domains of any detection, in the order of the page."""
    there = {name for detection in run.detections for name in detection.domains}
    return [name for name in run.domains if name in there]


def _share(found: Estimate, place: int) -> Cell:
    half = found.half_width(place)
    return Cell(
        decimal(100 * found.share[place], 1), f"± {100 * half:.1f}" if half is not None else ""
    )


def _asides(detection: Detection) -> list[tuple[str, str, Sequence[float]]]:
    """What a model's own bar is compared with: kind, words for it, shares."""
    found: list[tuple[str, str, Sequence[float]]] = []
    if detection.published:
        found.append(
            ("published", f"published for {detection.published.model}", detection.published.share)
        )
    return found + ([("known", "known mixture", detection.known)] if detection.known else [])


def _places(detections: Sequence[Detection]) -> tuple[list[int], int]:
    """Where each model begins, and where the last one ends."""
    places, end = [], 0
    for detection in detections:
        places.append(end)
        end += _NAME + _BAR + 3 * _LANE + (_ASIDE + 4) * len(_asides(detection)) + _GAP
    return places, end


def _model_traces(run: RunData, name: str, kind: str, places: list[int]) -> list[Trace]:
    """The segments of one domain in all models' bars, and their whiskers."""
    meta = {"domain": domain_index(run, name), "set": kind}
    segments: list[tuple[float, float, float, str]] = []
    whiskers: list[tuple[float, float, float]] = []
    lane = compared_domains(run).index(name) % 2
    for detection, place in zip(run.detections, places, strict=True):
        found = detection.start if kind == "start" else _other(detection)
        if name not in detection.domains:
            continue
        index = detection.domains.index(name)
        begin, share = _begin(run, detection.domains, found.share, name), found.share[index]
        low, high = found.ci95[index]
        told = f"{label(detection.called)}: {label(name)} {percent(share)}"
        segments.append(
            (
                begin,
                share,
                place + _NAME + _BAR / 2,
                told + (f" (95 %: {interval(low, high)})" if low is not None else ""),
            )
        )
        if low is not None and high is not None:
            whiskers.append(
                (begin + low, begin + high, place + _NAME + _BAR + (1.25 + lane) * _LANE)
            )
    traces = [_bar(segments, _BAR, meta)] if segments else []
    if whiskers:
        x = [point for low, high, _ in whiskers for point in (low, high, None)]
        y = [point for _, _, at in whiskers for point in (at, at, None)]
        line = {"width": 2}
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": x,
                "y": y,
                "line": line,
                "hoverinfo": "skip",
                "showlegend": False,
                "meta": meta,
            }
        )
    return traces


def _aside_trace(
    run: RunData, name: str, kind: str, look: dict[str, Any], places: list[int]
) -> Trace | None:
    """One domain's segments of the published or known distributions."""
    segments = []
    for detection, place in zip(run.detections, places, strict=True):
        below = place + _NAME + _BAR + 3 * _LANE
        for row, (which, told, values) in enumerate(_asides(detection)):
            if which == kind and name in detection.domains:
                share = values[detection.domains.index(name)]
                at = below + row * (_ASIDE + 4) + _ASIDE / 2
                segments.append(
                    (
                        _begin(run, detection.domains, values, name),
                        share,
                        at,
                        f"{label(told)}: {label(name)} {percent(share)}",
                    )
                )
    if not segments:
        return None
    trace = _bar(segments, _ASIDE, {"domain": domain_index(run, name), "set": kind})
    return trace | {"marker": look}


def _bar(
    segments: list[tuple[float, float, float, str]], width: float, meta: dict[str, Any]
) -> Trace:
    return {
        "type": "bar",
        "orientation": "h",
        "base": [begin for begin, _, _, _ in segments],
        "x": [share for _, share, _, _ in segments],
        "y": [at for _, _, at, _ in segments],
        "width": width,
        "hovertext": [told for _, _, _, told in segments],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "showlegend": False,
        "meta": meta | {"edge": True},
    }


def _begin(run: RunData, domains: Sequence[str], share: Sequence[float], name: str) -> float:
    """Where the segment of ``name`` begins: after the shares of the domains before it."""
    before = run.domains[: run.domains.index(name)]
    return sum(value for other, value in zip(domains, share, strict=True) if other in before)


def _other(detection: Detection) -> Estimate:
    """The estimate that does not start training."""
    return detection.raw if detection.used == "corrected" else detection.amended or detection.raw
