"""Keys of a stage: a part of a fine-tuning with records, shares, policy and recipe of its own."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from versatune_ray.settings.common import MOST_SAMPLES, Paths, Section, setting
from versatune_ray.settings.given import Given
from versatune_ray.settings.mixture import PolicyName, StartName

_WRITTEN = re.compile(r"\d+/\d+|(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?")


def _fraction(value: float | str) -> float | str:
    try:
        # an exponent of a billion would take hours to write out
        valid = _WRITTEN.fullmatch(str(value)) is not None and 0 <= Fraction(str(value)) <= 1
    except ZeroDivisionError:
        valid = False
    if not valid:
        raise ValueError(f"a fraction within 0 and 1, as 1/16 or 0.0625; found {value!r}")
    return value


Part = Annotated[float | str, AfterValidator(_fraction)]
Count = Annotated[int, Field(ge=0)]


class Stage(Section):
    """One of ``stages``, which follow each other on the same weights. What it leaves out is as in
    ``mixture`` and ``training``, but for ``training.samples_per_epoch``, which is that of a run
    without stages.
    """

    name: str = setting(
        ...,
        "of the stage, for the report and for dotted keys: stages.NAME.epochs=2",
        pattern=r"^[A-Za-z0-9][\w-]*$",
    )
    sources: Paths = setting(list, "domains it trains on; none: all")
    records: Count | dict[str, Count] | None = setting(
        None,
        "records used of each source at most: one number, or one per domain; the same ones in "
        "every epoch",
        "records",
    )
    fraction: Part | dict[str, Part] | None = setting(
        None,
        "or a fraction of each source's records, rounded half up: one, or one per domain, as 1/16",
    )
    rehearse: Part = setting(
        0.0,
        "k of DMT: the fraction of what earlier stages used of their other sources that is mixed "
        "in again",
    )
    start: StartName | Given | None = setting(
        None, "shares it starts with; none: mixture.start, over its sources"
    )
    policy: PolicyName | None = setting(None, "how they follow the losses; none: mixture.policy")
    options: dict[str, Any] | None = setting(
        None,
        "settings of this policy, as mixture.options; none: those where the policy is "
        "mixture.policy, else its defaults",
    )
    epochs: Annotated[float, Field(gt=0)] | None = setting(
        None, "passes of its samples_per_epoch; none: training.epochs", "epochs"
    )
    samples_per_epoch: Annotated[int, Field(ge=1)] | None = setting(
        None, "none: all records it uses", "samples"
    )
    learning_rate: Annotated[float, Field(gt=0)] | None = setting(
        None, "peak rate; none: training.learning_rate"
    )
    batch_size: Annotated[int, Field(ge=1, le=MOST_SAMPLES)] | None = setting(
        None, "none: training.batch_size", "samples"
    )
    fresh: bool = setting(
        True,
        "begin with a new optimizer and a schedule of its own; false: go on with those of the "
        "stage before",
    )

    @model_validator(mode="after")
    def _one_count(self) -> Stage:
        if self.records is not None and self.fraction is not None:
            both = isinstance(self.records, Mapping) and isinstance(self.fraction, Mapping)
            if not both or self.records.keys() & self.fraction.keys():  # type: ignore[union-attr]
                raise ValueError(
                    f"records={self.records} and fraction={self.fraction}: write one of them for "
                    f"each source"
                )
        return self

    @property
    def rehearses(self) -> bool:
        return Fraction(str(self.rehearse)) > 0

    def count(self, name: str, size: int, rehearsed: bool = False) -> int:
        """How many of a domain's ``size`` records it uses; ``rehearsed``: k of them, unless it has
        a number or fraction of its own.
        """
        kept = self.rehearse if rehearsed else 1
        records = (
            self.records.get(name)
            if isinstance(self.records, dict)
            else None
            if rehearsed
            else self.records
        )
        fraction = (
            self.fraction.get(name)
            if isinstance(self.fraction, dict)
            else None
            if rehearsed
            else self.fraction
        )
        return (
            min(records, size)
            if records is not None
            else half_up(kept if fraction is None else fraction, size)
        )


def half_up(fraction: float | str, size: int) -> int:
    """``fraction`` of ``size``, rounded half up, in exact arithmetic: 1/256 of 110,142 is 430."""
    return math.floor(Fraction(str(fraction)) * size + Fraction(1, 2))
