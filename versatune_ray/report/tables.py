"""Tables of the page: one helper, and the cells that it takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from versatune_ray.report.read import RunData
from versatune_ray.report.writing import ABSENT

MOST_ROWS = 60
STEADY = 0.0005  # a relative change that reads as 0.0 %, or nearly
_NOTHING = ("", "0", ABSENT)


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
    groups: tuple[tuple[str, int], ...] = ()
    total: tuple[Cell, ...] = ()
    words: bool = False


Given = Cell | str | None


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[Given]],
    *,
    groups: Sequence[tuple[str, int]] = (),
    total: Sequence[Given] = (),
    words: bool = False,
    sparse: bool = False,
) -> Table | None:
    """A table of cells, texts and ``None`` (a dash); without rows, none. A ``sparse`` one leaves
    out the columns that hold nothing but zeros and dashes.
    """
    made = [_cells(row) for row in rows]
    if not made:
        return None
    last, kept = _cells(total), list(range(len(head)))
    if sparse:
        kept = [k for k in kept if not k or any(row[k].text not in _NOTHING for row in made)]
    return Table(
        caption,
        tuple(head[k] for k in kept),
        tuple(tuple(row[k] for k in kept) for row in made),
        tuple(groups),
        tuple(last[k] for k in kept) if last else (),
        words,
    )


def _cells(row: Sequence[Given]) -> list[Cell]:
    return [one if isinstance(one, Cell) else Cell(ABSENT if one is None else one) for one in row]


def domain_cell(run: RunData, name: str) -> Cell:
    """A domain's name with the swatch of its colour."""
    return Cell(name, swatch=run.index(name))


def tone(change: float | None, *, clear: bool = True, loss: bool = False) -> str:
    """``better`` or ``worse``; nothing for a change that is none or not ``clear``. Of a ``loss``,
    less is better, and a change that would read as 0.0 % is none.
    """
    if change is None or abs(change) <= STEADY * loss or not change or not clear:
        return ""
    return "better" if (change < 0) == loss else "worse"


def evenly(total: int, most: int) -> Sequence[int]:
    """At most ``most`` indices from 0 to ``total`` − 1, evenly spaced, first and last among
    them.
    """
    if total <= most:
        return range(total)
    return [round(index * (total - 1) / (most - 1)) for index in range(most)]
