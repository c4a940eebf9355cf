"""The shape of the house: what may import what, and how large a file may be."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "versatune_ray"
# From the bottom up: who stands higher may import who stands lower.
FLOORS = (
    "errors",
    "mixture",
    "settings",
    "runs",
    "runtime",
    "domains",
    "detection",
    "microworld",
    "training",
    "evaluation",
    "report",
    "pipeline",
    "grouping",
    "tuning",
    "api",
    "cli",
    "commands",
    "versatune_ray",
)
LONGEST = 350  # lines of a file


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


@cache
def imported(module: str) -> frozenset[str]:
    """All that a module imports, wherever in it: late imports and ``TYPE_CHECKING`` count."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = names & FILES.keys()
            found |= submodules if submodules == names else {node.module, *submodules}
    return frozenset(found)


def ours(module: str) -> list[str]:
    return sorted(imported(module) & FILES.keys() - {module})


def floor(module: str) -> int:
    return FLOORS.index([*module.split("."), ""][1] or module)


def test_arrows_point_down() -> None:
    up = [
        f"{module} → {other}"
        for module in FILES
        for other in ours(module)
        if floor(other) > floor(module)
    ]
    assert up == []


@pytest.mark.parametrize(
    ("room", "allowed"),
    [("mixture", {"mixture", "errors"}), ("settings", {"settings", "mixture", "errors"})],
)
def test_the_lowest_rooms_need_no_other(room: str, allowed: set[str]) -> None:
    for module in FILES:
        if module.split(".")[1:2] == [room]:
            rooms = {other.split(".")[1] for other in ours(module)}
            assert rooms <= allowed, module
            if room == "mixture":
                assert not {name.split(".")[0] for name in imported(module)} & {"ray", "torch"}


def circles(module: str, path: tuple[str, ...], seen: set[str]) -> Iterator[str]:
    if module in path:
        yield " → ".join((*path[path.index(module) :], module))
    elif module not in seen:
        for other in ours(module):
            yield from circles(other, (*path, module), seen)
        seen.add(module)


def test_no_modules_import_each_other_in_a_circle() -> None:
    seen: set[str] = set()
    assert [circle for module in FILES for circle in circles(module, (), seen)] == []


def test_private_doors_of_ray_stand_in_one_file() -> None:
    private = ("ray._", "ray.train.v2._", "ray.llm._")
    users = {
        module for module in FILES if any(name.startswith(private) for name in imported(module))
    }
    assert users <= {"versatune_ray.runtime.private_ray"}


def test_few_files_lie_loose() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 5


def test_no_file_is_long() -> None:
    long = {
        str(file.relative_to(PACKAGE))
        for file in FILES.values()
        if len(file.read_text(encoding="utf-8").splitlines()) > LONGEST
    }
    assert not long


def test_the_walk_names_files_that_are_there() -> None:
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_]+/[a-z_]+\.py)`", text))
    assert len(named) > 25 and [name for name in named if not (PACKAGE / name).is_file()] == []
    rooms = set(re.findall(r"^([a-z]+)/ ", text, re.MULTILINE))
    assert rooms == {name for name in FLOORS if (PACKAGE / name).is_dir()}
    assert len(text.splitlines()) <= 130
