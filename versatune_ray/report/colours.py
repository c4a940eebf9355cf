"""A colour and a dash for each domain, the same in every chart, for light and dark."""

from __future__ import annotations

from collections.abc import Sequence

# Eight hues, searched so that each pair stays apart under protan, deutan and tritan vision and
# stands out from its background; beyond eight they return lighter or darker, with another dash.
_LIGHT = ("#2f5eb3", "#df710c", "#0e8768", "#c5639e", "#7c6800", "#3f8fd0", "#53328a", "#6f1d35")
_DARK = ("#5d90c6", "#ea8b31", "#45be90", "#ff9ac8", "#dbc44f", "#7fcbff", "#997ded", "#c75a72")
# towards white or black, a round of hues each
_LIGHT_SHIFTS, _DARK_SHIFTS = (0, 0.3, -0.3, 0.45, -0.5, 0.15), (0, 0.4, -0.2, 0.6, -0.3, 0.2)
_DASHES = ("none", "2 3", "8 3 2 3", "12 4", "4 4", "12 3 2 3 2 3", "1 4")


def style_rules(count: int) -> str:
    """CSS with a colour ``--d0`` … and a dash for each of ``count`` domains, light and dark."""

    def colours(hues: Sequence[str], shifts: Sequence[float]) -> str:
        pairs = ((hues[k % 8], shifts[k // 8 % len(shifts)]) for k in range(count))
        return "".join(f"--d{k}:{_shifted(*pair)};" for k, pair in enumerate(pairs))

    dashes = [_DASHES[k // 8 % len(_DASHES)] for k in range(count)]
    rules = (f".d{k}{{--c:var(--d{k});stroke-dasharray:{dash}}}" for k, dash in enumerate(dashes))
    dark = colours(_DARK, _DARK_SHIFTS)
    media = f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return f":root{{{colours(_LIGHT, _LIGHT_SHIFTS)}}}{media}{''.join(rules)}"


def _shifted(hue: str, shift: float) -> str:
    aim, parts = 255 if shift > 0 else 0, [int(hue[place : place + 2], 16) for place in (1, 3, 5)]
    return "#" + "".join(f"{round(part + (aim - part) * abs(shift)):02x}" for part in parts)
