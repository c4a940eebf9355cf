"""What the READMEs show is what the code does: commands, keys, links, examples; and their size."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT

import versatune_ray
from versatune_ray import api
from versatune_ray.mixture import Feedback, apply_policy
from versatune_ray.settings import Config
from versatune_ray.settings.keys import describe
from versatune_ray.settings.loading import load

PAGES = [
    ROOT / "README.md",
    *(
        page
        for folder in ("jobs", "versatune_ray", "tests")
        for page in sorted((ROOT / folder).rglob("*.md"))
    ),
]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
# the first screen; tables of studies, as they were printed; a page per folder
LINES = {"README.md": 190, "jobs/configs/README.md": 350, "tests/bench/README.md": 200}
OWN = ROOT / "jobs" / "configs" / "own_data.yaml"
QUICKSTART = ROOT / "jobs" / "configs" / "quickstart.yaml"


def blocks(language: str) -> list[tuple[str, str]]:
    """Page and content of every block of code in a language."""
    return [
        (page, found)
        for page, text in TEXTS.items()
        for found in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    ]


def without_blocks(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", TEXTS)
def test_a_page_stays_short_and_narrow(page: str) -> None:
    lines = TEXTS[page].splitlines()
    assert len(lines) <= LINES.get(page, 130)
    assert [(number, line) for number, line in enumerate(lines, 1) if len(line) > 120] == []


@pytest.mark.parametrize("page", TEXTS)
def test_every_row_of_a_table_has_as_many_cells_as_its_head(page: str) -> None:
    columns = None
    for line in TEXTS[page].splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else None
        assert columns is None or cells is None or cells == columns, line
        columns = cells


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_leads_somewhere(page: str) -> None:
    for path, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([\w-]+))?\)", TEXTS[page]):
        if "://" in path:
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), path
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{path}#{anchor}"


@pytest.mark.parametrize("page", TEXTS)
def test_every_file_of_a_folder_that_is_listed_is_there(page: str) -> None:
    for cell in re.findall(r"^\| (`[^|]*) \|", TEXTS[page], re.MULTILINE):
        for name in re.findall(r"`([\w.*]+(?:\.(?:py|yaml|jinja|css|json)|/))`", cell):
            assert any((ROOT / page).parent.glob(name.rstrip("/"))), name


def is_key(name: str, known: dict[str, str]) -> bool:
    """Whether it is a key, a branch of keys, or lies under one whose names are the user's."""
    parts = name.split(".")
    heads = [".".join(parts[:count]) for count in range(1, len(parts))]
    named = [".".join([*parts[:at], "NAME", *parts[at + 1 :]]) for at in range(1, len(parts))]
    return (
        name in known
        or any(key.startswith(f"{name}.") for key in known)
        or any(key in known for key in named)
        or any("{name:" in known.get(head, "") for head in heads)
    )


@pytest.mark.parametrize("page", TEXTS)
def test_every_key_that_is_named_exists(page: str) -> None:
    known = dict(re.findall(r"^  (\S+) +(\S.*) = ", describe(), re.MULTILINE))
    sections = "|".join({key.partition(".")[0] for key in known if "." in key})
    for name in re.findall(rf"`((?:{sections})(?:\.\w+)+)", TEXTS[page]):
        assert name.endswith((".py", ".json", ".yaml")) or is_key(name, known), name


def commands() -> list[str]:
    """Every line of a shell block that calls a job, or the training without Ray."""
    lines = [
        line.partition("  #")[0].strip()
        for _, block in blocks("bash")
        for line in re.sub(r"\\\n\s*", "", block).splitlines()  # a line may go on
    ]
    return [
        line
        for line in dict.fromkeys(lines)
        if re.search(r"jobs/(\w+\.py|quickstart)|-m versatune_ray\.training", line)
    ]


