"""The job's page: one file without network. The map is drawn by Altair and stands in the page as
SVG; the whole of the drawing is ``drawn_map``.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from versatune_ray.grouping.clusters import Vectors, principal_axes

_POINTS = 2000  # of the map
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: .3rem .8rem; }
td, th { border-bottom: 1px solid #8884; vertical-align: top; } .n { text-align: right; }
svg { max-width: 100%; height: auto; background: #fff; }
pre { white-space: pre-wrap; margin: .3rem 0; }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd; } }
"""


def page(content: Mapping[str, Any], vectors: Vectors, group: NDArray[np.int64]) -> str:
    """The page of ``groups.json``.

    Args:
        vectors: of the sample, [n, d]. group: of each, int [n]; −1: none.
    """
    names = [one["name"] for one in content["domains"]]
    ways = {
        "words": "k-means on weighted counts of words",
        "base": "k-means on mean hidden states of a language model",
        "sentences": "k-means on embeddings of sentences",
        None: "the likeliest label of a judge",
    }
    rows = "".join(
        f"<tr><td>{_text(one['name'])}</td><td class=n>{one['records']:,}</td>"
        f"<td class=n>{100 * one['share']:.1f} %</td><td>{_text(', '.join(one['words']))}</td></tr>"
        for one in content["domains"]
    )
    examples = "".join(
        f"<h3>{_text(one['name'])}</h3>"
        + "".join(f"<pre>{_text(example)}</pre>" for example in one["examples"])
        for one in content["domains"]
    )
    tried = "".join(
        f"<tr><td class=n>{count}</td><td class=n>{score:.3f}</td></tr>"
        for count, score in content["silhouettes"].items()
    )
    silhouettes = (
        f"<h2>Numbers of groups that were tried</h2><table><tr><th class=n>groups</th>"
        f"<th class=n>mean silhouette</th></tr>{tried}</table>"
        if tried
        else ""
    )
    ungrouped = (
        f" {content['ungrouped']:,} are in none: the judge did not answer, or not surely enough."
        if content["ungrouped"]
        else ""
    )
    left_out = "".join(
        f" {count:,} were left out: {_text(reason)}."
        for reason, count in content["left_out"].items()
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Domains</title>"
        f"<style>{_STYLE}</style><h1>{len(names)} domains of {content['records']:,} records</h1>"
        f"<p>Found by {ways[content['embedding']]}.{ungrouped}{left_out}</p>"
        f"<table><tr><th>domain</th><th class=n>records</th><th class=n>share</th>"
        f"<th>most telling words</th></tr>{rows}</table>"
        f"<h2>Map</h2><p>Two principal directions of the vectors of a sample.</p>"
        f"{drawn_map(vectors, group, names)}{silhouettes}"
        f"<h2>The most typical records</h2>{examples}</html>\n"
    )


def drawn_map(vectors: Vectors, group: NDArray[np.int64], names: list[str]) -> str:
    """The sample on its two principal directions, as SVG."""
    import altair
    import vl_convert

    chosen = np.linspace(0, len(vectors) - 1, min(len(vectors), _POINTS)).astype(np.int64)
    centred = vectors[chosen] - vectors[chosen].mean(axis=0)
    places = centred @ principal_axes(centred, 2)
    points = [
        {"x": float(x), "y": float(y), "domain": names[number]}
        for (x, y), number in zip(places, group[chosen], strict=True)
        if number >= 0
    ]
    hidden = altair.Axis(labels=False, ticks=False, grid=False, title=None)
    colour = altair.Color("domain:N", sort=names, scale=altair.Scale(scheme="tableau20"))
    chart = (
        altair.Chart(altair.Data(values=points), width=640, height=440)
        .mark_circle(size=14, opacity=0.6)
        .encode(x=altair.X("x:Q", axis=hidden), y=altair.Y("y:Q", axis=hidden), color=colour)
    )
    drawn: str = vl_convert.vegalite_to_svg(chart.to_dict())
    return drawn


def _text(value: str) -> str:
    return html.escape(value)
