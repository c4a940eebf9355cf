"""The tables of policies and starts: they say what the classes do, and need no Ray."""

from __future__ import annotations

import subprocess
import sys
from copy import copy
from dataclasses import fields

import numpy as np
import pytest

from versatune_ray.errors import UserError
from versatune_ray.mixture import POLICIES, STARTS, Budget, Feedback, needs
from versatune_ray.settings import semantics
from versatune_ray.settings.common import Section, setting
from versatune_ray.settings.loading import load, parse
from versatune_ray.settings.mixture import Mixture

LOSS = [2.0, 1.0, 0.5]
PRODUCTS = [[1.0, 0.5, 0.1], [0.5, 1.0, 0.2], [0.1, 0.2, 1.0]]
BUDGET = Budget(10, 8, np.array([20.0, 30.0, 50.0]), np.array([[0, 0, 0], [10, 10, 20.0]]))
FEEDBACK = Feedback(
    5,
    LOSS,
    [2.5, 1.5, 0.6],
    [0.4, 0.4, 0.4],
    history=[[2.5, 1.5, 0.4]],
    gradient_products=PRODUCTS,
    passes=[0.5, 1 / 3, 0.4],
    budget=BUDGET,
    gradient_variances=[4.0, 2.0, 1.0],
    held_out_products=[0.5, 0.2, -0.1],
)


def made(name: str, **more: object) -> object:
    targets = {"targets": (0,)} if POLICIES[name].needs_targets else {}
    return POLICIES[name].kind(**targets, **more)


@pytest.mark.parametrize("name", POLICIES)
def test_every_setting_of_a_policy_is_in_the_table(name: str) -> None:
    rule = POLICIES[name]
    own = {field.name for field in fields(rule.kind)} - {"targets"}
    assert own == {*rule.keys, *rule.options}
    assert set(rule.keys) <= Mixture.model_fields.keys() and set(rule.varied) <= set(rule.keys)


@pytest.mark.parametrize("name", POLICIES)
def test_the_flags_are_what_the_policy_does(name: str) -> None:
    rule, shares = POLICIES[name], [0.0, 0.4, 0.6]
    after = made(name).update(shares, FEEDBACK)
    # a target is raised from 0 as well
    kept = after[0] == 0 or (rule.needs_targets and rule.multiplicative)
    assert kept == rule.multiplicative
    assert rule.fixed == bool((after == shares).all())
    bare = Feedback(
        5,
        LOSS,
        [2.5, 1.5, 0.6],
        history=[[2.5, 1.5, 0.6]],
        gradient_products=PRODUCTS,
        budget=BUDGET,
    )
    if rule.needs_reference:
        with pytest.raises(ValueError, match="reference_loss is missing"):
            made(name).update(shares, bare)
    if needs(rule.kind, "gradients"):
        with pytest.raises(ValueError, match="gradient_products are missing"):
            made(name).update(shares, Feedback(5, LOSS, reference_loss=[0.4] * 3))
    for what, field in (
        ("budget", "budget is missing"),
        ("variances", "gradient_variances are missing"),
        ("held_out_gradient", "held_out_products are missing"),
    ):
        if needs(rule.kind, what):
            lacking = copy(FEEDBACK)
            setattr(lacking, field.split()[0], None)
            with pytest.raises(ValueError, match=field):
                made(name).update(shares, lacking)


def test_configurations_take_every_name_of_the_tables_and_no_other() -> None:
    for name, rule in POLICIES.items():
        targets = ["mixture.targets=law"] if rule.needs_targets else []
        config = load([], [f"mixture.policy={name}", *targets])
        assert isinstance(semantics.policy(config, ["law", "code"]), rule.kind)
        assert semantics.needs_reference(config) == rule.needs_reference
    for name, start in STARTS.items():
        given = {"start": name, "targets": ["law"], "trajectory": "x", "embeddings": "x"}
        assert semantics.needs_detection(parse({"mixture": given})) == start.needs_detection
    for key, wrong, right in (("policy", "dogee", "doge"), ("start", "detectd", "detected")):
        with pytest.raises(UserError, match=f"mixture.{key}: '{wrong}'.*did you mean '{right}'"):
            load([], [f"mixture.{key}={wrong}"])


def test_a_floor_under_a_policy_that_has_none_is_laid_under_it() -> None:
    for name, rule in POLICIES.items():
        targets = ["mixture.targets=law"] if rule.needs_targets else []
        config = load([], [f"mixture.policy={name}", "mixture.min_share=0.15", *targets])
        after = semantics.policy(config, ["law", "code", "general"]).update([0, 0.4, 0.6], FEEDBACK)
        assert (after.min() >= 0.15 - 1e-12) != rule.fixed


def test_a_number_where_truth_is_asked_and_the_reverse_are_refused() -> None:
    class Some(Section):
        truth: bool = setting(False, "")
        count: int = setting(1, "")

    assert Some(truth=True, count=2).truth
    for given in ({"truth": "yes"}, {"truth": 1}, {"count": True}):
        with pytest.raises(ValueError, match=r"true or false|a number is needed"):
            Some.model_validate(given)


def test_the_mixture_needs_neither_ray_nor_torch_nor_settings() -> None:
    """In a process of its own: what this one has imported says nothing."""
    told = (
        "import sys, versatune_ray.mixture; print([n for n in sys.modules if n.split('.')[0] in "
        "('ray', 'torch', 'pydantic') or n.startswith('versatune_ray.settings')])"
    )
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
