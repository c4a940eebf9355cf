"""What the README shows is what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from conftest import ROOT

from versatune_ray.config import describe, load

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    assert found is not None
    return found.group(1)


def test_the_example_of_own_data_is_valid_and_the_one_that_is_shipped() -> None:
    shown = yaml.safe_load(block("yaml"))
    assert shown == yaml.safe_load((ROOT / "jobs" / "configs" / "own_data.yaml").read_text(encoding="utf-8"))
    assert list(load([ROOT / "jobs" / "configs" / "own_data.yaml"]).domains) == ["contracts", "support", "code"]


def test_the_python_example_gives_the_shares_that_are_printed() -> None:
    *lines, expression, comment = block("python").strip().splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    np.testing.assert_allclose(eval(expression, names), eval(comment.removeprefix("# "), {"array": np.array}))


def test_every_key_and_file_that_is_named_exists() -> None:
    keys = describe()
    for key in set(re.findall(r"`((?:data|detection|mixture|training|reference|domains)\.[A-Za-z_.]+)", TEXT)):
        if key.endswith((".json", ".py")):
            continue
        assert f"  {key}" in keys, key
    for path in set(re.findall(r"\]\(([\w./]+)\)", TEXT)):
        assert Path(ROOT / path).exists(), path
