"""Charts, made here as SVG and plain boxes: they show without JavaScript, on paper, on a phone and
in the dark.

Nothing in a picture is text or has a colour of its own: labels are HTML beside it, so that it may
stretch to any width, and colours are variables of the style sheet. The page's script adds hover,
zoom and the switching of series; it reads the values back from the paths.

Two builders make the five kinds: ``Plot`` draws lines with bands, areas and dots over two axes;
``Rows`` draws bars, intervals and dots, a row for each name. Heat maps are tables (``Cell.heat``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from versatune_ray.report.tables import Table
from versatune_ray.report.writing import cut

# Eight hues, searched so that each pair stays apart under protan, deutan and tritan vision and
# stands out from its background; beyond eight they return lighter or darker, with another dash.
_LIGHT = ("#2f5eb3", "#df710c", "#0e8768", "#c5639e", "#7c6800", "#3f8fd0", "#53328a", "#6f1d35")
_DARK = ("#5d90c6", "#ea8b31", "#45be90", "#ff9ac8", "#dbc44f", "#7fcbff", "#997ded", "#c75a72")
# towards white or black, a round of hues each
_LIGHT_SHIFTS, _DARK_SHIFTS = (0, 0.3, -0.3, 0.45, -0.5, 0.15), (0, 0.4, -0.2, 0.6, -0.3, 0.2)
_DASHES = ("", "2 3", "8 3 2 3", "12 4", "4 4", "12 3 2 3 2 3", "1 4")
_SIZE = 10_000  # of a picture's own units, each way; the page stretches them
MOST_POINTS = 400  # of a line: more than a screen shows
MOST_LINES = 12  # drawn at first; beyond that nobody can tell them apart
Point = tuple[float, float | None]


def style_rules(count: int) -> str:
    """CSS with a colour ``--d0`` … for each of ``count`` domains, light and dark."""

    def colours(hues: Sequence[str], shifts: Sequence[float]) -> str:
        pairs = ((hues[k % 8], shifts[k // 8 % len(shifts)]) for k in range(count))
        return "".join(f"--d{k}:{_shifted(*pair)};" for k, pair in enumerate(pairs))

    classes = "".join(f".d{k}{{--c:var(--d{k})}}" for k in range(count))
    dark = colours(_DARK, _DARK_SHIFTS)
    media = f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return f":root{{{colours(_LIGHT, _LIGHT_SHIFTS)}}}{media}{classes}"


def _shifted(hue: str, shift: float) -> str:
    aim, parts = 255 if shift > 0 else 0, [int(hue[place : place + 2], 16) for place in (1, 3, 5)]
    return "#" + "".join(f"{round(part + (aim - part) * abs(shift)):02x}" for part in parts)


@dataclass(frozen=True)
class Series:
    """One line or cloud of dots. ``colour`` is a class of the style sheet (``d0``, ``accent``, …),
    ``look`` one of ``line``, ``steps`` (a value holds until the next), ``faint`` (behind the
    others), ``dashed``, ``dots``, ``open`` (pale dots), ``square``. ``tips`` are told at the dots;
    series of one ``group`` are switched together.
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
    """Series over two axes. ``unit``: ``%`` for shares of 1, ``+%`` for changes. ``bands``: (from,
    to, name, shaded). ``reach``: the least that the x axis covers.
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

    kind = "plot"

    @cached_property
    def span(self) -> tuple[float, float, float, float]:
        """Both axes: least and largest x, least and largest y (its logarithm, if it is so)."""
        xs = [x for one in self.series for x, _ in one.points] + list(self.reach)
        ys = [y for one in self.series for _, y in one.points if y is not None]
        if self.stacked:
            return min(xs), max(xs), 0.0, 1.0
        if self.log:
            ys = [math.log10(y) for y in ys if y > 0]
        low, high = min(ys, default=0.0), max(ys, default=1.0)
        edge = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
        low, high = (low if self.zero and low >= 0 else low - edge), high + edge
        wide = 0.0 if self.reach else 0.05 * (max(xs) - min(xs)) or 0.5
        return min(xs) - wide, max(xs) + wide, min(low, 0.0) if self.zero else low, high

    @property
    def x_marks(self) -> list[tuple[str, str]]:
        """Place in percent and text of the marks of the x axis."""
        low, high, _, _ = self.span
        return _marks(ticks(low, high), low, high, self.x_unit)

    @property
    def y_marks(self) -> list[tuple[str, str]]:
        """The same from the top of the y axis."""
        _, _, low, high = self.span
        values = log_ticks(low, high) if self.log else ticks(low, high)
        places = [(math.log10(value) if self.log else value) for value in values]
        made = _marks(places, low, high, self.unit, [written(v, self.unit) for v in values])
        return [(f"{100 - float(place):.2f}", text) for place, text in made]

    @property
    def paths(self) -> list[dict[str, str]]:
        """What is drawn: SVG path data (``d``) with its class, its name and its group."""
        if self.stacked:
            return list(self._areas())
        made = []
        for one in self.series:
            classes = f"{one.look} {one.colour}"
            shared = {"name": one.name, "group": str(one.group), "dash": self._dash(one)}
            if one.look in ("dots", "open", "square"):
                tips = one.tips or [one.name] * len(one.points)
                for (x, y), tip in zip(one.points, tips, strict=True):
                    path = {"d": f"M{self._at(x, y)}h0", "class": classes, "tip": tip}
                    made += [shared | path] if y is not None else []
            elif d := self._line(one):
                made.append(shared | {"d": d, "class": classes, "tip": ""})
        return made

    def _line(self, one: Series) -> str:
        parts, before = [], None
        for x, y in one.points:
            if y is None or (self.log and y <= 0):
                before = None
                continue
            if before is None:
                parts.append(f"M{self._at(x, y)}")
            else:
                parts += [f"L{self._at(x, before)}"] if one.look == "steps" or one.stepped else []
                parts.append(f"L{self._at(x, y)}")
            before = y
        return "".join(parts)

    def _areas(self) -> list[dict[str, str]]:
        made, below = [], [0.0] * len(self.series[0].points)
        for one in self.series:
            above = [low + (y or 0.0) for low, (_, y) in zip(below, one.points, strict=True)]
            edges = []
            for heights in (above, below):
                points: list[Point] = []
                for (x, _), height in zip(one.points, heights, strict=True):
                    points += [(x, points[-1][1])] if points else []
                    points.append((x, height))
                edges.append(points)
            d = "L".join(self._at(x, y) for x, y in [*edges[0], *edges[1][::-1]])
            about = {"name": one.name, "group": str(one.group), "dash": "", "tip": ""}
            made.append(about | {"d": f"M{d}Z", "class": f"area {one.colour}"})
            below = above
        return made

    def _at(self, x: float, y: float | None) -> str:
        left, right, low, high = self.span
        height = math.log10(y) if self.log and y else y or 0.0
        across, up = (x - left) / ((right - left) or 1), (height - low) / ((high - low) or 1)
        return f"{round(_SIZE * across)} {round(_SIZE * (1 - up))}"

    @property
    def shades(self) -> list[dict[str, str]]:
        """The bands: where they begin, how wide they are, and where their names stand."""
        left, right, _, _ = self.span
        whole = (right - left) or 1
        return [
            {
                "x": f"{_SIZE * (first - left) / whole:.0f}",
                "width": f"{_SIZE * (last - first) / whole:.0f}",
                "middle": f"{100 * ((first + last) / 2 - left) / whole:.2f}",
                "name": cut(name, 28),
                "shaded": "shaded" if shaded else "",
            }
            for first, last, name, shaded in self.bands
        ]

    @staticmethod
    def _dash(one: Series) -> str:
        if one.look == "dashed":
            return "6 4"
        domain = one.colour.removeprefix("d")
        return _DASHES[int(domain) // 8 % len(_DASHES)] if domain.isdigit() else ""


@dataclass(frozen=True)
class Row:
    """One name with its marks: (kind, from, to, colour, tip) with kinds ``bar``, ``pale``,
    ``interval`` (a line from … to …), ``dot``, ``square``, ``diamond`` (at from). Each mark lies in
    a lane of its own number (the last item), 0 on top.
    """

    name: str
    marks: Sequence[tuple[str, float, float, str, str, int]]
    value: str = ""
    swatch: str = ""
    note: str = ""


@dataclass(frozen=True)
class Rows:
    """Bars, intervals and dots, a row for each name, over one axis."""

    rows: Sequence[Row]
    x: str
    unit: str = "%"
    zero: bool = True

    kind = "rows"

    @cached_property
    def span(self) -> tuple[float, float]:
        ends = [end for row in self.rows for mark in row.marks for end in mark[1:3]]
        low, high = min(ends, default=0.0), max(ends, default=1.0)
        low, high = (min(low, 0.0), max(high, 0.0)) if self.zero else (low, high)
        edge = 0.03 * ((high - low) or 1.0)
        return (low - edge if low < 0 else low), high + edge

    @property
    def marks(self) -> list[tuple[str, str]]:
        """Place in percent and text of the marks of the axis."""
        low, high = self.span
        return _marks(ticks(low, high, 4), low, high, self.unit)

    @property
    def origin(self) -> str:
        """Where 0 lies, if it lies within."""
        low, high = self.span
        return f"{-100 * low / (high - low):.2f}" if low < 0 < high else ""

    def drawn(self, row: Row) -> list[dict[str, str]]:
        """The marks of a row with their places in percent."""
        low, high = self.span
        whole = high - low
        made = []
        for kind, first, last, colour, tip, lane in row.marks:
            start, end = sorted((first, last))
            left, width = 100 * (start - low) / whole, 100 * (end - start) / whole
            place = {"left": f"{left:.2f}", "width": f"{width:.2f}", "lane": str(lane)}
            made.append({"class": f"{kind} {colour}", "tip": tip} | place)
        return made

    @staticmethod
    def lanes(row: Row) -> int:
        return 1 + max((mark[-1] for mark in row.marks), default=0)


@dataclass(frozen=True)
class Figure:
    """A chart with views to choose from (label, plot), and the same numbers as tables. ``facts``
    fill its sentence in ``texts.html.jinja``. ``key``: (colour class, sign, text, group or "" where
    nothing is to be switched).
    """

    id: str
    title: str
    views: Sequence[tuple[str, Plot | Rows]]
    tables: Sequence[Table | None] = ()
    key: Sequence[tuple[str, str, str, str]] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    quiet: frozenset[str] = frozenset()


def series_key(plot: Plot) -> tuple[list[tuple[str, str, str, str]], frozenset[str]]:
    """A key with an entry for each group of a plot's lines, and the groups that stay hidden at
    first: all but the ``MOST_LINES`` that move most.
    """
    moves: dict[str, float] = {}
    key = []
    for one in plot.series:
        if str(one.group) not in moves and one.look != "faint":
            values = [y for _, y in one.points if y is not None]
            moves[str(one.group)] = max(values, default=0.0) - min(values, default=0.0)
            key.append((one.colour, "line", cut(one.name, 40), str(one.group)))
    quiet = sorted(moves, key=lambda group: -moves[group])[MOST_LINES:]
    return key, frozenset(quiet)


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
    return f"{value:,.6g}".replace("-", "−")


def _marks(
    places: Sequence[float], low: float, high: float, unit: str, texts: Sequence[str] = ()
) -> list[tuple[str, str]]:
    shown = texts or [written(place, unit) for place in places]
    whole = (high - low) or 1
    return [
        (f"{100 * (place - low) / whole:.2f}", text)
        for place, text in zip(places, shown, strict=True)
    ]


def thin(rows: Sequence[Sequence[float | None]], most: int = MOST_POINTS) -> Sequence[int]:
    """At most ``most`` indices of ``rows`` that keep the ends and, in each of evenly cut stretches,
    the rows with the lowest and the highest value of all.
    """
    if len(rows) <= most:
        return range(len(rows))
    ends: list[tuple[float, float]] = []
    for row in rows:
        there = [value for value in row if value is not None] or [0.0]
        ends.append((min(there), max(there)))
    kept, stretches = {0, len(rows) - 1}, max((most - 2) // 2, 1)
    for number in range(stretches):
        first, last = (len(rows) * edge // stretches for edge in (number, number + 1))
        if first < last:
            kept.add(min(range(first, last), key=lambda index: ends[index][0]))
            kept.add(max(range(first, last), key=lambda index: ends[index][1]))
    return sorted(kept)
