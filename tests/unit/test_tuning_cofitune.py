"""How the search walks down its tree; a stand-in answers with scores instead of training. Real
trials: tests/ray/test_cofitune.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from versatune_ray.errors import UserError
from versatune_ray.settings import CoFiTune
from versatune_ray.settings.loading import load
from versatune_ray.tuning.cofitune import LAYERS, MODULES, check_cofitune, search

SCORES = {
    ("25%-50%",): 3.0,
    ("75%-100%",): 2.0,
    ("25%-50%", "ffn"): 5.0,
    ("25%-50%", "attention"): 4.0,
    ("25%-50%", "gate_proj"): 1.0,
}


class Trials:
    """Remembers what was trained, level by level; what is in no table of scores gets 0, and what is
    in ``fails`` none.
    """

    def __init__(self, fails: tuple[str, ...] = ()):
        self.levels: list[list[tuple[str, ...]]] = []
        self.fails = fails

    def __call__(self, children: Mapping[str, dict[str, Any]]) -> dict[str, float]:
        called = {name: (changes[LAYERS], *changes[MODULES]) for name, changes in children.items()}
        self.levels.append(list(called.values()))
        return {
            name: SCORES.get(key, 0.0) for name, key in called.items() if key[-1] not in self.fails
        }


def test_only_the_best_branch_is_expanded() -> None:
    trials = Trials()
    best = search(CoFiTune(), trials)
    assert trials.levels == [
        [("0%-25%",), ("25%-50%",), ("50%-75%",), ("75%-100%",)],
        [("25%-50%", "attention"), ("25%-50%", "ffn")],
        [("25%-50%", "gate_proj"), ("25%-50%", "up_proj", "down_proj")],
    ]
    assert [one[MODULES] for one in best] == [[], ["ffn"], ["gate_proj"]]


def test_a_failed_trial_is_not_the_best_and_a_level_without_any_ends_the_search() -> None:
    trials = Trials(fails=("25%-50%",))
    assert search(CoFiTune(), trials)[0][LAYERS] == "75%-100%"
    trials = Trials(fails=("attention", "ffn"))
    assert len(search(CoFiTune(), trials)) == 1 and len(trials.levels) == 2


def test_the_budget_counts_trials(capsys: pytest.CaptureFixture[str]) -> None:
    trials = Trials()
    search(CoFiTune(trials=5), trials)
    assert [len(level) for level in trials.levels] == [4, 1]
    assert "modules: cofitune.trials leaves out 1 of 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], "sweep.objective: target_gain needs mixture.targets"),
        (
            ["mixture.targets=[law]", "cofitune.general=[genral]"],
            "cofitune.general: unknown domain 'genral'; did you mean 'general'",
        ),
        (
            ["mixture.targets=[law]", "cofitune.general=[law]"],
            "cofitune.general: 'law' is a target",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(overrides: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told.replace("[", r"\[")):
        check_cofitune(load([], overrides))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("cofitune.layers=[half]", "cofitune.layers.0: 'half' is not valid: layers as 25%-50%"),
        (
            "cofitune.layers=[]",
            "cofitune.layers: [] is not valid: list should have at least 1 item",
        ),
        (
            "training.trainable.layers=50%-25%",
            "training.trainable.layers: '50%-25%' is not valid: the first end has to be below",
        ),
        ("cofitune.modules.mlp=[[up_proj]]", "groups are attention and ffn; found 'mlp'"),
        (
            "cofitune.modules.ffn=[[up_prj]]",
            "'up_prj' is no projection of ffn; did you mean 'up_proj'",
        ),
    ],
)
def test_a_tree_that_cannot_be_is_refused(override: str, told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        load([], [override])


def test_a_layer_may_be_a_plain_number() -> None:
    assert load([], ["cofitune.layers=[0, 2-3]"]).cofitune.layers == ["0", "2-3"]
