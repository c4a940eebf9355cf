"""The job's page, of the report's own parts: what the groups are, and where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from versatune_ray.grouping.clusters import Vectors, principal_axes
from versatune_ray.report.charts import Figure, Plot, Series
from versatune_ray.report.page import fill
from versatune_ray.report.tables import Cell, Given, table
from versatune_ray.report.writing import count, listing, percent, short

_POINTS = 1000  # of the map
_WAYS = {
    "words": "k-means on weighted counts of words",
    "base": "k-means on mean hidden states of a language model",
    "sentences": "k-means on embeddings of sentences",
    None: "the likeliest label of a judge",
}


def page(content: Mapping[str, Any], vectors: Vectors, group: NDArray[np.int64]) -> str:
    """The page of ``groups.json``.

    Args:
        vectors: of the sample, [n, d]. group: of each, int [n]; −1: none.
    """
    domains = content["domains"]
    names = [one["name"] for one in domains]
    sizes: list[list[Given]] = [
        [
            Cell(short(one["name"]), swatch=number),
            count(one["records"]),
            percent(one["share"]),
            listing(one["words"], 12),
        ]
        for number, one in enumerate(domains)
    ]
    tried = [[str(many), f"{score:.3f}"] for many, score in content["silhouettes"].items()]
    return fill(
        "groups.html.jinja",
        len(names),
        records=content["records"],
        way=_WAYS[content["embedding"]],
        ungrouped=content["ungrouped"],
        left_out=content["left_out"],
        sizes=table(
            "Domains", ("Domain", "records", "share", "most telling words"), sizes, words=True
        ),
        figures=[placed(vectors, group, names)] if (group >= 0).any() else [],
        tried=table("Numbers of groups that were tried", ("groups", "mean silhouette"), tried),
        groups=domains,
    )


def placed(vectors: Vectors, group: NDArray[np.int64], names: list[str]) -> Figure:
    """The sample on its two principal directions."""
    chosen = np.linspace(0, len(vectors) - 1, min(len(vectors), _POINTS)).astype(np.int64)
    centred = vectors[chosen] - vectors[chosen].mean(axis=0)
    places, of = centred @ principal_axes(centred, 2), group[chosen]
    series = [
        Series(
            name,
            [(float(x), float(y)) for x, y in places[of == number]],
            f"d{number}",
            "dots",
            number,
        )
        for number, name in enumerate(names)
        if (of == number).any()
    ]
    plot = Plot(series, "first principal direction", "second")
    return Figure("map", "Where the records lie", [("", plot)])
