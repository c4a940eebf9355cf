"""Write ``report.html``: one file that needs no network and trusts nothing it shows.

Every text comes from a model, a data set or a path, so Jinja escapes all of it; JSON inside
``<script>`` leaves out the characters that could end the script; and a content security policy lets
exactly the three scripts written here run and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable
from importlib import resources
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from versatune_ray.report import colours, figures, tables
from versatune_ray.report.benchmarks import benchmark_section
from versatune_ray.report.comparison import comparison, comparison_table
from versatune_ray.report.data import Answer, RunData
from versatune_ray.report.detected import model_section
from versatune_ray.report.doubts import judges, warnings
from versatune_ray.report.figures import Figure
from versatune_ray.report.generations import CHARACTERS, PER_DOMAIN, PER_REASON
from versatune_ray.report.guard import guard
from versatune_ray.report.judge_quality import judge_section
from versatune_ray.report.outcome import outcomes
from versatune_ray.report.replay import replayed
from versatune_ray.report.run_files import read_run
from versatune_ray.report.settings_table import settings_table
from versatune_ray.report.stages import stage_table, with_bands
from versatune_ray.report.study import study_section
from versatune_ray.report.summary import summary
from versatune_ray.report.sweep import sweep_section
from versatune_ray.report.writing import cut, duration, setting

ANSWERS_PER_DOMAIN = 3
MOST_OPEN = 3  # models whose sections are open at first
_PARTS = {
    "config": "settings",
    "data": "data counts",
    "detection": "detected shares",
    "reference": "reference losses",
    "adjustments": "fine-tuning",
    "evaluation": "evaluation",
    "sweep": "sweep",
    "study": "study",
    "replay": "replay",
    "timings": "timings",
}
_SECTIONS = (  # anchor, what a link to it says, and the parts whose problems are told in it
    ("outcome", "Before and after", ("evaluation",)),
    ("benchmarks", "Benchmarks", ()),
    ("sweep", "Sweep", ("sweep",)),
    ("study", "Study", ("study",)),
    ("detection", "Detected shares", ("detection",)),
    ("finetuning", "Fine-tuning", ("adjustments", "reference")),
    ("replay", "Replay", ("replay",)),
    ("data", "Data", ("data",)),
    ("generations", "Generations", ()),
    ("answers", "Answers", ()),
    ("settings", "Settings", ("config",)),
    ("timings", "Time", ("timings",)),
)


def build_report(run_folder: Path, refresh: int | None = None) -> Path:
    """Read ``run_folder`` and write ``report.html`` into it, replacing an older one in one step.

    Files that are missing or cannot be read are named on the page; an unfinished run still gives
    one. With ``refresh``, an open page loads itself again after that many seconds.

    Raises:
        UserError: ``run_folder`` does not exist.
    """
    return write_page(run_folder / "report.html", render(read_run(run_folder), refresh))


def write_page(target: Path, page: str) -> Path:
    """Write a page in one step."""
    temporary = target.with_name(f".report-{os.getpid()}.html")
    try:
        temporary.write_bytes(page.encode("utf-8", "replace"))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def fill(template: str, drawn: Iterable[Figure], domains: int, **values: Any) -> str:
    """A template that extends the shell, with the charts, the style and the only three scripts that
    its policy lets run.
    """
    plotly, script = _closed(get_plotlyjs()), _closed(_resource("charts.js.jinja"))
    loader = FunctionLoader(_resource)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(
        policy=Markup(_policy(plotly, script)),
        colours=Markup(colours.style_rules(domains)),
        css=Markup(_resource("style.css")),
        plotly=Markup(plotly),
        script=Markup(script),
        figures_json=script_json({figure.id: _drawn(figure) for figure in drawn}),
        **values,
    )


def render(run: RunData, refresh: int | None = None) -> str:
    """The whole page as text."""
    result = outcomes(run)
    compared = comparison(run)
    models = [
        model_section(run, detection, number) for number, detection in enumerate(run.detections)
    ]
    made = (
        figures.shares,
        figures.losses,
        figures.learnable_potential,
        figures.forgetting_degree,
        guard,
        figures.passes,
    )
    training = [with_bands(run, figure) for build in made if (figure := build(run)) is not None]
    benchmarks, sweep, study, replay = (
        benchmark_section(run),
        sweep_section(run),
        study_section(run),
        replayed(run),
    )
    drawn = [*([compared] if compared else []), *(item["figure"] for item in models), *training]
    drawn += benchmarks.figures if benchmarks else ()
    drawn += [
        *(sweep["figures"] if sweep else []),
        *(item["figure"] for item in study if item["figure"]),
        *([replay] if replay else []),
    ]
    before_after, other = tables.before_after(run, result), tables.other_measurements(run)
    counts, timings = tables.data_counts(run), tables.timings(run)
    content: dict[str, Any] = {
        "outcome": before_after or other,
        "detection": models or run.failed,
        "finetuning": training,
        "data": counts,
    }
    content |= {
        "generations": models,
        "answers": _answers(run),
        "settings": run.config,
        "timings": timings,
    }
    content |= {"benchmarks": benchmarks, "sweep": sweep, "study": study, "replay": replay}
    shown = {
        anchor: text
        for anchor, text, parts in _SECTIONS
        if content[anchor] or any(_broken(run, part) for part in parts)
    }
    told = {part for anchor, _, parts in _SECTIONS if anchor in shown for part in parts}
    return fill(
        "page.html.jinja",
        drawn,
        len(run.domains),
        run=run,
        source=run.folder,
        refresh=None if run.finished else refresh,
        facts=_facts(run),
        shown=shown,
        untold=[sentence for part, sentence in run.missing.items() if part not in told],
        waiting=", ".join(text for part, text in _PARTS.items() if part in run.missing),
        summary=summary(run, result),
        warnings=warnings(run, result),
        before_after=before_after,
        losses_from=result.losses_from,
        other=other,
        comparison=compared,
        comparison_table=comparison_table(run),
        models=models,
        most_open=MOST_OPEN,
        judges=[judge_section(run, group, quality) for group, quality in judges(run.detections)],
        training=training,
        stages=stage_table(run),
        benchmarks=benchmarks,
        sweep=sweep,
        study=study,
        replay=replay,
        counts=counts,
        account=tables.record_account(run),
        answers=_answers(run),
        answers_per_domain=ANSWERS_PER_DOMAIN,
        per_domain=PER_DOMAIN,
        per_reason=PER_REASON,
        characters=CHARACTERS,
        settings=settings_table(run),
        timings=timings,
    )


def _broken(run: RunData, part: str) -> bool:
    return part in run.problems and part not in run.absent


def script_json(value: Any) -> Markup:
    """JSON that can stand inside ``<script>``: pure ASCII, and without ``<``, ``>`` and ``&``."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _closed(script: str) -> str:
    """Refuse a script that the HTML parser would end, or read as a comment, half way."""
    for trap in ("</script", "<!--", "\r"):
        if trap in script.lower():
            raise ValueError(f"an inlined script contains {trap!r}")
    return script


