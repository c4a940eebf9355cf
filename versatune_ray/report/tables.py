"""Tables of the page: one helper, and the cells that it takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from versatune_ray.report.read import RunData
from versatune_ray.report.writing import ABSENT, change, count

STEADY = 0.0005  # a relative change that reads as 0.0 %, or nearly


@dataclass(frozen=True)
class Cell:
    """One table cell: a text, a smaller note beside it, its tone (``better``, ``worse``, ``clear``,
    or ``aside`` for a line that belongs to the one above), the domain whose colour it carries, and
    a share of 1 as the strength of its shading.
    """

    text: str
    note: str = ""
    tone: str = ""
    swatch: int | None = None
    heat: float | None = None


@dataclass(frozen=True)
class Table:
    """``groups`` are headings over several columns (text, width), ``total`` a last row set apart;
    ``words``: every cell is text, and stands left.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    groups: Sequence[tuple[str, int]] = ()
    total: tuple[Cell, ...] = ()
    words: bool = False


Given = Cell | str | int | None


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Iterable[Given]],
    *,
    groups: Sequence[tuple[str, int]] = (),
    total: Iterable[Given] = (),
    words: bool = False,
) -> Table | None:
    """A table of cells, texts, whole numbers and ``None`` (a dash); without rows, none."""

    def cells(row: Iterable[Given]) -> tuple[Cell, ...]:
        return tuple(one if isinstance(one, Cell) else Cell(_text(one)) for one in row)

    made = tuple(cells(row) for row in rows)
    return Table(caption, tuple(head), made, groups, cells(total), words) if made else None


def _text(given: str | int | None) -> str:
    return ABSENT if given is None else given if isinstance(given, str) else count(given)


def domain_cell(run: RunData, name: str) -> Cell:
    """A domain's name with the swatch of its colour."""
    return Cell(name, swatch=run.index(name))


def loss_change(value: float | None) -> Cell:
    """A relative change of a loss: less is better, what reads as 0.0 % is neither."""
    moved = value if value and abs(value) > STEADY else 0.0
    return Cell(change(value), tone=tone(-moved))


def tone(gain: float) -> str:
    """Of a change for the better (above 0) or the worse."""
    return "better" if gain > 0 else "worse" if gain < 0 else ""


def evenly(total: int, most: int) -> Sequence[int]:
    """At most ``most`` indices from 0 to ``total`` − 1, evenly spaced, first and last among
    them.
    """
    if total <= most:
        return range(total)
    return [round(index * (total - 1) / (most - 1)) for index in range(most)]
