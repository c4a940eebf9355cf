"""Keys of CoFiTune: which parameters may move, and how the search for them goes."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from versatune_ray.settings.common import Paths, Section, nearest, setting

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FFN = ("gate_proj", "up_proj", "down_proj")
GROUPS = {"attention": ATTENTION, "ffn": FFN}
_RANGE = re.compile(r"(\d+(?:\.\d+)?)%\s*-\s*(\d+(?:\.\d+)?)%")
_NUMBERS = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")


def layer_range(text: str, depth: int) -> range:
    """The decoder layers, counted from 0, that ``25%-50%`` (of the depth; ends rounded half up) or
    ``4-7`` (both included) stand for.

    Raises:
        ValueError: it cannot be read, is empty, or lies beyond the depth.
    """
    low, high, percent = _ends(text)
    first, last = (
        (int(depth * low / 100 + 0.5), int(depth * high / 100 + 0.5))
        if percent
        else (int(low), int(high) + 1)
    )
    if first >= last or last > depth:
        raise ValueError(
            f"{text!r} holds {'no layer' if first >= last else 'layers beyond the last'} of a "
            f"model that has {depth}"
        )
    return range(first, last)


def _ends(text: str) -> tuple[float, float, bool]:
    """First and last of a range, and whether they are percentages of the depth."""
    percent, numbers = _RANGE.fullmatch(text.strip()), _NUMBERS.fullmatch(text.strip())
    if percent:
        low, high = float(percent[1]), float(percent[2])
        if not low < high <= 100:
            raise ValueError("the first end has to be below the second, and that at most 100%")
        return low, high, True
    if not numbers:
        raise ValueError("layers as 25%-50% of the depth, or 4-7 by number from 0")
    low, high = float(numbers[1]), float(numbers[2] or numbers[1])
    if low > high:
        raise ValueError("the first number is above the second")
    return low, high, False


def _layers(value: Any) -> Any:
    """A range as it is written; one layer may be a plain number."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str):
        _ends(text)
    return text


Layers = Annotated[str, BeforeValidator(_layers)]


class Trainable(Section):
    """The parameters that train; all others are frozen, and neither in the optimizer nor in
    checkpoints.
    """

    layers: Layers | None = setting(
        None, "decoder layers that train: 25%-50% of the depth, or 4-7 by number from 0; none: all"
    )
    modules: Paths = setting(
        list, "projections that train: attention, ffn, or by name as up_proj; none: whole layers"
    )

    @property
    def everything(self) -> bool:
        return self.layers is None and not self.modules

    @property
    def projections(self) -> tuple[str, ...]:
        """Names of the projections; empty: whole layers."""
        return tuple(name for module in self.modules for name in GROUPS.get(module, (module,)))


class CoFiTune(Section):
    """The coarse search over layers and modules, and the fine stage's unit importance
    (jobs/cofitune.py).
    """

    layers: Annotated[list[Layers], Field(min_length=1)] = setting(
        lambda: ["0%-25%", "25%-50%", "50%-75%", "75%-100%"],
        "ranges of layers that are tried first, whole",
    )
    modules: dict[str, list[list[str]]] = setting(
        lambda: {
            "attention": [["q_proj", "k_proj"], ["v_proj", "o_proj"]],
            "ffn": [["gate_proj"], ["up_proj", "down_proj"]],
        },
        "groups that are tried next, in the best range; and of the best group, the projections "
        "that are tried last",
    )
    trials: int | None = setting(None, "most fine-tunings; none: the whole tree", ge=1)
    concurrency: int | None = setting(
        None, "trials at the same time; none: as many as the cluster has room for", ge=1
    )
    general: Paths = setting(
        list,
        "domains on whose records unit importance is measured, for the soft mask; none: no mask",
    )
    records: int = setting(512, "records of each of them", "records", ge=1)
    dropout: float = setting(
        0.003,
        "dropout of attention weights in the two forward passes that are compared",
        gt=0,
        lt=1,
    )

    @field_validator("modules")
    @classmethod
    def _known(cls, value: dict[str, list[list[str]]]) -> dict[str, list[list[str]]]:
        for group, projections in value.items():
            if group not in GROUPS:
                raise ValueError(f"groups are {' and '.join(GROUPS)}; found {group!r}")
            for name in (name for names in projections for name in names):
                if name not in GROUPS[group]:
                    raise ValueError(
                        f"{name!r} is no projection of {group}; {nearest(name, GROUPS[group])}"
                    )
        return value
