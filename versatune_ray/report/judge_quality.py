"""What the page says of a judge: how good it is where the domain is known, and what it likes."""

from __future__ import annotations

from typing import Any

from versatune_ray.report.data import RunData
from versatune_ray.report.detections import Detection, JudgeQuality
from versatune_ray.report.tables import Cell, Table, domain_cell
from versatune_ray.report.writing import (
    count,
    decimal,
    ordinal,
    percent,
    short,
)


def judge_section(run: RunData, group: list[Detection], quality: JudgeQuality) -> dict[str, Any]:
    """How good a judge is, and of which models."""
    said = quality_sentence(quality)
    return {
        "models": [detection.called for detection in group],
        "table": quality_table(run, group[0].domains, quality),
        "sentence": said,
    }


def quality_table(run: RunData, domains: list[str], quality: JudgeQuality) -> Table:
    """Mean probability of every domain (columns) on records of every domain (rows)."""
    rows = []
    for index, name in enumerate(domains):
        shaded = [Cell(percent(value, 0), heat=value) for value in quality.confusion[index]]
        right = [Cell(percent(quality.recall[index], 0))] if quality.recall else []
        rows.append((domain_cell(run, name), *shaded, *right, Cell(count(quality.records[index]))))
    head = (
        "True domain",
        *(short(name, 24) for name in domains),
        *(["right"] if quality.recall else []),
        "records",
    )
    groups = (("", 1), ("judged as", len(domains)), ("", 2 if quality.recall else 1))
    return Table("The judge on records whose domain is known", head, tuple(rows), groups)


def quality_sentence(quality: JudgeQuality) -> str:
    """What the table's numbers come to."""
    said = (
        "A row is what the judge makes of records of one domain: the mean probability of each "
        "domain."
    )
    if quality.accuracy is not None:
        said += (
            f" Its most probable domain is right for {percent(quality.accuracy)} of "
            f"{count(sum(quality.records))} records."
        )
    if quality.log_loss is not None:
        chance = (
            f" against {decimal(quality.chance, 2)} by chance" if quality.chance is not None else ""
        )
        said += f" Log loss {decimal(quality.log_loss, 2)} nats{chance}; lower is better."
    if quality.mass is not None:
        said += (
            f" On average {percent(quality.mass, 0)} of its raw probability lies on the options "
            f"that it was given."
        )
    return said


def positions(detection: Detection) -> Table | None:
    """What the option in each place of the list got, where the order of the options was
    permuted.
    """
    found = detection.positions
    if found is None:
        return None
    k = len(found.share)
    errors = found.standard_error or [None] * k
    cells = [
        Cell(percent(share), f"± {100 * error:.1f}" if error is not None else "")
        for share, error in zip(found.share, errors, strict=True)
    ]
    caption = (
        f"Mean probability by place in the list of options: {percent(1 / k)} each if the judge has "
        f"no liking for a place"
    )
    head = ("Place", *(ordinal(place) for place in range(1, k + 1)))
    return Table(caption, head, ((Cell("probability"), *cells),))
