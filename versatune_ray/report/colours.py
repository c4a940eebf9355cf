"""One colour and one dash pattern per domain, the same in every chart.

Eight hues, searched so that each pair stays apart under protan, deutan and tritan vision and stands
out from its background; there is one set for light and one for dark pages. Beyond eight domains the
hues return lighter or darker and with another dash.
"""

from __future__ import annotations

LIGHT = ("#2f5eb3", "#df710c", "#0e8768", "#c5639e", "#7c6800", "#3f8fd0", "#53328a", "#6f1d35")
DARK = ("#5d90c6", "#ea8b31", "#45be90", "#ff9ac8", "#dbc44f", "#7fcbff", "#997ded", "#c75a72")
# Towards white (+) or black (−), one per round of hues; kept away from the background.
_LIGHT_SHIFTS = (0.0, 0.3, -0.3, 0.45, -0.5, 0.15, -0.15)
_DARK_SHIFTS = (0.0, 0.4, -0.2, 0.6, -0.3, 0.2, -0.1)
_DASHES = (
    "solid",
    "2px,2px",
    "8px,3px,2px,3px",
    "12px,4px",
    "4px,4px",
    "12px,3px,2px,3px,2px,3px",
    "1px,4px",
)


def dash(index: int) -> str:
    """The dash pattern of the domain at ``index``."""
    return _DASHES[index // len(LIGHT) % len(_DASHES)]


def style_rules(count: int) -> str:
    """CSS that defines ``--d0`` … for ``count`` domains, light and dark."""
    light = "".join(
        f"--d{index}:{_shifted(LIGHT, _LIGHT_SHIFTS, index)};" for index in range(count)
    )
    dark = "".join(f"--d{index}:{_shifted(DARK, _DARK_SHIFTS, index)};" for index in range(count))
    swatches = "".join(f".d{index}{{background:var(--d{index})}}" for index in range(count))
    return f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}{swatches}"


def _shifted(hues: tuple[str, ...], shifts: tuple[float, ...], index: int) -> str:
    hue = hues[index % len(hues)]
    shift = shifts[index // len(hues) % len(shifts)]
    aim = 255 if shift > 0 else 0
    parts = [int(hue[place : place + 2], 16) for place in (1, 3, 5)]
    return "#" + "".join(f"{round(part + (aim - part) * abs(shift)):02x}" for part in parts)
