"""Read a run's folder into ``RunData``.

Any file may be missing or half written: a page is most wanted when a run stopped early. What cannot
be read becomes one plain sentence, which the page prints in place of the section.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import TypeAdapter, ValidationError

from versatune_ray.errors import UserError, redacted
from versatune_ray.mixture import STARTS
from versatune_ray.report.generations import Examples, read_examples
from versatune_ray.report.writing import clean, one_line, without_places
from versatune_ray.runs.artefacts import (
    FAILED,
    Adjustment,
    Counts,
    Detection,
    Evaluation,
    Exported,
    Reference,
    Result,
    Timings,
)
from versatune_ray.runs.comparisons import Replay, StudyTable, Sweep, trial_name
from versatune_ray.settings.location import shown
from versatune_ray.settings.semantics import RUN_FOLDERS
from versatune_ray.settings.tuning import OBJECTIVES

_Value = TypeVar("_Value")
_TRIAL = ("trial", "pruned_at", "error")  # columns of a sweep that are no setting
_UNREADABLE = (yaml.YAMLError, pa.ArrowException)
PARTS = {  # part → file, what its absence means, and what people wait for
    "config": ("config.yaml", "the settings are unknown", "settings"),
    "data": (Counts.FILE, "no records were read", "data counts"),
    "detection": (Detection.FILE, "no knowledge detection was run", "detected shares"),
    "reference": (Reference.FILE, "no reference losses were measured", "reference losses"),
    "adjustments": (Adjustment.FILE, "nothing was fine-tuned", "fine-tuning"),
    "evaluation": (Evaluation.FILE, "nothing was evaluated", "evaluation"),
    "timings": (Timings.FILE, "no step was timed", "timings"),
}


@dataclass(frozen=True)
class RunData:
    """A run as the page sees it. ``problems`` maps a part (``detection``, ``evaluation``, …) to why
    it is not (all) shown; ``absent`` are the parts of which no file is there. ``failed`` maps
    models that could not be detected to why, ``unmeasured`` "model: benchmark" likewise.
    ``place`` is where the run lies, for commands: a URI, or the last two parts of its path.
    """

    name: str
    place: str = ""
    config_text: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    counts: Counts | None = None
    detections: tuple[Detection, ...] = ()
    examples: tuple[Examples, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    unmeasured: dict[str, str] = field(default_factory=dict)
    reference: Reference | None = None
    adjustments: tuple[Adjustment, ...] = ()
    exported: Exported | None = None
    evaluation: Evaluation | None = None
    timings: Timings | None = None
    sweep: Sweep | None = None
    study: tuple[StudyTable, ...] = ()
    replay: Replay | None = None
    problems: dict[str, str] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()
    domains: tuple[str, ...] = ()
    baseline: RunData | None = None
    baseline_name: str = ""

    def setting(self, key: str) -> Any:
        """The value of a dotted configuration key, or ``None``."""
        found: Any = self.config
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return found

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return sum(step.seconds or 0 for step in self.timings.steps) if self.timings else 0

    @property
    def counted(self) -> str:
        """What shares count."""
        return "tokens" if self.setting("mixture.unit") == "tokens" else "samples"

    @property
    def finished(self) -> bool:
        """Whether the last step is done."""
        return self.timings is not None and self.timings.finished is not None

    @property
    def waits_for(self) -> list[str]:
        """In words, what an unfinished run is still going to have."""
        start = STARTS.get(str(self.setting("mixture.start")))
        left = self.missing.keys() - ({"detection"} if start and not start.needs_detection else ())
        return [text for part, (*_, text) in PARTS.items() if part in left]

    @property
    def compares(self) -> bool:
        """Whether all that the run does is to compare: a sweep, a study or a replay."""
        there = self.sweep or self.study or self.replay
        broken = {"sweep", "study", "replay"} & self.problems.keys()
        return bool(there or broken) and {"adjustments", "evaluation"} <= self.absent

    @property
    def detects_only(self) -> bool:
        """Whether the run is finished and all that it did is knowledge detection."""
        bare = {"adjustments", "evaluation"} <= self.absent and not self.compares
        return self.finished and bool(self.detections) and bare

    @property
    def benchmarks(self) -> list[Result]:
        return [one for one in self.results if one.is_benchmark]

    @property
    def results(self) -> list[Result]:
        return self.evaluation.results if self.evaluation else []

    @property
    def measures_only(self) -> bool:
        """Whether the run is finished and all that it did is to measure models on benchmarks."""
        bare = {"adjustments", "detection"} <= self.absent
        return self.finished and bool(self.benchmarks) and bare

    @property
    def missing(self) -> dict[str, str]:
        """``problems`` without what a run that only compares or measures never makes."""
        partial = self.compares or self.measures_only
        return {
            part: told
            for part, told in self.problems.items()
            if part == "config" or part not in self.absent or not partial
        }

    @property
    def unit(self) -> str:
        """Of all losses."""
        by_reference = self.reference.unit if self.reference else None
        return self.counts.unit if self.counts else by_reference or "nats/token"

    def index(self, name: str) -> int | None:
        """The place of a domain, which decides its colour."""
        return self.domains.index(name) if name in self.domains else None


class _Folder:
    """The files of one run, and what was wrong with them."""

    def __init__(self, path: Path):
        self.path, self.problems, self.absent = path, dict[str, str](), set[str]()

    def note(self, part: str, sentence: str) -> None:
        """Add to what is said of a part."""
        self.problems[part] = f"{self.problems.get(part, '')} {sentence}".strip()

    def text(self, name: str) -> str:
        return (self.path / name).read_text(encoding="utf-8", errors="replace")

    def json(self, part: str, name: str, kind: Any, optional: bool = False) -> Any:
        """A JSON file as ``kind``; places on a machine are cut off but for what people wrote."""

        def load() -> Any:
            tree = clean(json.loads(self.text(name)))
            answers = tree.get("answers") if isinstance(tree, dict) else None
            tree = without_places(tree)
            tree = tree if answers is None else tree | {"answers": answers}
            return TypeAdapter(kind).validate_python(tree)

        return self.read(part, name, load, optional)

    def read(
        self, part: str, name: str, load: Callable[[], _Value], optional: bool = False
    ) -> _Value | None:
        """What ``load`` makes of the file ``name``; ``None`` and a sentence where it cannot, or
        where the file is not there and should be.
        """
        if not (self.path / name).is_file():
            if not optional:
                self.lacks(part)
            return None
        try:
            return load()
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "top level"
            why = first["msg"].removeprefix("Value error, ")
            self.note(part, f"{name} is not as expected: {where}: {why}.")
        except (ValueError, OSError, RecursionError, *_UNREADABLE) as error:
            self.note(part, f"{name} could not be read: {one_line(error).rstrip('.')}.")
        return None

    def lacks(self, part: str) -> None:
        name, meaning, _ = PARTS[part]
        self.absent.add(part)
        self.note(part, f"{name} is not in the run folder: {meaning}.")

    def config(self) -> tuple[str, dict[str, Any]]:
        text = clean(self.text("config.yaml"))
        tree = redacted(clean(yaml.safe_load(text)))
        if not isinstance(tree, dict):
            self.note("config", "config.yaml holds no keys and values.")
            tree = {}
        return without_places(text), without_places(tree)

    def detections(self) -> Iterator[tuple[Detection, Examples]]:
        files = sorted(self.path.glob(Detection.FILE))
        for file in files:
            name = clean(str(file.relative_to(self.path)))
            if (found := self.json("detection", name, Detection)) is not None:
                called = {"name": found.name or clean(file.parent.name)}
                named = found.model_copy(update=called)
                samples = sorted((file.parent / "samples").glob("*.parquet"))
                yield named, read_examples(samples, found.domains, (file, found.texts))
        if not files:
            self.lacks("detection")

    def adjustments(self) -> tuple[Adjustment, ...]:
        part, name, cut = "adjustments", Adjustment.FILE, 0
        # one stage ends with the step that the next begins with
        found: dict[tuple[int, str | None], Adjustment] = {}
        for line in filter(str.strip, self.text(name).split("\n")):
            try:
                one = Adjustment.model_validate(clean(json.loads(line)))
                found[one.step, one.stage] = one
            except (ValueError, RecursionError):
                cut += 1
        if cut:
            why = "left out (a line may have been cut off while written)"
            self.note(part, f"{name}: {cut} line(s) could not be read and are {why}.")
        elif not found:
            self.note(part, f"{name} is empty: nothing has been measured yet.")
        return tuple(sorted(found.values(), key=lambda one: one.step))

    def sweep(self) -> Sweep:
        found = _sweep(self.path / Sweep.FILE)
        if not found.trials:
            self.note("sweep", f"{Sweep.FILE} holds no trials.")
        front = self.json("sweep", Sweep.FRONT, list[dict[str, Any]], optional=True)
        if not (self.path / Sweep.FRONT).is_file():
            unmarked = "so the trials that no other beats are not marked"
            self.note("sweep", f"{Sweep.FRONT} is not in the run folder, {unmarked}.")
        names = tuple(str(one.get("trial")) for one in front or ())
        written = (self.path / Sweep.BEST).is_file()
        return found.model_copy(update={"front": names, "written": written})


def read_run(folder: Path, baseline: bool = True) -> RunData:
    """Read every file of a run folder that is there; with ``baseline``, also of the run beside it
    that it is to be compared with: the baseline of its study, or ``NAME-uniform``.

    Raises:
        UserError: the folder does not exist, or holds nothing of a run.
    """
    there = {file.name for file in folder.iterdir()} if folder.is_dir() else None
    known = {file.partition("/")[0] for file, *_ in PARTS.values()} | {*RUN_FOLDERS}
    if there is None or (there and not there & known):  # one that is empty is about to be filled
        what = "no such run folder" if there is None else "no run folder"
        raise UserError(f"{folder}: {what}; name the folder that holds the run's config.yaml")
    files, where, own = _Folder(folder), clean(shown(folder)), clean(str(folder.resolve()))
    config_text, config = files.read("config", "config.yaml", files.config) or ("", {})
    parts: dict[str, Any] = {
        "counts": files.json("data", Counts.FILE, Counts),
        "reference": files.json("reference", Reference.FILE, Reference),
        "adjustments": files.read("adjustments", Adjustment.FILE, files.adjustments) or (),
        "exported": files.json("adjustments", Exported.FILE, Exported, optional=True),
        "evaluation": files.json("evaluation", Evaluation.FILE, Evaluation),
        "timings": files.json("timings", Timings.FILE, Timings),
        "sweep": files.read("sweep", Sweep.FILE, files.sweep, optional=True),
        "study": tuple(files.json("study", StudyTable.FILE, list[StudyTable], True) or ()),
        "replay": files.json("replay", Replay.FILE, Replay, optional=True),
    }
    for part, told in (("detection", "failed"), ("evaluation", "unmeasured")):
        parts[told] = files.json(part, f"{part}/{FAILED}", dict[str, str], optional=True) or {}
    detected = list(files.detections())
    name = config.get("run")
    beside, called = _beside(folder) if baseline else (folder, "")
    run = RunData(
        name=name if isinstance(name, str) and name else own.rpartition("/")[2],
        place=where if "://" in where else "/".join(own.split("/")[-2:]),
        config_text=config_text,
        config=config,
        detections=tuple(found for found, _ in detected),
        examples=tuple(shown for _, shown in detected),
        problems=files.problems,
        absent=frozenset(files.absent),
        baseline=read_run(beside, False) if called else None,
        baseline_name=called,
        **parts,
    )
    return replace(run, domains=_domain_order(run))


def _beside(folder: Path) -> tuple[Path, str]:
    """The run to compare with, and what it is called; without one, no name."""
    names = {f"{folder.name}-uniform": "equal shares"}
    try:
        tables = json.loads((folder.resolve().parents[1] / StudyTable.FILE).read_text())
        method = str(tables[0]["baseline"])
        names[trial_name(method, folder.name.rpartition("-")[2])] = method
    except (OSError, ValueError, LookupError, TypeError):
        pass  # it is no trial of a study
    there = ((folder.with_name(name), called) for name, called in names.items())
    return next((one for one in there if one[0].is_dir() and one[0] != folder), (folder, ""))


def _sweep(file: Path) -> Sweep:
    table = pq.ParquetFile(pa.BufferReader(file.read_bytes())).read()
    rows = [without_places(clean(row)) for row in table.to_pylist()]
    names, known, about = clean(table.column_names), (*OBJECTIVES, "score"), _TRIAL
    keys = [one for one in names if one not in (*known, *about)]
    objectives = [name for name in known if name in names]
    trials = [
        {one: row.get(one) for one in about}
        | {"changes": {key: row[key] for key in keys if row[key] is not None}}
        | {"objectives": {name: row[name] for name in objectives}}
        for row in rows
    ]
    return Sweep.model_validate({"keys": keys, "objectives": objectives, "trials": trials})


def _domain_order(run: RunData) -> tuple[str, ...]:
    """Configured order first: a domain keeps its colour from chart to chart and from run to run."""
    configured = run.config.get("domains")
    ends = (*run.adjustments[:1], *run.adjustments[-1:])
    places: list[Iterable[Any]] = [
        configured if isinstance(configured, dict) else (),
        run.counts.domains if run.counts else (),
        *(found.domains for found in run.detections),
        *(names for one in ends for names in (one.share, one.loss)),
        run.reference.domains if run.reference else (),
        (result.domain for result in run.results),
        run.replay.domains if run.replay else (),
    ]
    return tuple(dict.fromkeys(str(name) for names in places for name in names))
