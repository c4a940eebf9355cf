"""The steps of a run as functions, for notebooks and scripts; the jobs do the same from a command
line.

Each takes a configuration (YAML file, several of them, or a mapping) and changes by dotted key,
does what is missing of its step and of those before it, and returns a small result that shows
itself as a table. Called again, it returns at once with what is there.
"""

from __future__ import annotations

import html
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from versatune_ray.evaluation.scores import Score, scores
from versatune_ray.pipeline import Run
from versatune_ray.pipeline.checks import TUNING, Use, check_models, check_named, tell_idle
from versatune_ray.runs.folder import RunFolder
from versatune_ray.runs.training_log import TrainingLog, read_log
from versatune_ray.runtime.cluster import check_storage, connect
from versatune_ray.runtime.gguf import with_folders
from versatune_ray.runtime.progress import Display
from versatune_ray.settings import Config
from versatune_ray.settings.loading import load, parse, with_keys

Settings = str | Path | Sequence[str | Path] | Mapping[str, Any]
Table = Sequence[tuple[str, ...]]  # rows of texts, the head first


class _Shown(ABC):
    """Shows itself as a table: as text, and in a notebook."""

    @abstractmethod
    def _rows(self) -> Table: ...

    def __str__(self) -> str:
        rows = self._rows()
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, *rows = [
            "".join(f"<td>{html.escape(text)}</td>" for text in row) for row in self._rows()
        ]
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        head = head.replace("td>", "th>")
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True, repr=False)
class Detected(_Shown):
    """What base models know. shares: model → domain → share, summing to 1. ci95: the same, (low,
    high), of models that were detected here; shares that were given have none. report: the page.
    """

    shares: dict[str, dict[str, float]]
    ci95: dict[str, dict[str, tuple[float, float]]]
    report: Path

    def _rows(self) -> Table:
        domains = list(next(iter(self.shares.values())))
        rows = [("model", *domains)]
        for name, share in self.shares.items():
            spans = self.ci95.get(name, {})
            within = {
                key: f" ({100 * low:.1f}–{100 * high:.1f})" for key, (low, high) in spans.items()
            }
            cells = (f"{100 * share[key]:.1f} %{within.get(key, '')}" for key in domains)
            rows.append((name, *cells))
        return rows


@dataclass(frozen=True, repr=False)
class References(_Shown):
    """The mastery ceiling. losses: domain → lowest held-out loss, in ``unit``."""

    losses: dict[str, float]
    unit: str

    def _rows(self) -> Table:
        return [
            ("domain", f"reference loss ({self.unit})"),
            *((name, f"{loss:.4f}") for name, loss in self.losses.items()),
        ]


@dataclass(frozen=True, repr=False)
class Tuned(_Shown):
    """A tuned model. model: its folder, of optimizer step ``step``. adjustments: the lines of
    ``adjustments.jsonl``; losses in ``unit``.
    """

    model: Path
    adjustments: list[dict[str, Any]]
    unit: str
    step: int

    def _rows(self) -> Table:
        log = TrainingLog(self.adjustments, self.step)
        first, last = log.base, log.tuned
        rows = [("domain", f"loss before ({self.unit})", "after", "share at first", "at last")]
        for name, loss in last["loss"].items():
            shares = (f"{100 * line['share'][name]:.1f} %" for line in (first, last))
            rows.append((name, f"{first['loss'][name]:.4f}", f"{loss:.4f}", *shares))
        return rows


@dataclass(frozen=True, repr=False)
class Swept(_Shown):
    """A sweep. trials: as in ``results.parquet``, the best score first. best: a configuration file
    for ``finetune``.
    """

    trials: list[dict[str, Any]]
    best: Path
    report: Path

    def _rows(self) -> Table:
        columns = [name for name in self.trials[0] if name != "trial"]
        return [
            tuple(columns),
            *(tuple(_short(trial[name]) for name in columns) for trial in self.trials),
        ]


@dataclass(frozen=True, repr=False)
class Evaluated(_Shown):
    """Benchmarks. scores: model → domain (and ``average``) → score. rows: as in
    ``results.json``.
    """

    scores: dict[str, dict[str, Score]]
    rows: list[dict[str, Any]]
    report: Path

    def _rows(self) -> Table:
        columns = list(next(iter(self.scores.values()), {}))
        return [
            ("model", *columns),
            *(
                (name, *(str(row[column]) for column in columns))
                for name, row in self.scores.items()
            ),
        ]


