"""The settings of a short run that is watched, and what it left for TensorBoard."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from versatune_ray.settings import Config
from versatune_ray.settings.loading import parse
from versatune_ray.training.loggers import Row

NAMES = ("law", "code")
STEPS, EVERY, BATCH, RATE = 20, 5, 8, 1e-3


def settings(storage: Path, model: Path, metrics: Any) -> Config:
    training = {
        "epochs": 1,
        "samples_per_epoch": STEPS * BATCH,
        "batch_size": BATCH,
        "learning_rate": RATE,
        "warmup": 0,
        "metrics": metrics,
    }
    return parse(
        {
            "run": "watched",
            "storage": str(storage),
            "model": {"path": str(model)},
            "data": {"max_length": 64},
            "domains": {name: f"{storage}/{name}.jsonl" for name in NAMES},
            "mixture": {"start": "uniform"},
            "training": training | {"workers": 1, "adjust_every": EVERY},
        }
    )


def events(folder: Path) -> Iterator[Any]:
    """Records of all event files in the order of their names; each is a length, its checksum, an
    event, its checksum.
    """
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(folder.glob("events.out.tfevents.*")):
        data, place = file.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            yield Event.FromString(data[place + 12 : place + 12 + length])
            place += length + 16


def board(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) pairs by tag as TensorBoard shows them: a start takes back what earlier files
    say of its step and later ones.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        if event.session_log.status == event.session_log.START:
            found = {
                tag: [pair for pair in pairs if pair[0] < event.step]
                for tag, pairs in found.items()
            }
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


class Broken:
    """A logger whose every call fails."""

    def write(self, rows: Sequence[Row]) -> None:
        raise ConnectionError("no network")

    def close(self, failed: bool) -> None:
        raise ConnectionError("no network")
