"""One picture of a run, as an SVG file of its own: its shares before and after, and what it won.

usage: python -m versatune_ray.report.picture RUN -o picture.svg
"""

from __future__ import annotations

import argparse
from pathlib import Path

from markupsafe import escape

from versatune_ray.report.colours import style_rules
from versatune_ray.report.outcome import outcomes, share_ends
from versatune_ray.report.read import RunData, read_run
from versatune_ray.report.writing import change, gain, percent, short

_WIDTH, _ROW, _TOP = 760, 46, 64
_BARS, _WON = (130, 300), (560, 180)  # where a column begins, and how wide it may be
_STYLE = """text{font:14px system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
fill:#1b212b}.s{font-size:12px;fill:#59626f}.h{font-weight:600}rect{fill:var(--c)}.p{opacity:.4}
line{stroke:#59626f}@media(prefers-color-scheme:dark){text{fill:#e5e8ec}.s{fill:#a2abb7}}"""


def picture(run: RunData) -> str:
    """The SVG: per domain its share before (pale) and after, and how far its exact match rose, or
    its held-out loss fell where no questions were asked.

    Raises:
        ValueError: the run has no shares before and after.
    """
    ends, result = share_ends(run), outcomes(run)
    if ends is None:
        raise ValueError(f"{run.name}: no shares before and after; fine-tune first")
    asked = any(row.exact.move is not None for row in result.domains)
    won = {row.domain: row.exact.move if asked else row.loss.relative for row in result.domains}
    largest = max((value or 0 for end in ends for value in end.values()), default=0) or 1
    widest = max((abs(value) for value in won.values() if value is not None), default=0) or 1
    what = "exact match, points" if asked else "held-out loss"
    parts = [
        f'<text class="h" x="0" y="22">{escape(short(run.name))}</text>',
        f'<text class="s" x="{_BARS[0]}" y="48">share of samples, before and after</text>',
        f'<text class="s" x="{_WON[0]}" y="48">what it won: {what}</text>',
    ]
    for k, name in enumerate(run.domains):
        y, before, after = _TOP + k * _ROW, ends[0].get(name) or 0, ends[1].get(name) or 0
        parts.append(f'<g class="d{k}"><text x="0" y="{y + 21}">{escape(short(name, 16))}</text>')
        for place, (share, look) in enumerate(((before, ' class="p"'), (after, ""))):
            wide, at = _BARS[1] * share / largest, y + 2 + 15 * place
            parts.append(f'<rect{look} x="{_BARS[0]}" y="{at}" width="{wide:.1f}" height="13"/>')
            label = f'<text class="s" x="{_BARS[0] + wide + 6:.1f}" y="{at + 11}">'
            parts.append(f"{label}{percent(share)}</text>")
        if (move := won.get(name)) is not None:
            wide = 0.6 * _WON[1] * abs(move) / widest
            parts.append(f'<rect x="{_WON[0]}" y="{y + 9}" width="{wide:.1f}" height="13"/>')
            told = gain(move) if asked else change(move)
            parts.append(f'<text x="{_WON[0] + wide + 6:.1f}" y="{y + 21}">{told}</text>')
        parts.append("</g>")
    height = _TOP + _ROW * len(run.domains)
    style = style_rules(len(run.domains)).replace("@media screen and", "@media") + _STYLE
    size = f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
    title = f"<title>Shares before and after, and what it won: {escape(run.name)}</title>"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">{title}'
    return f"{svg}<style>{style}</style>{''.join(parts)}</svg>\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("-o", "--output", type=Path, default=Path("picture.svg"))
    given = parser.parse_args()
    given.output.write_text(picture(read_run(given.run)), encoding="utf-8")
    print(given.output)


if __name__ == "__main__":
    main()
