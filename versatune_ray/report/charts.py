"""Charts, made here as SVG and plain boxes: they show without JavaScript, on paper, on a phone and
in the dark.

Nothing in a picture is text or has a colour of its own: labels are HTML beside it, so that it may
stretch to any width, and colours are variables of the style sheet. The page's script adds hover,
zoom and the switching of series; it reads the values back from the paths.

Two builders make the five kinds: ``Plot`` draws lines with bands, areas and dots over two axes;
``Rows`` draws bars, intervals and dots, a row for each name. Both say what their key is, and give
their numbers as a table. Heat maps are tables (``Cell.heat``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, pairwise
from typing import Any, ClassVar, NamedTuple

from versatune_ray.report.tables import Cell, Table, evenly, table
from versatune_ray.report.writing import count, cut, decimal, percent

SIZE = 10_000  # of a picture's own units, each way; the page stretches them
MOST_POINTS = 400  # of a line: more than a screen shows
MOST_LINES = 12  # drawn at first; beyond that nobody can tell them apart
MOST_ROWS = 60  # of a table of numbers
Point = tuple[float, float | None]


class Entry(NamedTuple):
    """Of a key: the class of its colour, its sign, and the group that it switches, if any."""

    colour: str
    sign: str
    text: str
    group: str = ""


@dataclass(frozen=True)
class Axis:
    """From ``low`` to ``high``, of their logarithms where ``log``. ``unit``: ``%`` for shares of 1,
    ``+%`` for changes, ``×`` for multiples.
    """

    title: str
    low: float
    high: float
    unit: str = ""
    log: bool = False

    def at(self, value: float) -> float:
        """Where it lies, from 0 to 1."""
        place = math.log10(value) if self.log else value
        return (place - self.low) / ((self.high - self.low) or 1)

    @property
    def marks(self) -> list[tuple[float, str]]:
        """Place and text of each."""
        values = (log_ticks if self.log else ticks)(self.low, self.high)
        return [(self.at(value), written(value, self.unit)) for value in values]


@dataclass(frozen=True)
class Series:
    """One line or cloud of dots. ``colour`` is a class of the style sheet (``d0``, ``accent``, …),
    ``look`` one of ``line``, ``faint`` (behind the others), ``dashed``, ``dots``, ``open`` (pale
    dots), ``square``; of a ``stepped`` line a value holds until the next. ``tips`` are told at the
    dots; series of one ``group`` are switched together.
    """

    name: str
    points: Sequence[Point]
    colour: str
    look: str = "line"
    group: int = 0
    tips: Sequence[str] = ()
    stepped: bool = False


@dataclass(frozen=True)
class Plot:
    """Series over two axes. ``bands``: (from, to, name, shaded). ``reach``: the least that the x
    axis covers. ``zero``: so does the y axis.
    """

    series: Sequence[Series]
    x: str
    y: str
    unit: str = ""
    x_unit: str = ""
    log: bool = False
    stacked: bool = False
    zero: bool = False
    bands: Sequence[tuple[float, float, str, bool]] = ()
    reach: Sequence[float] = ()

    kind: ClassVar[str] = "plot"

    @cached_property
    def across(self) -> Axis:
        xs = [x for one in self.series for x, _ in one.points] + list(self.reach)
        edge = 0.0 if self.reach else 0.05 * (max(xs) - min(xs)) or 0.5
        return Axis(self.x, min(xs) - edge, max(xs) + edge, self.x_unit)

    @cached_property
    def up(self) -> Axis:
        if self.stacked:
            return Axis(self.y, 0.0, 1.0, self.unit)
        ys = [y for one in self.series for _, y in one.points if y is not None]
        ys = [math.log10(y) for y in ys if y > 0] if self.log else ys
        low, high = min(ys, default=0.0), max(ys, default=1.0)
        edge = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
        bottom = 0.0 if self.zero and low >= 0 else low - edge
        return Axis(self.y, bottom, high + edge, self.unit, self.log)

    @property
    def paths(self) -> Iterator[tuple[Series, str, str]]:
        """What is drawn: its series, SVG path data, and what is told there."""
        below = [0.0] * len(self.series[0].points) if self.stacked else []
        for one in self.series:
            if self.stacked:
                above = [low + (y or 0.0) for low, (_, y) in zip(below, one.points, strict=True)]
                xs = [x for x, _ in one.points]
                edges = _steps(xs, above) + _steps(xs, below)[::-1]
                yield one, "M" + "L".join(self._at(*point) for point in edges) + "Z", ""
                below = above
            elif one.look in ("dots", "open", "square"):
                tips = one.tips or [one.name] * len(one.points)
                for (x, y), tip in zip(one.points, tips, strict=True):
                    if y is not None:
                        yield one, f"M{self._at(x, y)}h0", tip
            elif line := self._line(one):
                yield one, line, ""

    def _line(self, one: Series) -> str:
        parts, before = "", None
        for x, y in one.points:
            if y is None or (self.log and y <= 0):
                before = None
                continue
            if before is not None and one.stepped:
                parts += f"L{self._at(x, before)}"
            parts += f"{'M' if before is None else 'L'}{self._at(x, y)}"
            before = y
        return parts

    def _at(self, x: float, y: float) -> str:
        return f"{round(SIZE * self.across.at(x))} {round(SIZE * (1 - self.up.at(y)))}"

    @property
    def key(self) -> list[Entry]:
        """An entry for each group; of its series the last stands for it."""
        signs = {"open": "dot pale", "dots": "dot", "square": "bar"}
        shown = {one.group: one for one in self.series if one.look != "faint"}
        return [
            Entry(one.colour, signs.get(one.look, "line"), cut(one.name, 40), str(group))
            for group, one in sorted(shown.items())
        ]

    @cached_property
    def quiet(self) -> frozenset[str]:
        """The groups that stay hidden at first: all but the ``MOST_LINES`` that move most."""
        moves = dict.fromkeys((entry.group for entry in self.key), 0.0)
        for one in self.series:
            values = [y for _, y in one.points if y is not None] or [0.0]
            if one.look != "faint":
                moves[str(one.group)] = max(moves[str(one.group)], max(values) - min(values))
        return frozenset(sorted(moves, key=lambda group: -moves[group])[MOST_LINES:])

    def numbers(self, caption: str) -> Table | None:
        """The values of the lines, at most ``MOST_ROWS`` evenly spaced rows."""
        lines = {one.name: dict(one.points) for one in self.series if one.look == "line"}
        steps = sorted({x for points in lines.values() for x in points})
        shown = [steps[k] for k in evenly(len(steps), MOST_ROWS)]
        if len(shown) < len(steps):
            caption += f" ({len(shown)} of {count(len(steps))} rows)"
        write = percent if self.unit.endswith("%") else decimal
        rows = ([count(x), *(write(points.get(x)) for points in lines.values())] for x in shown)
        return table(caption, (self.x, *lines), rows)


def _steps(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """The corners of a line on which a value holds until the next."""
    pairs = list(zip(xs, ys, strict=True))
    corners = ([(x, before), (x, y)] for (_, before), (x, y) in pairwise(pairs))
    return [*pairs[:1], *chain.from_iterable(corners)]


class Mark(NamedTuple):
    """``kind`` is ``bar``, ``pale``, ``interval`` (a line from first to last), ``dot``, ``square``
    or ``diamond`` (at first); ``text`` is its value. Marks lie in lanes, 0 on top.
    """

    kind: str
    first: float
    last: float
    colour: str
    name: str
    text: str = ""
    lane: int = 0


@dataclass(frozen=True)
class Row:
    """One name with its marks."""

    name: str
    marks: Sequence[Mark]
    value: str = ""
    swatch: str = ""


@dataclass(frozen=True)
class Rows:
    """Bars, intervals and dots, a row for each name, over one axis."""

    rows: Sequence[Row]
    x: str
    unit: str = "%"

    kind: ClassVar[str] = "rows"
    quiet: ClassVar[frozenset[str]] = frozenset()
    bands: ClassVar[Sequence[tuple[float, float, str, bool]]] = ()

    @cached_property
    def across(self) -> Axis:
        ends = [end for row in self.rows for mark in row.marks for end in (mark.first, mark.last)]
        low, high = min(ends, default=0.0), max(ends, default=1.0)
        edge = 0.03 * (max(high, 0.0) - min(low, 0.0) or 1.0)
        return Axis(self.x, low - edge if low < 0 else 0.0, max(high, 0.0) + edge, self.unit)

    @property
    def key(self) -> list[Entry]:
        """An entry for each name of marks, in its colour if that is one."""
        found: dict[str, Entry] = {}
        for mark in (mark for row in self.rows for mark in row.marks if mark.kind != "interval"):
            before = found.get(mark.name)
            colour = "muted" if before and before.colour != mark.colour else mark.colour
            found[mark.name] = Entry(colour, mark.kind, mark.name)
        return list(found.values())

    def numbers(self, caption: str, head: str) -> Table | None:
        """The values of all names that each row has once; an interval is the note beside it."""
        texts = [[mark.name for mark in row.marks if mark.kind != "interval"] for row in self.rows]
        names = [entry.text for entry in self.key if all(t.count(entry.text) < 2 for t in texts)]

        def cell(row: Row, name: str) -> Cell | None:
            there = {mark.kind == "interval": mark.text for mark in row.marks if mark.name == name}
            return Cell(there[False], there.get(True, "")) if there else None

        def label(row: Row) -> Cell:
            return Cell(row.name, swatch=int(row.swatch[1:]) if row.swatch else None)

        rows = ([label(row), *(cell(row, name) for name in names)] for row in self.rows)
        return table(caption, (head, *names), rows)


@dataclass(frozen=True)
class Figure:
    """A chart with views to choose from (label, plot), and the same numbers as tables. ``facts``
    fill its sentence in ``texts.html.jinja``.
    """

    id: str
    title: str
    views: Sequence[tuple[str, Plot | Rows]]
    tables: Sequence[Table | None] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> list[Entry]:
        """Of all views."""
        entries = (entry for _, view in self.views for entry in view.key)
        return list({(entry.text, entry.group): entry for entry in entries}.values())


def over_time(id: str, title: str, views: Sequence[tuple[str, Plot]], **facts: Any) -> Figure:
    """A figure of lines, with their numbers."""
    shown = [view for view in views if not view[1].stacked]
    tables = [plot.numbers(f"{title}: {label}".rstrip(": ")) for label, plot in shown]
    return Figure(id, title, views, tables, facts)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, ``about`` as many as asked for."""
    raw = (high - low) / about
    if raw <= 0 or not math.isfinite(raw):
        return [low]
    size = 10.0 ** math.floor(math.log10(raw))
    step = next((size * nice for nice in (1, 2, 2.5, 5) if size * nice >= raw), size * 10)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between 10^``low`` and 10^``high``."""
    least, most = 10.0**low, 10.0**high
    powers = range(math.floor(low), math.ceil(high) + 1)
    found = [nice * 10.0**power for power in powers for nice in (1, 2, 5)]
    found = [value for value in found if least <= value <= most]
    return found if len(found) > 2 else ticks(least, most)


def written(value: float, unit: str = "") -> str:
    """A mark of an axis."""
    if unit.endswith("%"):
        sign = "+" if unit.startswith("+") and value > 0 else ""
        return f"{sign}{100 * value:.4g}\u202f%".replace("-", "−")
    return f"{value:,.6g}{unit}".replace("-", "−")


def thin(rows: Sequence[Sequence[float | None]], most: int = MOST_POINTS) -> Sequence[int]:
    """At most ``most`` indices of ``rows`` that keep the ends and, in each of evenly cut stretches,
    the rows with the lowest and the highest value of all.
    """
    if len(rows) <= most:
        return range(len(rows))
    there = [[value for value in row if value is not None] or [0.0] for row in rows]
    kept, stretches = {0, len(rows) - 1}, max((most - 2) // 2, 1)
    for number in range(stretches):
        part = range(len(rows) * number // stretches, len(rows) * (number + 1) // stretches)
        if part:
            kept.add(min(part, key=lambda index: min(there[index])))
            kept.add(max(part, key=lambda index: max(there[index])))
    return sorted(kept)
