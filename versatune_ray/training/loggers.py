"""Where metrics go: TensorBoard, Weights & Biases, MLflow. Each behind a thread of its own, so that
no step waits for a disk or a network.

Imports neither torch nor Ray, and a tracker's package only where the settings name it.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from versatune_ray.errors import UserError, one_line, redacted
from versatune_ray.runs.storage import pull, push
from versatune_ray.settings import Config

MLFLOW_DB = "mlflow.db"  # where no server is named
_EVERY = 1.0  # seconds between two writes
_KEPT = 100_000  # rows that wait at most for a tracker that hangs; then the oldest are dropped
_PATIENCE = 10.0  # seconds that a checkpoint waits for what was measured before it
_LAST_PATIENCE = 60.0  # seconds that the end of a run waits for uploads


class Row(NamedTuple):
    """What was measured at one step; names are ``group/name``: ``train/loss``, or a kind and a
    domain, ``share/law``.
    """

    step: int
    time: float
    values: Mapping[str, float]


class MetricLogger(Protocol):
    """Takes rows, in a thread of its own; whatever it raises is told once, and it is called
    again.
    """

    def write(self, rows: Sequence[Row]) -> None:
        """Called about once a second, also without new rows."""

    def close(self, failed: bool) -> None:
        """The last call; ``failed``: the run ends by an error."""


class Background:
    """A logger and its thread. A failing or hanging one never stops a run: ``warn`` gets one
    sentence, and later rows are tried again.
    """

    def __init__(self, name: str, logger: MetricLogger, warn: Callable[[str], None]):
        self._name, self._sink, self._warn = name, logger, warn
        self._rows: deque[Row] = deque(maxlen=_KEPT)
        self._hurry, self._written = threading.Event(), threading.Event()
        self._ending, self._failed, self._told = False, False, False
        self._thread = threading.Thread(target=self._run, name=f"metrics-{name}", daemon=True)
        self._thread.start()

    def put(self, row: Row) -> None:
        self._rows.append(row)

    def flush(self) -> None:
        """Wait until what was put before is written; not for a logger that had trouble before."""
        if self._told:
            return
        self._written.clear()
        self._hurry.set()
        if not self._written.wait(_PATIENCE):
            self._tell(f"nothing written within {_PATIENCE:g} s")

    def close(self, failed: bool) -> None:
        self._ending, self._failed = True, failed
        self._hurry.set()
        self._thread.join(_PATIENCE if self._told else _LAST_PATIENCE)

    def _run(self) -> None:
        while not self._ending:
            asked = self._hurry.wait(_EVERY)
            if asked:
                self._hurry.clear()
            self._try(self._write)
            if asked:
                self._written.set()
        self._try(self._write)
        self._try(lambda: self._sink.close(self._failed))

    def _write(self) -> None:
        self._sink.write([self._rows.popleft() for _ in range(len(self._rows))])

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # whatever a tracker raises
            self._tell(one_line(error))

    def _tell(self, what: str) -> None:
        if not self._told:
            self._told = True
            self._warn(
                f"training.metrics: {self._name}: {what}; training goes on, and values may be "
                f"missing there"
            )


def open_loggers(
    config: Config, folder: Path, first: int, warn: Callable[[str], None]
) -> dict[str, MetricLogger]:
    """The configured loggers by name. A tracker that a fresh run cannot reach stops it; a resumed
    run goes on without, and says so.

    Args:
        folder: the run's ``finetune/``.
        first: the first step that this attempt measures; 0 in a fresh run.

    Raises:
        UserError: a key is missing, or a tracker does not answer a fresh run.
    """
    pull(folder, without="checkpoints")  # what earlier attempts left, on whichever machine
    found: dict[str, MetricLogger] = {}
    for name in dict.fromkeys(config.training.metrics):
        try:
            found[name] = _OPEN[name](config, folder, first)
        except Exception as error:  # whatever a tracker raises
            if first == 0:
                raise UserError(f"training.metrics: {name}: {one_line(error)}") from error
            warn(f"training.metrics: {name}: {one_line(error)}; training goes on without it")
    return found


class TensorBoard:
    """Event files in ``{folder}/tensorboard``; each attempt begins one that takes back what earlier
    ones wrote from its first step on.
    """

    def __init__(self, config: Config, folder: Path, first: int):
        # SummaryWriter puts a process queue and a thread of its own in between, and its flush()
        # does not wait for them.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        (folder / "tensorboard").mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "tensorboard" / "events"), f".{first:08}")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        # SummaryWriter's purge_step
        self._writer.write_event(
            event_pb2.Event(wall_time=time.time(), step=first, session_log=start)
        )
        self._writer.flush()

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            values = [
                self._summary.Value(tag=name, simple_value=value)
                for name, value in row.values.items()
            ]
            self._writer.write_event(
                self._event(wall_time=row.time, step=row.step, summary=self._summary(value=values))
            )
        if rows:
            self._writer.flush()

    def close(self, failed: bool) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases, taken up again by its id; steps that it has already it does not
    take twice.
    """

    def __init__(self, config: Config, folder: Path, first: int):
        import wandb

        if not os.environ.get("WANDB_API_KEY") and os.environ.get("WANDB_MODE") not in (
            "offline",
            "disabled",
            "dryrun",
        ):
            raise UserError(
                "WANDB_API_KEY is not in the environment of the worker (with Ray, set it before "
                "`ray start`)"
            )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "versatune"),
            name=config.run,
            id=_identity(config, folder),
            resume="allow",
            dir=str(folder),
            config=redacted(config.model_dump(mode="json")),
            settings=wandb.Settings(console="off", finish_timeout=_LAST_PATIENCE - _PATIENCE),
        )

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._run.log(dict(row.values), step=row.step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow:
    """A run of MLflow, found again by its tag; in ``{folder}/mlflow.db`` where MLFLOW_TRACKING_URI
    names no server.
    """

    def __init__(self, config: Config, folder: Path, first: int):
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client = MlflowClient(
            os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute()}/{MLFLOW_DB}"
        )
        name, tag = (
            os.environ.get("MLFLOW_EXPERIMENT_NAME", "versatune"),
            {"versatune_run": _identity(config, folder)},
        )
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        runs = self._client.search_runs(
            [experiment], f"tags.versatune_run = '{tag['versatune_run']}'", max_results=1
        )
        run = (
            runs[0] if runs else self._client.create_run(experiment, tags=tag, run_name=config.run)
        )
        self._id = run.info.run_id
        self._last: dict[str, int] = {}  # the last step that is there, by metric
        self._client.update_run(self._id, status="RUNNING")
        if not runs:
            settings = {
                section: redacted(config.model_dump(mode="json", include={section}))[section]
                for section in ("mixture", "training")
            }
            params = [
                Param(f"{section}.{key}", str(value)[:500])
                for section, keys in settings.items()
                for key, value in keys.items()
            ]
            self._client.log_batch(self._id, params=params)

    def write(self, rows: Sequence[Row]) -> None:
        metrics = []
        for row in rows:
            for name, value in row.values.items():
                key = re.sub(r"[^\w/. :-]", "_", name)
                if row.step > self._known(key):
                    metrics.append(self._metric(key, value, int(1000 * row.time), row.step))
                    self._last[key] = row.step
        for place in range(0, len(metrics), 1000):  # the most that a server takes at once
            self._client.log_batch(self._id, metrics[place : place + 1000])

    def _known(self, key: str) -> int:
        if key not in self._last:
            self._last[key] = max(
                (metric.step for metric in self._client.get_metric_history(self._id, key)),
                default=-1,
            )
        return self._last[key]

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


_OPEN: dict[str, Callable[[Config, Path, int], MetricLogger]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def _identity(config: Config, folder: Path) -> str:
    """What trackers know this run by: its name and, as another folder may hold a run of that name,
    a few letters kept in the folder.
    """
    file = folder / "tracking_id"
    with suppress(FileExistsError), file.open("x") as new:
        new.write(f"{config.run}-{secrets.token_hex(4)}")
    push(file)
    return file.read_text()


def scalars(group: str, values: Mapping[str, Any] | None) -> dict[str, float]:
    """``values`` under ``group/``, without those that are not known."""
    return {
        f"{group}/{name}": float(value)
        for name, value in (values or {}).items()
        if value is not None
    }
