"""Shares that a person writes: numbers, epochs of each source, groups whose members divide a share.

| written | meaning |
|---|---|
| ``{law: 3, code: 1}`` | parts of the samples |
| ``{law: 3 epochs, code: 1 epoch}`` | passes over each domain's records; a run without
``training.samples_per_epoch`` is as long as they are |
| ``{legal: {share: 0.4, members: [law, contracts]}, code: 0.6}`` | a group and how its members
divide it: equally, or by parts or epochs, ``members: {law: 3, contracts: 1}``; groups may hold
groups |
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

_EPOCHS = re.compile(r"\s*(\d+(?:\.\d+)?)\s*epochs?\s*")
_GROUP = ("share", "members")


def _check(value: dict[str, Any]) -> dict[str, Any]:
    """Raises ``ValueError`` naming the entry that is none of the three."""
    for name, part in value.items():
        if isinstance(part, Mapping):
            if set(part) != set(_GROUP):
                raise ValueError(f"{name}: a group is written {{share: 0.4, members: [a, b]}}")
            _number(f"{name}.share", part["share"], "a number, which its members divide")
            members = part["members"]
            if isinstance(members, list):
                if not members or not all(isinstance(one, str) for one in members):
                    raise ValueError(f"{name}.members: name at least one domain; found {members}")
            elif isinstance(members, Mapping) and members:
                _check(dict(members))
            else:
                raise ValueError(f"{name}.members: name at least one domain; found {members!r}")
        elif epochs(part) is None:
            _number(name, part)
    given = [epochs(part) is not None for part in value.values()]
    if any(given) and not all(given):
        raise ValueError("write epochs for every one of these, or for none")
    found = leaves(value)
    twice = [name for name in found if found.count(name) > 1]
    if twice:
        raise ValueError(f"{twice[0]} stands in two places")
    return value


Given = Annotated[dict[str, Any], AfterValidator(_check)]


def _number(name: str, value: object, way: str = "a share, or passes as 3 epochs") -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}: {way}; found {value!r}")


def epochs(part: object) -> float | None:
    """The number in ``3 epochs``; None of anything else."""
    found = _EPOCHS.fullmatch(part) if isinstance(part, str) else None
    return float(found[1]) if found else None


def leaves(value: Mapping[str, Any]) -> list[str]:
    """The domains in given shares."""
    found: list[str] = []
    for name, part in value.items():
        if not isinstance(part, Mapping):
            found.append(name)
        elif isinstance(part["members"], Mapping):
            found += leaves(part["members"])
        else:
            found += part["members"]
    return found


def in_epochs(value: Mapping[str, Any]) -> bool:
    """Whether a domain's part is given as epochs, in a group perhaps."""
    return any(
        in_epochs(part["members"])
        if isinstance(part, Mapping) and isinstance(part["members"], Mapping)
        else epochs(part) is not None
        for part in value.values()
    )


def only(value: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Given shares without the domains that are not in ``names``."""
    found: dict[str, Any] = {}
    for name, part in value.items():
        if isinstance(part, Mapping):
            members = part["members"]
            kept: Any = (
                only(members, names)
                if isinstance(members, Mapping)
                else [one for one in members if one in names]
            )
            if kept:
                found[name] = {"share": part["share"], "members": kept}
        elif name in names:
            found[name] = part
    return found


def parts(value: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, float]:
    """Each domain's part of the samples, in no particular unit; with epochs, its samples.

    Raises:
        ValueError: a part is negative, or all are 0.
    """
    found: dict[str, float] = {}
    for name, part in value.items():
        if isinstance(part, Mapping):
            members = part["members"]
            inner = (
                parts(members, sizes)
                if isinstance(members, Mapping)
                else dict.fromkeys(members, 1.0)
            )
            total = sum(inner.values())
            found |= {one: part["share"] * each / total for one, each in inner.items()}
        else:
            passes = epochs(part)
            found[name] = float(part) if passes is None else passes * sizes[name]
    if min(found.values()) < 0 or not 0 < sum(found.values()) < math.inf:
        raise ValueError(f"shares must be ≥ 0 and not all 0; found {dict(value)}")
    return found


def samples(value: object, sizes: Mapping[str, int]) -> float | None:
    """Samples of a run whose shares are given as epochs; None of others."""
    if not isinstance(value, Mapping) or any(epochs(part) is None for part in value.values()):
        return None
    return sum(parts(value, sizes).values())
