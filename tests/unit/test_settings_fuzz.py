"""A thousand broken configurations: each is taken, or answered with one line that names a key."""

from __future__ import annotations

import copy
import random
import string
from pathlib import Path
from typing import Any

import pytest
import yaml

from versatune_ray.errors import UserError
from versatune_ray.settings import semantics
from versatune_ray.settings.keys import names
from versatune_ray.settings.loading import dump, load

DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
VALID: list[dict[str, Any]] = [
    {
        "run": "a",
        "model": {"path": "m"},
        "domains": {"law": "a.jsonl", "code": {"train": ["b.jsonl"], "description": "programs"}},
        "mixture": {"policy": "expansion", "targets": ["law"], "start": {"law": 70, "code": 30}},
        "training": {"epochs": 2, "lora": {"rank": 4}, "workers": [1, 2], "betas": [0.9, 0.99]},
        "stages": [{"name": "s", "sources": ["law"], "fraction": "1/16"}, {"name": "t"}],
    },
    {
        "detection": {
            "models": ["a/x", {"path": "b/y", "engine": {"replicas": 1}}],
            "judge": {"kind": "http", "path": "j", "http": {"url": "http://h/v1"}},
            "generation": {"max_tokens": 20},
        },
        "mixture": {"preset": "balanced", "options": {}},
        "evaluation": {"benchmarks": {"law": ["arc", {"task": "mmlu", "shots": 1}]}},
    },
    {
        "sweep": {"space": {"mixture.sigma": [0.5, 1]}, "objective": {"gain": 1.0}},
        "study": {"methods": {"uniform": {"mixture.start": "uniform"}}, "seeds": [0, 1]},
        "cofitune": {"layers": ["0%-50%"], "general": ["general"]},
        "reference": {"epochs": 2},
        "microworld": {"facts": 8},
        "mixture": {"policy": "odm", "options": {"alpha": 0.5}},
        "data": {"max_train": {"law": 10}},
    },
    {
        "model": {"path": "m"},
        "domains": {"law": {"train": "a.jsonl", "order": "length"}, "code": "b.jsonl"},
        "mixture": {
            "unit": "tokens",
            "start": {"some": {"share": 0.5, "members": {"law": "2 epochs"}}, "code": 0.5},
            "policy": "schedule",
            "options": {
                "waypoints": [
                    {"at": 0, "shares": {"law": 1, "code": 1}},
                    {"at": "50%", "shares": "proportional"},
                ]
            },
        },
    },
]
ODD: list[Any] = [
    *(None, True, False, 0, -1, 2.5, 10**30, float("nan"), float("inf"), -1e308, "", "no", "1:30"),
    *("x" * 5000, "é\u202e☃", "a\nb", "a\tb", "../..", ".", "/", "~nobody/x", "\u0000"),
    *([], [None], [[1]], {}, {"a": 1}, {"": {"": ""}}, {"train": {}}, [{"name": "law"}] * 2),
]


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) of a tree."""
    inside = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree))
    below = [
        place for _, value in inside if isinstance(value, dict | list) for place in places(value)
    ]
    return [(tree, key) for key, _ in inside] + below


def mutate(rng: random.Random, tree: dict[str, Any]) -> None:
    container, key = rng.choice(places(tree) or [(tree, tree.setdefault("run", "a"))])
    kind = rng.choice(["delete", "retype", "misspell", "nest", "move", "add"])
    if kind == "delete":
        del container[key]
    elif kind == "retype":
        container[key] = copy.deepcopy(rng.choice(ODD))
    elif kind == "nest":
        container[key] = rng.choice([[container[key]], {str(key): container[key]}])
    elif kind == "move":
        tree[str(key)] = copy.deepcopy(container[key])
    elif kind == "misspell" and isinstance(container, dict):
        letter = rng.choice([*string.ascii_letters, "é", ".", "/", "\n", "☃", ""])
        at = rng.randrange(len(key) + 1)
        container[key[:at] + letter + key[at + 1 :]] = container.pop(key)
    else:
        branch = tree
        *above, last = rng.choice(names()).split(".")
        for part in above:
            if not isinstance(branch.get(part), dict):
                branch[part] = {}
            branch = branch[part]
        branch[last] = copy.deepcopy(rng.choice(ODD))


def answer(files: list[Path], overrides: list[str], write: bool = False) -> str | None:
    """None where the configuration is taken (and can be written), else what is wrong with it."""
    try:
        config = load(files, overrides)
        if write:
            dump(config).encode()
        semantics.check(config, semantics.domain_names(config))
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("part", range(4))
def test_every_broken_configuration_is_taken_or_answered_in_one_line(
    part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file, taken = tmp_path / "a.yaml", 0
    for seed in range(part * 250, part * 250 + 250):
        rng = random.Random(seed)
        tree = copy.deepcopy(rng.choice(VALID))
        for _ in range(rng.choice([1, 1, 2, 4])):
            mutate(rng, tree)
        text = yaml.dump(tree, Dumper=DUMPER, allow_unicode=rng.random() < 0.5, sort_keys=False)
        if rng.random() < 0.1:
            text += rng.choice([*text.splitlines(), "run: b", "\t x", "]", "? [a]\n: b", "<<: 1"])
        file.write_text(text, encoding="utf-8", errors="replace")
        told = answer([file], [], write=seed % 8 == 0)
        taken += told is None
        if told is not None:
            assert told.isprintable() and len(told) < 12_000, (seed, told)
            assert any(part in told for part in named(tree)) or "a.yaml" in told, (seed, told)
    assert 10 < taken < 200, "most mutations break something, and some do not"


def named(tree: dict[str, Any]) -> list[str]:
    """The names at the top: every answer begins with one, or with one that is missing."""
    return [*(name if name.isprintable() else repr(name)[1:-1] for name in tree), *names()]


@pytest.mark.parametrize("seed", range(100))
def test_every_override_is_taken_or_answered_in_one_line(seed: int) -> None:
    rng = random.Random(seed)
    values = ["", "[", "{a", ".nan", "~", "'", "&a [*a]", "a: b: c", "!!x y", "\udc80", "9" * 5000]
    key = rng.choice([*names(), "", "=", "..", "a.b.c.d", "stages.0", "domains..train", "☃"])
    told = answer([], [f"{key}={rng.choice(values)}"])
    assert told is None or (told.isprintable() and len(told) < 12_000)