def _policy(*scripts: str) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        f"base-uri 'none'; form-action 'none'"
    )


def _resource(name: str) -> str:
    return resources.files("versatune_ray.report").joinpath(name).read_text(encoding="utf-8")


def _drawn(figure: Figure) -> dict[str, Any]:
    return {
        "traces": figure.traces,
        "layout": figure.layout,
        "views": figure.views,
        "quiet": figure.quiet,
    }


def _facts(run: RunData) -> list[str]:
    facts = []
    if run.timings and run.timings.finished:
        facts.append(f"finished {run.timings.finished[:16].replace('T', ' ')}")
    if run.timings and run.timings.steps:
        facts.append(f"{duration(sum(step.seconds or 0 for step in run.timings.steps))} in all")
    if (
        run.setting("mixture.policy")
        and not run.detects_only
        and not run.compares
        and not run.measures_only
    ):
        facts.append(
            f"policy {run.setting('mixture.policy')}, start {setting(run.setting('mixture.start'))}"
        )
    versions = run.setting("versions")
    if isinstance(versions, dict):
        facts += [
            f"{name} {versions[name]}"
            for name in ("versatune_ray", "versatune-ray")
            if name in versions
        ]
    return facts


def _answers(run: RunData) -> list[dict[str, Any]]:
    if run.evaluation is None:
        return []
    order = {name: index for index, name in enumerate(run.domains)}
    answers = sorted(
        run.evaluation.answers,
        key=lambda answer: (order.get(answer.domain, len(order)), answer.domain),
    )
    return [
        _answer(run, answer)
        for _, items in groupby(answers, key=lambda a: a.domain)
        for answer in islice(items, ANSWERS_PER_DOMAIN)
    ]


def _answer(run: RunData, answer: Answer) -> dict[str, Any]:
    texts = {
        name: cut(getattr(answer, name) or "", CHARACTERS)
        for name in ("question", "expected", "base", "tuned")
    }
    expected = _bare(answer.expected)
    same = {
        f"{name}_same": bool(expected) and _bare(getattr(answer, name)) == expected
        for name in ("base", "tuned")
    }
    return {"domain": tables.domain_cell(run, answer.domain), **texts, **same}


def _bare(text: str | None) -> str:
    return " ".join((text or "").split()).rstrip(".").casefold()