@pytest.mark.parametrize("line", commands())
def test_every_job_takes_what_it_is_shown_with(
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the example of own data for files that a user makes; that jobs then do what they say is
    tested where they are.
    """
    monkeypatch.chdir(ROOT)
    words = shlex.split(line)
    place = next(
        number
        for number, word in enumerate(words)
        if word.startswith("jobs/") or word == "versatune_ray.training"
    )
    arguments = [
        str(OWN) if before == "--config" and Path(word).name in ("my.yaml", "best.yaml") else word
        for before, word in zip(words[place:], words[place + 1 :], strict=False)
    ]
    job = "jobs/pipeline.py" if words[place] == "jobs/quickstart" else words[place]
    if job == "versatune_ray.training":
        files = arguments[1::2] if arguments[:1] == ["--config"] else []
        assert load(files[:1], [word for word in arguments if "=" in word]).run
        return
    if job == "jobs/report.py":  # has no configuration to print
        parse = argparse.ArgumentParser.parse_args

        def parsed(*given: Any) -> None:
            assert parse(*given).runs
            sys.exit(0)

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    else:
        arguments.append("--print-config")
    monkeypatch.setattr(sys, "argv", [job, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / job), run_name="__main__")
    assert ended.value.code == 0, capsys.readouterr().err


def test_the_example_of_own_data_is_the_one_that_is_shipped_and_needs_no_judge() -> None:
    shown = re.search(r"```yaml\n(.*?)```", TEXTS["README.md"], re.DOTALL)
    assert shown is not None
    assert yaml.safe_load(shown.group(1)) == yaml.safe_load(OWN.read_text(encoding="utf-8"))
    config = load([OWN])
    assert list(config.domains) == ["contracts", "support", "code"]
    assert (config.mixture.start, config.mixture.policy) == ("uniform", "balanced")
    assert config.detection.judge.path is None


@pytest.mark.parametrize(("page", "block"), blocks("yaml"))
def test_every_configuration_that_is_shown_is_valid(page: str, block: str, tmp_path: Path) -> None:
    file = tmp_path / "shown.yaml"
    file.write_text(block, encoding="utf-8")
    found = load([file] if "domains:" in block else [QUICKSTART, file])
    assert isinstance(found, Config)


def test_the_paper_is_one_override_away_from_the_example() -> None:
    (overrides,) = re.findall(r"`(mixture\.preset=paper [^`]*)`", TEXTS["README.md"])
    config = load([OWN], overrides.split())
    assert (config.mixture.start, config.mixture.policy) == ("detected", "versatune")
    assert config.detection.judge.path == "Qwen/Qwen2.5-7B-Instruct"


def python_block(containing: str) -> str:
    (found,) = [block for _, block in blocks("python") if containing in block]
    return found


def test_the_update_of_shares_gives_those_that_are_printed() -> None:
    *lines, expression, comment = python_block("import Feedback, VersaTune").strip().splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    np.testing.assert_allclose(
        eval(expression, names), eval(comment.removeprefix("# "), {"array": np.array})
    )


def test_the_policy_of_your_own_is_one() -> None:
    names: dict[str, Any] = {"__name__": "my_policies"}
    sys.modules["my_policies"] = type(sys)("my_policies")  # where a dataclass looks itself up
    try:
        exec(python_block("# my_policies.py"), names)
    finally:
        del sys.modules["my_policies"]
    feedback = Feedback(step=1, loss=[1.0, 2.0], previous_loss=[2.0, 2.0])
    guard, shares = apply_policy(names["Improving"](), [0.5, 0.5], feedback)
    # only the first got better: half of its share stays, half goes where the gain is
    assert guard is None and shares.tolist() == [0.75, 0.25]


def test_notebooks_use_what_there_is() -> None:
    shown = [block for _, block in blocks("python") if "from versatune_ray import" in block]
    results = {
        "detect": api.Detected,
        "evaluate": api.Evaluated,
        "measured": api.Evaluated,
        "sweep": api.Swept,
        "tuned": api.Tuned,
    }
    imported: set[str] = set()
    for tree in map(ast.parse, shown):
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                imported |= {name.name for name in node.names}
            if isinstance(node, ast.Attribute):
                value = node.value
                of = (
                    value.func.id
                    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name)
                    else value.id
                    if isinstance(value, ast.Name)
                    else None
                )
                assert of is None or node.attr in {
                    field.name for field in dataclasses.fields(results[of])
                }, ast.unparse(node)
    assert imported == set(versatune_ray.__all__)