def detect(config: Settings, changes: Mapping[str, Any] | None = None) -> Detected:
    """Find out what the base model knows, or each of ``detection.models``. Algorithm 1 of VersaTune
    (arXiv 2411.11266).

    Raises:
        UserError: a mistake in configuration or data. Incomplete: some of several models could not
            be detected.
    """
    with _run(config, changes, "detection") as run:
        page, settings = run.detect_all(), run.given_config.detection
        listed = [] if settings.distribution is not None else settings.models
        names = [str(one.name) for one in listed] or [Path(run.model()).name]
        files = {name: run.folder.path / "detection" / name / "distribution.json" for name in names}
        detections = {
            name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items()
        }
        shares = {
            name: dict(zip(detection["domains"], detection["share"], strict=True))
            for name, detection in detections.items()
        }
        spans = {
            name: dict(zip(detection["domains"], map(tuple, detection["ci95"]), strict=True))
            for name, detection in detections.items()
            if "ci95" in detection
        }
        return Detected(shares, spans, page)


def reference(config: Settings, changes: Mapping[str, Any] | None = None) -> References:
    """Measure the mastery ceiling of every domain: the reference losses of Eq. 2.

    Raises:
        UserError: a mistake in configuration or data.
    """
    with _run(config, changes, "records", "reference") as run:
        references = run.measure_references()
        return References(
            {name: domain["loss"] for name, domain in references["domains"].items()},
            references["unit"],
        )


def finetune(config: Settings, changes: Mapping[str, Any] | None = None) -> Tuned:
    """Fine-tune with shares that follow the losses (Algorithms 2 and 3); detects and measures
    references first where they are missing.

    Raises:
        UserError: a mistake in configuration or data. Incomplete: the loss was no number.
    """
    with _run(config, changes) as run:
        model = run.finetune()
        log = read_log(run.folder.path)
        return Tuned(model, log.lines, run.unit(), log.step)


def sweep(config: Settings, changes: Mapping[str, Any] | None = None) -> Swept:
    """Search ``sweep.space`` with Ray Tune.

    Raises:
        UserError: a mistake in configuration or data. Incomplete: some trials failed.
    """
    import pyarrow.parquet as pq

    from versatune_ray.tuning.sweep import check_sweep
    from versatune_ray.tuning.sweep import sweep as search

    with _run(config, changes, "records", check=check_sweep, job="sweep") as run:
        page = search(run)
        folder = run.folder.path / "sweep"
        trials = pq.read_table(folder / "results.parquet").to_pylist()
        return Swept(trials, folder / "best.yaml", page)


def evaluate(config: Settings, changes: Mapping[str, Any] | None = None) -> Evaluated:
    """Measure base, tuned and other models on ``evaluation.benchmarks``.

    Raises:
        UserError: a mistake in configuration or data. Incomplete: some measurements failed.
    """
    from versatune_ray.evaluation.benchmarks import check_benchmarks

    with _run(config, changes, "models", check=check_benchmarks) as run:
        page, rows = run.measure_all(), run.measure_benchmarks().rows
        return Evaluated(scores(rows), rows, page)


@contextmanager
def _run(
    config: Settings,
    changes: Mapping[str, Any] | None,
    *uses: Use,
    check: Any = None,
    job: str = "",
) -> Iterator[Run]:
    """``uses``: as of ``check_named``; none: a fine-tuning's. ``job``: as of ``tell_idle``."""
    settings = _load(config, changes or {})
    check_named(settings, uses or TUNING)
    if check is not None:
        check(settings)
    settings = with_folders(settings)
    check_models(settings, uses or TUNING)
    tell_idle(settings, uses or TUNING, job)
    with RunFolder(settings) as folder:
        connect()
        check_storage(folder.path)
        with Display():
            yield Run(folder)


def _load(config: Settings, changes: Mapping[str, Any]) -> Config:
    if isinstance(config, Mapping):
        return parse(with_keys(config, changes))
    files = [config] if isinstance(config, str | Path) else config
    return load(files, changes=changes)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
