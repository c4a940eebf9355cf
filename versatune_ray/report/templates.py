"""The templates of this folder: pages, in which all that is put in is escaped, and plain words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from versatune_ray.report import writing

_FILTERS = (
    "change count cut decimal duration gain listing percent plural points setting short "
    "significant within"
)


def filled(name: str, values: Mapping[str, Any]) -> str:
    """A template with its values."""
    return _environment().get_template(name).render(values)


def sentences(name: str, values: Mapping[str, Any]) -> list[str]:
    """What a template of plain text says, in which each but the first begins with ¶."""
    said = filled(name, values).split("¶")
    return [re.sub("[ \n]+", " ", one).strip() for one in said]


@cache
def resource(name: str) -> str:
    """A file of this folder."""
    return resources.files("versatune_ray.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FunctionLoader(resource),
        autoescape=lambda name: name is None or ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    made.filters |= {name: getattr(writing, name) for name in _FILTERS.split()}
    made.filters["place"] = lambda part: f"{100 * part:.2f}%"
    return made
