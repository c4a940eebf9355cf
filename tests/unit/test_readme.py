"""What the README shows is what the code does."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT

from versatune_ray.settings.keys import describe
from versatune_ray.settings.loading import load

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    assert found is not None
    return found.group(1)


def test_the_example_of_own_data_is_valid_and_the_one_that_is_shipped() -> None:
    shown = yaml.safe_load(block("yaml"))
    assert shown == yaml.safe_load(
        (ROOT / "jobs" / "configs" / "own_data.yaml").read_text(encoding="utf-8")
    )
    assert list(load([ROOT / "jobs" / "configs" / "own_data.yaml"]).domains) == [
        "contracts",
        "support",
        "code",
    ]


def test_the_python_example_gives_the_shares_that_are_printed() -> None:
    *lines, expression, comment = block("python").strip().splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    np.testing.assert_allclose(
        eval(expression, names), eval(comment.removeprefix("# "), {"array": np.array})
    )


def test_every_key_and_file_that_is_named_exists() -> None:
    keys = describe()
    for key in set(
        re.findall(
            r"`((?:data|detection|evaluation|mixture|training|reference|domains|study|sweep|replay)\.[A-Za-z_.]+)",
            TEXT,
        )
    ):
        if key.endswith((".json", ".py")):
            continue
        assert f"  {key}" in keys, key
    for path in set(re.findall(r"\]\(([\w./]+)\)", TEXT)):
        assert Path(ROOT / path).exists(), path


def test_every_link_within_the_page_leads_somewhere() -> None:
    anchors = {
        re.sub(r"[^\w -]", "", line.lstrip("# ")).strip().lower().replace(" ", "-")
        for line in TEXT.splitlines()
        if line.startswith("#")
    }
    for anchor in set(re.findall(r"\]\(#([\w-]+)\)", TEXT)):
        assert anchor in anchors, anchor


def commands() -> list[str]:
    """Every line of a shell block that calls one of the jobs."""
    # a line may go on
    blocks = [
        re.sub(r"\\\n\s*", "", shown) for shown in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    ]
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if "jobs/" in line and ".py" in line]


@pytest.mark.parametrize("line", commands())
def test_every_job_that_is_shown_takes_what_it_is_shown_with(line: str) -> None:
    """With the example of own data for ``my.yaml``; that jobs then do what they say is tested where
    they are.
    """
    words = shlex.split(line)
    place = next(index for index, word in enumerate(words) if re.fullmatch(r"jobs/\w+\.py", word))
    assert (ROOT / words[place]).is_file()
    rest = words[place + 1 :]
    files = [Path(rest[index + 1]) for index, word in enumerate(rest) if word == "--config"]
    own = ROOT / "jobs" / "configs" / "own_data.yaml"
    found = [own if file.name in ("my.yaml", "best.yaml") else ROOT / file for file in files]
    load(found, [word for word in rest if "=" in word and not word.startswith("-")])


def test_the_notebook_example_uses_what_there_is() -> None:
    import versatune_ray
    from versatune_ray import api

    shown = next(
        one
        for one in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
        if "from versatune_ray import" in one
    )
    tree = ast.parse(shown)
    (imported,) = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert [name.name for name in imported.names] == sorted(versatune_ray.__all__)
    results = {
        "detect": api.Detected,
        "evaluate": api.Evaluated,
        "sweep": api.Swept,
        "tuned": api.Tuned,
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            of = (
                node.value.func.id
                if isinstance(node.value, ast.Call)
                else node.value.id
                if isinstance(node.value, ast.Name)
                else None
            )
            assert of is None or node.attr in {
                field.name for field in dataclasses.fields(results[of])
            }, ast.unparse(node)
