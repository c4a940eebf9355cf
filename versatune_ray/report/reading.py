"""How one file of a run becomes a typed value, or else one plain sentence that says why it did
not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from versatune_ray.report.writing import clean

Number = float | None  # null, NaN and infinity are all "not measured"


class Record(BaseModel):
    """A JSON object of a run's file; keys that the page does not know are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


@dataclass
class Problems:
    """Why parts of a run are not shown: sentences per part, and the parts of which no file is there
    at all.
    """

    said: dict[str, str] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)

    def add(self, part: str, sentence: str, *, absent: bool = False) -> None:
        """Note a sentence after those that the part has already."""
        self.said[part] = f"{self.said[part]} {sentence}" if part in self.said else sentence
        if absent:
            self.absent.add(part)


_Value = TypeVar("_Value")


def attempt(read: Callable[[], _Value], name: str, part: str, problems: Problems) -> _Value | None:
    """What ``read`` gives, or ``None`` and a sentence about the file ``name``."""
    try:
        return read()
    except ValidationError as error:
        first = error.errors()[0]
        problems.add(
            part,
            f"{name} is not as expected: {'.'.join(map(str, first['loc'])) or 'top level'}: "
            f"{first['msg']}.",
        )
    except (ValueError, OSError, RecursionError) as error:
        problems.add(part, f"{name} could not be read: {one_line(error)}.")
    return None


def text_of(file: Path) -> str:
    """The text of a file, whatever bytes are in it."""
    return file.read_text(encoding="utf-8", errors="replace")


def one_line(error: Exception) -> str:
    """The message of an error as part of a sentence."""
    return str(clean(" ".join(str(error).split())))
