"""What a training run computes. By itself, because the driver and Ray Train's controller load it,
which need not wait for transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from versatune_ray.domains import DomainPaths
from versatune_ray.settings import Config
from versatune_ray.settings.recipe import StagePlan


@dataclass(frozen=True)
class Job:
    """``folder`` is the run's ``finetune/`` folder, ``importance`` that of units, float32 [output
    units] by the projection's name, for ``SoftMask``.
    """

    config: Config
    model: str
    paths: Mapping[str, DomainPaths]
    stages: Sequence[StagePlan]
    folder: Path
    importance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return self.stages[-1].last

    def stage_at(self, step: int) -> int:
        """Number of the stage that ``step`` steps have come to; where one ends and the next begins,
        the one that ends.
        """
        return next(number for number, stage in enumerate(self.stages) if step <= stage.last)
