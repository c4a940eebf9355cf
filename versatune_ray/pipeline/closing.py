"""How a job ends on a screen: the verdict, and what one would type next."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from versatune_ray.errors import printable
from versatune_ray.report.read import read_run
from versatune_ray.report.verdict import verdict
from versatune_ray.settings.location import is_mirrored, shown

_TALKS = ("chat", "serve", "push")  # with the tuned model
# what follows a job: {run} is its run, {config} what it was given
_CHAT = ("chat {run}", "ask it beside its base")
_SERVE = ("serve {run}", "behind an API, by vLLM")
_PAGE = ("report {run} --open", "the page, in a browser")
_PLAN = ("finetune {config} --plan", "steps, memory and time")
_ALL = ("pipeline {config}", "train, measure, report")
_GROUPED = "{config} --config {run}/group/domains.yaml"
_TRIALS = (
    ("finetune --config {run}/sweep/best.yaml", "train with the best"),
    ("pipeline --config {run}/sweep/best.yaml", "and measure it"),
    _PAGE,
)
_NEXT: dict[str, tuple[tuple[str, str], ...]] = {
    "preview": (_PLAN, _ALL, ("preview {config} --all", "every record, not the first 1,000")),
    "make_base": (("detect {config}", "what it knows"), _PLAN, _ALL),
    "detect": (_PLAN, _ALL, _PAGE),
    "reference": (_PLAN, _ALL, _PAGE),
    "finetune": (_CHAT, ("pipeline {config}", "measure it, and write the page"), _SERVE),
    "pipeline": (_CHAT, _SERVE, ("push {run} OWNER/NAME --dry-run", "model and card for the hub")),
    "quickstart": (
        _CHAT,
        ("report {run} {run}-balanced", "the paper and balanced on one page"),
        ("init FOLDER", "your own files"),
    ),
    "evaluate": (_CHAT, _PAGE, _SERVE),
    "sweep": _TRIALS,
    "cofitune": _TRIALS,
    "study": (_PAGE, ("study {config} study.seeds=[0,1,2,3,4]", "more seeds"), _PLAN),
    "replay": (_PAGE, ("sweep {config} --plan", "train under such settings"), _PLAN),
    "group": (
        (f"pipeline {_GROUPED}", "train on them"),
        (f"finetune {_GROUPED} --plan", _PLAN[1]),
        (f"preview {_GROUPED}", "what trains"),
    ),
    "report": (_CHAT, _SERVE, ("report {run} OTHER", "two runs side by side")),
}


def closing(job: str, run: Path, files: Sequence[str], overrides: Sequence[str]) -> str:
    """The lines after a job's own.

    Args:
        files, overrides: what it was given; with overrides the run's own ``config.yaml`` stands
            for both.
    """
    place = _named(run)
    saved = f"{place}/config.yaml"
    given = [saved] if not files or (overrides and not is_mirrored(run)) else files
    config = " ".join(f"--config {shlex.quote(str(file))}" for file in given)
    said = [printable(f"[verdict] {line}") for line in _verdict(run)]
    tuned = (run / "finetune" / "model").is_dir()
    return "\n".join([*said, "", *following(job, place, config, tuned)])


def _verdict(run: Path) -> list[str]:
    found = read_run(run)
    broken = [
        f"a file of this run cannot be read ({name}: {why})"
        for name, why in found.problems.items()
        if name not in found.absent
    ]
    cut = [] if found.finished else ["this run is not finished; the same command goes on with it"]
    return [*broken, *cut, *verdict(found).sentences]


def following(job: str, run: str, config: str, tuned: bool = False) -> list[str]:
    """Three commands, and what each is for; of a run without a tuned model none that needs one."""
    asked = _NEXT.get(job, ())
    if not tuned or not asked:
        without = [one for one in asked if one[0].split()[0] not in _TALKS]
        asked = tuple(dict.fromkeys([*without, _ALL, _PLAN, _PAGE]))[:3]
    listed = [
        (f"{_program()} {command.format(run=run, config=config)}", what) for command, what in asked
    ]
    width = max(len(command) for command, _ in listed)
    return ["next:", *(f"  {command:<{width}}  # {what}" for command, what in listed)]


def _named(run: Path) -> str:
    """As one would type it here."""
    place = shown(run)
    here = Path.cwd()
    if "://" not in place and run.is_relative_to(here):
        place = str(run.relative_to(here))
    return shlex.quote(place)


def _program() -> str:
    """``versatune`` as it is called here."""
    if shutil.which("versatune"):
        return "versatune"
    beside = Path(sys.executable).with_name("versatune")
    if not beside.is_file():
        return "versatune"
    here = Path.cwd()
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)
