"""The charts: plain plotly specifications with a sentence each and the same numbers as tables.

Colours are not in here: a trace's ``meta`` names its domain (or a tone), and the page's script
looks the colour up in the style sheet, so that a chart follows light and dark. Names reach plotly
escaped, because plotly reads a little HTML in every label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from versatune_ray.report.data import RunData
from versatune_ray.report.tables import Cell, Table, domain_cell, series
from versatune_ray.report.traces import (
    MOST_LINES,
    Trace,
    Values,
    bare_layout,
    domain_index,
    label,
    lines_of,
    quiet_groups,
    thinned,
)
from versatune_ray.report.writing import decimal, percent, significant


@dataclass(frozen=True)
class Figure:
    """One chart. ``views`` are the alternatives a reader can switch between: which sets of traces
    show, and how; ``quiet`` are the legend groups that wait in the legend until a reader asks for
    them. ``key`` stands above a chart that has no legend of its own: domain or ``None``, how its
    sign looks, and what it means.
    """

    id: str
    title: str
    sentence: str
    traces: list[Trace]
    layout: dict[str, Any]
    views: list[dict[str, Any]] = field(default_factory=list)
    tables: tuple[Table, ...] = ()
    height: int = 420
    quiet: tuple[str, ...] = ()
    key: tuple[tuple[int | None, str, str], ...] = ()


def shares(run: RunData) -> Figure | None:
    """Requested shares as steps or stacked, with the shares really drawn laid over them."""
    requested = lines_of(
        run,
        lambda item: item.share,
        "requested",
        even=True,
        line={"shape": "hv", "width": 2},
        hover="%{y:.1%} requested",
    )
    if not requested:
        return None
    later: dict[str, Any] = {"even": True, "second": True, "line": {"shape": "vh", "width": 2}}
    samples = lines_of(
        run, lambda item: item.share_achieved, "samples", hover="%{y:.1%} of samples drawn", **later
    )
    tokens = lines_of(
        run,
        lambda item: item.token_share_achieved,
        "tokens",
        hover="%{y:.1%} of tokens drawn",
        **later,
    )
    views: list[dict[str, Any]] = [
        {"label": "Requested", "show": ["requested"]},
        {"label": "Stacked", "show": ["requested"], "stack": True},
    ]
    if samples:
        views.append(
            {"label": "Samples drawn", "show": ["requested", "samples"], "faint": ["requested"]}
        )
    if tokens:
        views.append(
            {"label": "Tokens drawn", "show": ["requested", "tokens"], "faint": ["requested"]}
        )
    layout = bare_layout(x="optimizer step", lines=len(requested))
    layout["yaxis"] |= {"tickformat": "~%", "rangemode": "tozero", "title": {"text": "share"}}
    asked = "tokens" if run.setting("mixture.unit") == "tokens" else "samples"
    sentence = (
        f"Each line is the share of training {asked} asked of one domain; it holds from one "
        f"adjustment to the next, "
        f"so a step up means more of that domain from there on."
    )
    if samples or tokens:
        sentence += (
            " The drawn shares are what training then really read; tokens differ from samples "
            "where records are longer or shorter."
        )
    tables = (
        series(run, f"Requested share of {asked}", lambda item: item.share, percent),
        series(
            run,
            "Share of samples drawn since the adjustment before",
            lambda item: item.share_achieved,
            percent,
        ),
        series(
            run,
            "Share of tokens drawn since the adjustment before",
            lambda item: item.token_share_achieved,
            percent,
        ),
    )
    traces = requested + samples + tokens
    return _of_lines(
        run, Figure("shares", "Shares over time", sentence, traces, layout, views, _present(tables))
    )


def losses(run: RunData) -> Figure | None:
    """Loss per domain with the reference loss as a dashed line."""
    by_training = run.setting("mixture.feedback") == "train"
    measured = lines_of(run, lambda item: item.loss, "loss", hover="%{y:.3f}")
    if not measured:
        return None
    reference = _reference_lines(run)
    training = lines_of(
        run,
        lambda item: item.train_loss,
        "training",
        second=True,
        line={"width": 1.5, "dash": "1px,3px"},
        hover="%{y:.3f} in training",
    )
    shown = ["loss", *(["reference"] if reference else [])]
    views = (
        [
            {"label": "Measured", "show": shown},
            {"label": "With training loss", "show": [*shown, "training"]},
        ]
        if training
        else []
    )
    kind = "training loss that steers the shares" if by_training else "loss on held-out records"
    layout = bare_layout(x="optimizer step", lines=len(measured))
    layout["yaxis"] |= {"title": {"text": f"loss ({run.unit})"}}
    sentence = f"Each line is a domain’s {kind}, lower is better."
    if reference:
        sentence += (
            " The dashed line of the same colour is the reference: the lowest loss a small model "
            "reached on that domain alone. "
            "What lies between the two can still be learned."
        )
    if training:
        sentence += " Dotted lines are the running training loss."
    tables = [series(run, f"Loss in {run.unit}", lambda item: item.loss, decimal)]
    if run.reference and run.reference.domains:
        rows = tuple(
            (
                domain_cell(run, name),
                Cell(decimal(item.loss)),
                Cell(significant(item.epoch)),
                Cell(" · ".join(decimal(point.held_out) for point in item.curve)),
            )
            for name, item in run.reference.domains.items()
        )
        head = (
            "Domain",
            f"loss ({run.reference.unit or run.unit})",
            "epoch",
            "held-out loss epoch by epoch",
        )
        tables.append(Table("Reference losses", head, rows))
    title = "Training loss per domain" if by_training else "Held-out loss per domain"
    return _of_lines(
        run,
        Figure(
            "losses",
            title,
            sentence,
            measured + reference + training,
            layout,
            views,
            _present(tables),
        ),
    )


def learnable_potential(run: RunData) -> Figure | None:
    """γ per domain."""
    sentence = (
        "Each line is the part of a domain’s loss that could still go: 0 % means the domain has "
        "reached its reference; "
        "the higher, the more it can gain, and the more its share is raised."
    )
    return _degree(
        run, "potential", "Learnable potential γ", sentence, lambda item: item.learnable_potential
    )


def forgetting_degree(run: RunData) -> Figure | None:
    """φ per domain."""
    sentence = (
        "Each line is how much a domain’s loss rose since the measurement before: 0 % means "
        "nothing was forgotten, "
        "a peak means that this domain got worse just then."
    )
    return _degree(
        run, "forgetting", "Forgetting degree φ", sentence, lambda item: item.forgetting_degree
    )


def passes(run: RunData) -> Figure | None:
    """How often each domain's records were gone through."""
    last = next((item for item in reversed(run.adjustments) if item.passes), None)
    if last is None or last.passes is None:
        return None
    names = [name for name in reversed(run.domains) if last.passes.get(name) is not None]
    trace: Trace = {
        "type": "bar",
        "orientation": "h",
        "name": "passes",
        "y": list(range(len(names))),
        "x": [last.passes[name] for name in names],
        "hovertemplate": "%{x:.2f} passes<extra></extra>",
        "meta": {"domains": [domain_index(run, name) for name in names]},
    }
    layout = bare_layout(ticks=names)
    layout["xaxis"] |= {
        "rangemode": "tozero",
        "title": {"text": "passes over the domain’s records"},
    }
    layout["hovermode"], layout["showlegend"] = "closest", False
    sentence = (
        f"Each bar is how many times training had gone through a domain’s records by step "
        f"{last.step:,}: "
        "below 1 some were never seen, far above 1 they repeat."
    )
    rows = tuple(
        (domain_cell(run, name), Cell(decimal(last.passes[name], 2))) for name in reversed(names)
    )
    table = Table("Passes per domain", ("Domain", "passes"), rows)
    return Figure(
        "passes",
        "Passes over each domain’s records",
        sentence,
        [trace],
        layout,
        [],
        (table,),
        90 + 30 * len(names),
    )


