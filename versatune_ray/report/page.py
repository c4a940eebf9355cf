"""Write ``report.html``: one file that needs no network and trusts nothing it shows.

Every text comes from a model, a data set or a path, so Jinja escapes all of it, and a content
security policy lets exactly the one script written here run and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from versatune_ray.report.accounts import data_tables, outcome_section, timings
from versatune_ray.report.benchmarks import benchmark_section
from versatune_ray.report.colours import style_rules
from versatune_ray.report.detected import compared, judge_sections, models
from versatune_ray.report.doubts import warnings
from versatune_ray.report.generations import CHARACTERS, PER_DOMAIN, PER_REASON
from versatune_ray.report.outcome import outcomes
from versatune_ray.report.read import RunData, read_run
from versatune_ray.report.searched import replay_figure, study_sections, sweep_section
from versatune_ray.report.tables import Cell, domain_cell
from versatune_ray.report.templates import filled, resource
from versatune_ray.report.training import figures, shares_before_after, stage_table
from versatune_ray.report.verdict import verdict
from versatune_ray.report.writing import called, cut, duration, setting

ANSWERS_PER_DOMAIN = 3
_TEXTS = ("question", "expected", "base", "tuned")
MOST_OPEN = 3  # models whose sections are open at first
_TRAINING = (
    "mixture.preset mixture.policy mixture.start mixture.strength mixture.sigma mixture.delta "
    "mixture.epsilon mixture.targets mixture.max_share mixture.options mixture.feedback "
    "training.epochs training.batch_size training.learning_rate training.adjust_every "
    "training.workers seed"
)
ONLY = {  # keys that matter to these policies alone
    "mixture.strength": ("balanced",),
    "mixture.sigma": ("versatune", "expansion"),
    "mixture.delta": ("expansion",),
    "mixture.epsilon": ("expansion",),
    "mixture.max_share": ("expansion",),
}
_EVALUATION = "model.path evaluation.limit evaluation.chat evaluation.run_code seed"
_DETECTION = (
    "detection.samples detection.repeats detection.tolerance detection.estimate "
    "detection.generation.temperature detection.generation.top_p detection.generation.max_tokens "
    "detection.judge.path seed"
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


def fill(template: str, domains: int, refresh: int | None = None, **values: Any) -> str:
    """A template that extends the shell, with the style and the only script that may run."""
    script = resource("page.js.jinja")
    shell = {
        "digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "colours": Markup(style_rules(domains)),
        "css": Markup(resource("style.css")),
        "script": Markup(script),
        "refresh": refresh,
    }
    return filled(template, shell | values)


def render(run: RunData, refresh: int | None = None) -> str:
    """The whole page of a run as text."""
    content = {anchor: build(run) for anchor, _, _, build in _SECTIONS}
    broken = run.problems.keys() - run.absent
    shown = [one for one in _SECTIONS if content[one[0]] or broken & set(one[2])]
    told = {part for _, _, parts, _ in shown for part in parts}
    result = outcomes(run)
    return fill(
        "page.html.jinja",
        max(len(run.domains), len({one.model for one in run.results})),
        None if run.finished else refresh,
        run=run,
        facts=_facts(run),
        content=content,
        titles={anchor: title for anchor, title, _, _ in shown},
        problems={
            anchor: [run.missing[part] for part in parts if part in run.missing]
            for anchor, _, parts, _ in shown
        },
        untold=[sentence for part, sentence in run.missing.items() if part not in told],
        waiting=", ".join(run.waits_for),
        verdict=verdict(run),
        warnings=warnings(run, result),
        first=shares_before_after(run),
        command=_baseline_command(run),
        result=result,
        most_open=MOST_OPEN,
        limits={"answers": ANSWERS_PER_DOMAIN, "kept": PER_DOMAIN, "lost": PER_REASON}
        | {"characters": CHARACTERS},
    )


def _baseline_command(run: RunData) -> str:
    """What would train the same with equal shares, where nothing like it is there to compare."""
    plain = run.setting("mixture.policy") == "constant"
    if run.baseline or plain or not run.adjustments or not run.config or not run.finished:
        return ""
    name = f"{run.place.rpartition('/')[2]}-uniform"
    config = shlex.quote(f"{run.place}/config.yaml")
    changes = "mixture.policy=constant mixture.start=uniform"
    return f"versatune pipeline --config {config} {shlex.quote(f'run={name}')} {changes}"


def _facts(run: RunData) -> list[str]:
    facts = []
    if run.timings and run.timings.finished:
        facts.append(f"finished {run.timings.finished[:16].replace('T', ' ')}")
    if run.timings and run.timings.steps:
        facts.append(f"{duration(run.seconds)} in all")
    policy, start = run.setting("mixture.policy"), run.setting("mixture.start")
    if policy and not (run.detects_only or run.compares or run.measures_only):
        facts.append(f"policy {policy}, start {setting(start)}")
    own = ("versatune_ray", "versatune-ray")
    return facts + [f"{name} {version}" for name, version in _versions(run) if name in own]


def _versions(run: RunData) -> list[tuple[str, Any]]:
    versions = run.setting("versions")
    return list(versions.items()) if isinstance(versions, dict) else []


def _detection(run: RunData) -> dict[str, Any] | None:
    found = {"models": models(run), "compared": compared(run), "judges": judge_sections(run)}
    return found if run.detections or run.failed else None


def _finetuning(run: RunData) -> dict[str, Any] | None:
    drawn = figures(run)
    return {"figures": drawn, "stages": stage_table(run)} if drawn else None


def _answers(run: RunData) -> list[tuple[Cell, list[dict[str, Any]]]]:
    """The first answers of each domain, and which of them read the same as the expected one."""
    asked, made = run.evaluation.answers if run.evaluation else [], []
    for domain in dict.fromkeys([*run.domains, *(one.domain for one in asked)]):
        shown = []
        for one in [one for one in asked if one.domain == domain][:ANSWERS_PER_DOMAIN]:
            texts = {name: cut(getattr(one, name) or "", CHARACTERS) for name in _TEXTS}
            wanted = _bare(one.expected)
            right = [name for name in _TEXTS[2:] if wanted and _bare(getattr(one, name)) == wanted]
            shown.append(texts | {"right": right})
        made += [(domain_cell(run, domain), shown)] if shown else []
    return made


def _bare(text: str | None) -> str:
    return " ".join((text or "").split()).rstrip(".").casefold()


def _settings(run: RunData) -> list[tuple[str, str]]:
    """The settings that decided over this kind of run, without those that it searched."""
    keys = _DETECTION if run.detects_only else _EVALUATION if run.measures_only else _TRAINING
    policy, varied = run.setting("mixture.policy"), set(run.sweep.keys if run.sweep else ())
    methods = run.setting("study.methods") if run.study else None
    for changes in methods.values() if isinstance(methods, dict) else ():
        varied |= set(changes) if isinstance(changes, dict) else set()
    found = [
        (called(key), run.setting(key))
        for key in keys.split()
        if not (run.compares and key in varied) and policy in ONLY.get(key, (policy,))
    ]
    stages = run.setting("stages")
    for one in stages if keys is _TRAINING and isinstance(stages, list) else ():
        rest = {key: value for key, value in one.items() if key != "name"}
        found.append((f"stage {one['name']}", rest))
    found += _versions(run)
    return [(str(name), setting(value)) for name, value in found if value not in (None, [], {})]


_SECTIONS: tuple[tuple[str, str, tuple[str, ...], Callable[[RunData], Any]], ...] = (
    # anchor, title, the parts whose problems are told in it, and what it shows
    ("outcome", "Before and after", ("evaluation",), outcome_section),
    ("benchmarks", "Benchmarks", (), benchmark_section),
    ("sweep", "Sweep", ("sweep",), sweep_section),
    ("study", "Study", ("study",), study_sections),
    ("detection", "Detected shares", ("detection",), _detection),
    ("finetuning", "Fine-tuning", ("adjustments", "reference"), _finetuning),
    ("replay", "Replay", ("replay",), replay_figure),
    ("data", "Data", ("data",), data_tables),
    ("generations", "Generations", (), models),
    ("answers", "Answers", (), _answers),
    ("settings", "Settings", ("config",), lambda run: run.config and {"shown": _settings(run)}),
    ("timings", "Time", ("timings",), timings),
)
