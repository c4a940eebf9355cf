"""How numbers and foreign text are written on the page. ``None``, like a number that is not finite,
becomes a dash.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ABSENT = "–"
_THIN = "\u202f"  # narrow no-break space between number and unit
_MINUS = "−"

# A lone surrogate cannot be written as UTF-8, HTML refuses control characters, and a direction
# override turns round all that follows.
_UNPRINTABLE = re.compile(
    "[\ud800-\udfff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)
_PLACE = re.compile(r"(?<![\w:/.…<])/(?:[\w.@+~-]+/)+[\w.@+~*-]*")
_DIGEST = re.compile("[0-9a-f]{12,}")  # what a cached model's folder is called
_SIGNS = {"sigma": "σ", "delta": "δ", "epsilon": "ε", "strength": "λ"}
SIGNS = {f"mixture.{name}": sign for name, sign in _SIGNS.items()}


def decimal(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A plain number: ``2.314``; a difference with its sign: ``+0.012``."""
    if value is None or not math.isfinite(value):
        return ABSENT
    shown = f"{value:{'+' * sign},.{digits}f}"
    nothing = float(shown.replace(",", "")) == 0
    return (shown.lstrip("+-") if nothing else shown).replace("-", _MINUS)


def count(value: float | None) -> str:
    """A whole number with thousands separators: ``12,345``."""
    return decimal(value, 0)


def percent(value: float | None, digits: int = 1, sign: bool = False) -> str:
    """A share between 0 and 1 as a percentage: ``41.3 %``."""
    shown = points(value, digits, sign)
    return shown if shown == ABSENT else f"{shown}{_THIN}%"


def points(value: float | None, digits: int = 1, sign: bool = False) -> str:
    """A share, or a difference of two, in percentage points: ``3.0``."""
    return decimal(None if value is None else 100 * value, digits, sign)


def change(value: float | None) -> str:
    """A relative change: ``−12.5 %``, ``+3.0 %``."""
    return percent(value, sign=True)


def gain(value: float | None) -> str:
    """A difference of two shares in percentage points: ``+3.0``."""
    return points(value, sign=True)


def within(error: float | None, digits: int = 1) -> str:
    """An error of a share, in points: ``± 3.0``; of none, nothing."""
    return "" if error is None else f"± {points(error, digits)}"


def interval(low: float | None, high: float | None) -> str:
    """An interval of shares: ``40.1–42.6 %``."""
    ends = points(low), percent(high)
    return ABSENT if ABSENT in ends else "–".join(ends)


def significant(value: float | None, digits: int = 3) -> str:
    """A number of unknown size: ``0.0123``, ``1,230``."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if abs(value) < 1e-6:
        return f"{value:.1e}" if value else "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return decimal(round(value, places), max(places, 0))


def duration(seconds: float | None) -> str:
    """Time a person would say: ``0.4 s``, ``3 min 12 s``, ``2 h 05 min``."""
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    if seconds < 59.95:
        return f"{seconds:.1f}{_THIN}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{_THIN}min {rest:02d}{_THIN}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,}{_THIN}h {minutes:02d}{_THIN}min"


def plural(n: int, thing: str) -> str:
    """``1 trial``, ``1,200 trials``."""
    return f"{count(n)} {thing}{'s' * (n != 1)}"


def listing(names: Sequence[str], limit: int = 6) -> str:
    """Names in a sentence: ``a, b and c``; a long list ends with how many more there are."""
    shown = list(names)
    if len(shown) > limit:
        shown = [*shown[: limit - 1], f"{len(names) - limit + 1} more"]
    return " and ".join(part for part in (", ".join(shown[:-1]), *shown[-1:]) if part)


def setting(value: Any) -> str:
    """The value of a configuration key: ``0.05``, ``law, code``, ``law 0.3, code 0.7``; a dash for
    an empty list.
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {setting(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(setting(item) for item in value) or ABSENT
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        return f"{value:g}"
    return str(value)


def sign(key: str) -> str:
    """The sign of a key, or the last part of its name."""
    return SIGNS.get(key) or short(key.rpartition(".")[2])


def called(key: str) -> str:
    """A key for people: its sign, ``judge`` for ``detection.judge.path``, ``batch size``."""
    return sign(key.removesuffix(".path")).replace("_", " ")


def cut(text: str, limit: int) -> str:
    """``text``, or its first ``limit`` characters and an ellipsis."""
    return text if len(text) <= limit else text[:limit].rstrip() + " …"


def short(name: str, limit: int = 40) -> str:
    """A domain's name on one line, for a sentence or a label."""
    return cut(" ".join(name.split()), limit)


def clean(value: Any) -> Any:
    """Make parsed JSON or YAML printable: odd characters become U+FFFD, numbers that are not finite
    become ``None``.
    """
    return _walked(value, lambda text: _UNPRINTABLE.sub("\ufffd", text))


def without_places(value: Any) -> Any:
    """Strings without the folders of one machine: ``/home/me/models/tiny`` is ``…/models/tiny``."""

    def ends(found: re.Match[str]) -> str:
        folder, name = found[0].split("/")[-2:]
        return f"…/{name}" if _DIGEST.fullmatch(folder) else f"…/{folder}/{name}"

    return _walked(value, lambda text: _PLACE.sub(ends, text))


def _walked(tree: Any, text: Callable[[str], str]) -> Any:
    if isinstance(tree, str):
        return text(tree)
    if isinstance(tree, float):
        return tree if math.isfinite(tree) else None
    if isinstance(tree, dict):
        return {_walked(key, text): _walked(item, text) for key, item in tree.items()}
    return [_walked(item, text) for item in tree] if isinstance(tree, list | tuple) else tree


def one_line(error: Exception) -> str:
    """The message of an error as part of a sentence."""
    return str(without_places(clean(" ".join(str(error).split()))))