def _degree(run: RunData, name: str, title: str, sentence: str, values: Values) -> Figure | None:
    lines = lines_of(run, values, name, hover="%{y:.2%}")
    if not lines:
        return None
    layout = bare_layout(x="optimizer step", lines=len(lines))
    layout["yaxis"] |= {"tickformat": "~%", "rangemode": "tozero"}
    tables = _present([series(run, title, values, lambda value: percent(value, 2))])
    return _of_lines(run, Figure(name, title, sentence, lines, layout, [], tables))


def _of_lines(run: RunData, figure: Figure) -> Figure:
    """Where there are many lines, begin with those that move most; say so, and say when points were
    left out.
    """
    quiet = quiet_groups(figure.traces)
    said = thinned(run)
    if quiet:
        said += (
            f" At first the {MOST_LINES} domains that moved most are drawn; a click in the legend "
            f"adds any other."
        )
    return replace(figure, sentence=figure.sentence + said, quiet=quiet)


def _reference_lines(run: RunData) -> list[Trace]:
    if run.reference is None or not run.adjustments or (run.reference.unit or run.unit) != run.unit:
        return []
    ends = [run.adjustments[0].step, run.adjustments[-1].step]
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": f"{label(name)}, reference",
            "x": ends,
            "y": [run.reference.domains[name].loss] * 2,
            "line": {"width": 1.25, "dash": "6px,4px"},
            "legendgroup": f"d{index}",
            "showlegend": False,
            "hoverinfo": "skip",
            "meta": {"set": "reference", "domain": index},
        }
        for index, name in enumerate(run.domains)
        if name in run.reference.domains and run.reference.domains[name].loss is not None
    ]


def _present(tables: Sequence[Table | None]) -> tuple[Table, ...]:
    return tuple(table for table in tables if table is not None)
