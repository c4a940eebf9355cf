"""Keys of CoFiTune: which parameters may move, and how the search for them goes."""

from __future__ import annotations

import re

from pydantic import field_validator

from versatune_ray.settings.common import Paths, Section, setting

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FFN = ("gate_proj", "up_proj", "down_proj")
GROUPS = {"attention": ATTENTION, "ffn": FFN}
_RANGE = re.compile(r"(\d+(?:\.\d+)?)%\s*-\s*(\d+(?:\.\d+)?)%")
_NUMBERS = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")


def layer_range(text: str, depth: int) -> range:
    """The decoder layers, counted from 0, that ``25%-50%`` (of the depth; ends rounded half up) or ``4-7`` (both included) stand for.

    Raises:
        ValueError: it cannot be read, is empty, or lies beyond the depth.
    """
    percent, numbers = _RANGE.fullmatch(text.strip()), _NUMBERS.fullmatch(text.strip())
    if percent:
        first, last = (int(depth * float(end) / 100 + 0.5) for end in percent.groups())
    elif numbers:
        first, last = int(numbers[1]), int(numbers[2] or numbers[1]) + 1
    else:
        raise ValueError(f"layers as 25%-50% of the depth, or 4-7 by number from 0; found {text!r}")
    if not 0 <= first < last <= depth:
        raise ValueError(f"{text!r} holds no layer of a model that has {depth}")
    return range(first, last)


class Trainable(Section):
    """The parameters that train; all others are frozen, and neither in the optimizer nor in checkpoints."""

    layers: str | None = setting(None, "decoder layers that train: 25%-50% of the depth, or 4-7 by number from 0; none: all")
    modules: Paths = setting(list, "projections that train: attention, ffn, or by name as up_proj; none: whole layers")

    @field_validator("layers")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is not None:
            layer_range(value, 10**9 if "%" not in value else 100)
        return value

    @property
    def everything(self) -> bool:
        return self.layers is None and not self.modules

    @property
    def projections(self) -> tuple[str, ...]:
        """Names of the projections; empty: whole layers."""
        return tuple(name for module in self.modules for name in GROUPS.get(module, (module,)))


class CoFiTune(Section):
    """The coarse search over layers and modules, and the fine stage's unit importance (jobs/cofitune.py)."""

    layers: list[str] = setting(lambda: ["0%-25%", "25%-50%", "50%-75%", "75%-100%"], "ranges of layers that are tried first, whole")
    modules: dict[str, list[list[str]]] = setting(
        lambda: {"attention": [["q_proj", "k_proj"], ["v_proj", "o_proj"]], "ffn": [["gate_proj"], ["up_proj", "down_proj"]]},
        "groups that are tried next, in the best range; and of the best group, the projections that are tried last",
    )
    trials: int | None = setting(None, "most fine-tunings; none: the whole tree", ge=1)
    concurrency: int | None = setting(None, "trials at the same time; none: as many as the cluster has room for", ge=1)
    general: Paths = setting(list, "domains on whose records unit importance is measured, for the soft mask; none: no mask")
    records: int = setting(512, "records of each of them", "records", ge=1)
    dropout: float = setting(0.003, "dropout of attention weights in the two forward passes that are compared", gt=0, lt=1)

    @field_validator("layers")
    @classmethod
    def _ranges(cls, value: list[str]) -> list[str]:
        for text in value:
            Trainable(layers=text)
        if not value:
            raise ValueError("at least one range is needed")
        return value
