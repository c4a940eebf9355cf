"""What a fine-tuning left of its losses and shares: ``finetune/adjustments.jsonl``, and the step of
the model beside it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from versatune_ray.runs.artefacts import Adjustment, Exported
from versatune_ray.runs.storage import bring


@dataclass(frozen=True)
class TrainingLog:
    """lines: one per adjustment, the first before training. step: whose model was exported."""

    lines: list[dict[str, Any]]
    step: int

    @property
    def base(self) -> dict[str, Any]:
        """The line of the model before training."""
        return self.lines[0]

    @property
    def tuned(self) -> dict[str, Any]:
        """The line of the model that was exported, not the last one under ``keep_best``."""
        return [line for line in self.lines if line["step"] == self.step][-1]


def read_log(run: Path) -> TrainingLog:
    """Of a run's folder, whose fine-tuning is done."""
    text = (run / Adjustment.FILE).read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    chosen = run / Exported.FILE
    step = json.loads(chosen.read_text(encoding="utf-8"))["step"] if bring(chosen) else None
    return TrainingLog(lines, lines[-1]["step"] if step is None else step)
