"""How numbers and foreign text are written on the page. ``None``, like a number that is not finite,
becomes a dash.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
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

_SIGNS = {"sigma": "σ", "delta": "δ", "epsilon": "ε", "strength": "λ"}
SIGNS = {f"mixture.{name}": sign for name, sign in _SIGNS.items()}


def count(value: float | None) -> str:
    """A whole number with thousands separators: ``12,345``."""
    return ABSENT if not _finite(value) else f"{value:,.0f}".replace("-", _MINUS)


def decimal(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A plain number: ``2.314``; a difference with its sign: ``+0.012``."""
    if value is None or not _finite(value):
        return ABSENT
    shown = f"{value:{'+' if sign else ''},.{digits}f}"
    nothing = sign and float(shown.replace(",", "")) == 0
    return (shown[1:] if nothing else shown).replace("-", _MINUS)


def signed_decimal(value: float | None, digits: int = 3) -> str:
    """A difference: ``+0.012``."""
    return decimal(value, digits, sign=True)


def percent(value: float | None, digits: int = 1, sign: bool = False) -> str:
    """A share between 0 and 1 as a percentage: ``41.3 %``."""
    shown = decimal(None if value is None else 100 * value, digits, sign)
    return shown if shown == ABSENT else f"{shown}{_THIN}%"


def signed_percent(value: float | None, digits: int = 1) -> str:
    """A relative change with its sign: ``−12.5 %``, ``+3.0 %``."""
    return percent(value, digits, sign=True)


def signed_points(value: float | None, digits: int = 1) -> str:
    """A difference of two shares in percentage points: ``+3.0``."""
    return decimal(None if value is None else 100 * value, digits, sign=True)


def interval(low: float | None, high: float | None, digits: int = 1) -> str:
    """An interval of shares: ``40.1–42.6 %``."""
    if low is None or high is None or not (_finite(low) and _finite(high)):
        return ABSENT
    return f"{100 * low:.{digits}f}–{100 * high:.{digits}f}{_THIN}%"


def significant(value: float | None, digits: int = 3) -> str:
    """A number of unknown size: ``0.0123``, ``1,230``."""
    if value is None or not _finite(value):
        return ABSENT
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return (
        f"{round(value, places):,.{max(places, 0)}f}".replace("-", _MINUS)
        if abs(value) >= 1e-6
        else f"{value:.1e}"
    )


def ordinal(number: int) -> str:
    """A place in a row: ``1st``, ``2nd``, ``11th``."""
    ending = "th" if number // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def duration(seconds: float | None) -> str:
    """Time a person would say: ``0.4 s``, ``3 min 12 s``, ``2 h 05 min``."""
    if seconds is None or not _finite(seconds):
        return ABSENT
    if seconds < 59.95:
        return f"{seconds:.1f}{_THIN}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{_THIN}min {whole % 60:02d}{_THIN}s"
    whole = round(seconds / 60)
    return f"{whole // 60:,}{_THIN}h {whole % 60:02d}{_THIN}min"


def plural(n: int, thing: str) -> str:
    """``1 trial``, ``1,200 trials``."""
    return f"{count(n)} {thing}{'s' if n != 1 else ''}"


def listing(names: Sequence[str], limit: int = 6) -> str:
    """Names in a sentence: ``a, b and c``; a long list ends with how many more there are."""
    shown = list(names)
    if len(shown) > limit:
        shown = [*shown[: limit - 1], f"{len(names) - limit + 1} more"]
    return (
        shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else ""
    )


def setting(value: Any) -> str:
    """The value of a configuration key: ``0.05``, ``law, code``, ``law 0.3, code 0.7``; a dash for
    an empty list.
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {setting(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(setting(item) for item in value) or "–"
    if isinstance(value, float) and abs(value) < 1e-3 and value:
        return f"{value:g}"
    return str(value)


def cut(text: str, limit: int) -> str:
    """``text``, or its first ``limit`` characters and an ellipsis."""
    return text if len(text) <= limit else text[:limit].rstrip() + " …"


def clean(value: Any) -> Any:
    """Make parsed JSON or YAML printable: odd characters become U+FFFD, numbers that are not finite
    become ``None``.
    """
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\ufffd", value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value


def without_places(value: Any) -> Any:
    """Strings without the folders of one machine: ``/home/me/models/tiny`` is ``…/models/tiny``."""
    if isinstance(value, str):
        return _PLACE.sub(lambda found: "…/" + "/".join(found[0].split("/")[-2:]), value)
    if isinstance(value, dict):
        return {without_places(key): without_places(item) for key, item in value.items()}
    return [without_places(item) for item in value] if isinstance(value, list) else value


def one_line(error: Exception) -> str:
    """The message of an error as part of a sentence."""
    return str(without_places(clean(" ".join(str(error).split()))))


def short(name: str, limit: int = 40) -> str:
    """A domain's name on one line, for a sentence or a label."""
    return cut(" ".join(name.split()), limit)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def sign(key: str) -> str:
    """The sign of a key, or the last part of its name."""
    return SIGNS.get(key) or short(key.rpartition(".")[2])


def called(key: str) -> str:
    """A key for people: its sign, ``judge`` for ``detection.judge.path``, ``batch size``."""
    return SIGNS.get(key) or key.removesuffix(".path").rpartition(".")[2].replace("_", " ")
