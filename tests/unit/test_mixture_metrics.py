"""Eq. 2, Eq. 3 and the Feedback that carries their inputs."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from versatune_ray.mixture import Feedback, forgetting_degree, learnable_potential


def test_learnable_potential_is_the_part_of_the_loss_above_the_reference():
    # (2 − 0.5)/2 = 0.75; (2 − 2)/2 = 0; (1 − 3)/1 < 0 → 0; (4 − 0)/4 = 1
    assert learnable_potential([2, 2, 1, 4], [0.5, 2, 3, 0]).tolist() == [0.75, 0, 0, 1]


def test_a_zero_loss_has_no_potential_even_below_its_reference():
    assert learnable_potential([0, 0], [0, 1]).tolist() == [0, 0]


def test_forgetting_degree_is_the_relative_rise_and_never_negative():
    # (3 − 2)/2 = 0.5; falling → 0; equal → 0
    assert forgetting_degree([3, 1, 2], [2, 2, 2]).tolist() == [0.5, 0, 0]


def test_a_loss_that_rises_from_zero_is_forgotten_without_bound():
    assert forgetting_degree([0, 1e-9], [0, 0]).tolist() == [0, np.inf]


def test_metrics_agree_with_their_equations_element_by_element():
    rng = np.random.default_rng(0)
    loss, other = rng.gamma(2, 1, 200), rng.gamma(2, 1, 200)
    for j in range(200):
        assert learnable_potential(loss, other)[j] == pytest.approx(
            max(1 - other[j] / loss[j], 0), abs=1e-12
        )
        assert forgetting_degree(loss, other)[j] == pytest.approx(
            max(loss[j] / other[j] - 1, 0), rel=1e-12, abs=1e-12
        )


def test_extreme_losses_raise_no_warning_and_give_no_nan():
    with np.errstate(all="raise"):
        assert np.isfinite(learnable_potential([5e-324, 1e308, 1e-300], [1e308, 5e-324, 0])).all()
        assert forgetting_degree([1e308], [5e-324]).tolist() == [np.inf]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -0.1, None])
@pytest.mark.parametrize("metric", [learnable_potential, forgetting_degree])
def test_an_impossible_loss_is_refused_by_the_name_of_its_domain(metric, bad):
    with pytest.raises(ValueError, match=r"^loss of 'code' is"):
        metric([1.0, bad], [1.0, 1.0], names=["law", "code"])
    with pytest.raises(ValueError, match=r"(reference|previous) loss of domain 1 is"):
        metric([1.0, 1.0], [1.0, bad])


@pytest.mark.parametrize("metric", [learnable_potential, forgetting_degree])
def test_a_missing_loss_is_refused_by_the_name_of_its_domain(metric):
    with pytest.raises(ValueError, match="loss of 'code' is missing: 1 values for 2 domains"):
        metric([1.0], [1.0, 1.0], names=["law", "code"])
    with pytest.raises(ValueError, match=r"^loss of domain 1 is missing"):
        metric([1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"(reference|previous) loss of domain 1 is missing"):
        metric([1.0, 1.0], [1.0])
    with pytest.raises(ValueError, match=r"(reference|previous) loss: missing"):
        metric([1.0, 1.0], None)
    with pytest.raises(ValueError, match="3 values for 2 domains"):
        metric([1.0, 1.0, 1.0], [1.0, 1.0], names=["law", "code"])
    with pytest.raises(ValueError, match="shape"):
        metric([[1.0]], [1.0])
    with pytest.raises(ValueError, match="not one number per domain"):
        metric(["high"], [1.0])
    with pytest.raises(ValueError, match="at least one domain"):
        metric([], [])


def test_feedback_copies_its_losses_and_lets_nobody_write_into_them():
    loss = np.array([1.0, 2.0])
    feedback = Feedback(
        3, loss, previous_loss=[1, 1], reference_loss=(0.5, 0.5), names=["law", "code"]
    )
    loss[0] = 9
    assert feedback.loss.tolist() == [1, 2] and feedback.loss.dtype == np.float64
    assert feedback.names == ("law", "code")
    with pytest.raises(ValueError, match="read-only"):
        feedback.loss[0] = 9
    assert dataclasses.replace(feedback, step=4).loss.tolist() == [1, 2]


def test_feedback_names_step_quantity_and_domain_of_a_bad_loss():
    with pytest.raises(ValueError, match="step 7: previous loss of 'code' is nan"):
        Feedback(7, [1, 2], previous_loss=[1, np.nan], names=("law", "code"))
    with pytest.raises(ValueError, match="step 7: reference loss of domain 1 is missing"):
        Feedback(7, [1, 2], reference_loss=[1])
    with pytest.raises(ValueError, match="step 7: loss of 'code' is missing"):
        Feedback(7, [1], names=("law", "code"))
    with pytest.raises(ValueError, match="step: -1 is negative"):
        Feedback(-1, [1, 2])


def test_feedback_without_a_loss_says_which_metric_needs_it():
    with pytest.raises(ValueError, match="step 7: reference_loss is missing"):
        Feedback(7, [1, 2]).learnable_potential()
    with pytest.raises(ValueError, match=r"step 7: previous_loss is missing.*before step 1"):
        Feedback(7, [1, 2]).forgetting_degree()


def test_the_package_imports_neither_ray_nor_torch_nor_other_parts_of_ours():
    code = (
        "import sys, versatune_ray.mixture\n"
        "print(*{m.split('.')[0] for m in sys.modules} & "
        "{'ray', 'torch', 'transformers', 'vllm', 'pydantic', 'yaml', 'pyarrow'})\n"
        "print(*sorted(m for m in sys.modules if m.startswith('versatune_ray.') and not "
        "m.startswith('versatune_ray.mixture')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
