"""Starting shares, validation and floors."""

import numpy as np
import pytest

from versatune_ray.mixture import (
    check_shares,
    inverse,
    proportional,
    specific,
    temperature,
    uniform,
    uniform_remainder,
)
from versatune_ray.mixture.shares import floored


def test_uniform_gives_every_domain_the_same():
    assert uniform(4).tolist() == [0.25] * 4
    with pytest.raises(ValueError, match="at least one"):
        uniform(0)


def test_inverse_is_the_reciprocal_as_in_the_paper():
    # 1/0.5 : 1/0.25 : 1/0.25 = 2 : 4 : 4, of 10
    np.testing.assert_allclose(inverse([0.5, 0.25, 0.25]), [0.2, 0.4, 0.4], atol=1e-15)


def test_inverse_can_be_the_complement_as_in_the_released_code():
    # 0.5 : 0.75 : 0.75, of 2
    np.testing.assert_allclose(
        inverse([0.5, 0.25, 0.25], form="complement"), [0.25, 0.375, 0.375], atol=1e-15
    )
    np.testing.assert_allclose(inverse([1, 0, 0], form="complement"), [0, 0.5, 0.5], atol=1e-15)


def test_a_zero_share_has_no_reciprocal():
    with pytest.raises(ValueError, match=r"share of domain 1 is 0.*complement"):
        inverse([1, 0])
    with pytest.raises(ValueError, match="share of 'code' is 0"):
        inverse([1, 0], names=["law", "code"])
    with pytest.raises(ValueError, match="form: 'other'"):
        inverse([0.5, 0.5], form="other")


def test_inverse_survives_tiny_shares_and_a_single_domain():
    np.testing.assert_allclose(inverse([1.0, 1e-320]), [0, 1], atol=1e-15)
    assert inverse([1.0]).tolist() == inverse([1.0], form="complement").tolist() == [1.0]


def test_specific_puts_everything_on_the_targets():
    assert specific(4, [1, 3]).tolist() == [0, 0.5, 0, 0.5]
    assert specific(1, [0]).tolist() == [1]


def test_uniform_remainder_spreads_the_rest_over_the_others():
    # 0.6/2 each; 0.4/4 each
    np.testing.assert_allclose(
        uniform_remainder(6, (0, 5), 0.6), [0.3, 0.1, 0.1, 0.1, 0.1, 0.3], atol=1e-15
    )
    with pytest.raises(ValueError, match="every domain is a target"):
        uniform_remainder(2, [0, 1], 0.5)
    for share in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="target_share"):
            uniform_remainder(3, [0], share)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ([], "at least one"),
        ([1, 1], "twice"),
        ([3], "valid are 0 to 2"),
        ([-1], "valid are 0 to 2"),
        ([0.5], "integers"),
        ([True], "integers"),
    ],
)
def test_targets_are_distinct_domain_indices(targets, words):
    with pytest.raises(ValueError, match=words):
        specific(3, targets)


def test_proportional_follows_the_sizes():
    np.testing.assert_allclose(proportional([1, 3, 0]), [0.25, 0.75, 0], atol=1e-15)
    np.testing.assert_allclose(proportional([1e308, 1e308]), [0.5, 0.5])
    with pytest.raises(ValueError, match="every domain is empty"):
        proportional([0, 0])
    with pytest.raises(ValueError, match="size of 'code' is -1"):
        proportional([1, -1], names=["law", "code"])


def test_temperature_flattens_above_one_and_sharpens_below():
    # √0.64 : √0.36 = 8 : 6; 0.75² : 0.25² = 9 : 1
    np.testing.assert_allclose(temperature([0.64, 0.36], 2), [8 / 14, 6 / 14], atol=1e-15)
    np.testing.assert_allclose(temperature([0.75, 0.25], 0.5), [0.9, 0.1], atol=1e-15)
    assert temperature([0.7, 0.3, 0], 1e9)[2] == 0
    np.testing.assert_allclose(temperature([0.3, 0.3, 0.4], 1e-4), [0, 0, 1], atol=1e-15)
    for tau in (0, -1, np.inf, np.nan):
        with pytest.raises(ValueError, match="tau"):
            temperature([0.5, 0.5], tau)


def test_valid_shares_come_back_bit_for_bit_as_a_copy():
    shares = np.array([0.1, 0.2, 0.7])
    checked = check_shares(shares)
    assert checked.tolist() == shares.tolist() and not np.shares_memory(checked, shares)


def test_shares_off_by_rounding_are_rescaled_and_off_by_more_refused():
    assert check_shares([0.5, 0.5 + 1e-10]).sum() == pytest.approx(1, abs=1e-12)
    with pytest.raises(ValueError, match=r"sum to 0\.99, not to 1"):
        check_shares([0.5, 0.49])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.5, None])
def test_an_impossible_share_is_refused_by_the_name_of_its_domain(bad):
    with pytest.raises(ValueError, match="share of 'code' is"):
        check_shares([0.5, bad], names=["law", "code"])


def test_shares_of_another_length_are_refused():
    with pytest.raises(ValueError, match="share of domain 2 is missing: 2 values for 3 domains"):
        check_shares([0.5, 0.5], k=3)
    with pytest.raises(ValueError, match="2 values for 1 domains"):
        check_shares([0.5, 0.5], k=1)
    with pytest.raises(ValueError, match="1 domain names for 2 domains"):
        check_shares([0.5, 0.5], k=2, names=["law"])


def test_a_floor_lifts_the_low_and_scales_the_high():
    # 0.02 → 0.1; the others shrink from 0.98 to 0.9 in proportion
    np.testing.assert_allclose(
        floored(np.array([0.02, 0.49, 0.49]), 0.1), [0.1, 0.45, 0.45], atol=1e-15
    )


def test_a_floor_that_pushes_another_share_under_it_settles_both():
    # 0 and 0.01 → 0.2 each: 0.6 left for 0.24 + 0.75; 0.24·0.6/0.99 = 0.145 < 0.2 → 0.2 as well,
    # 0.4 left
    np.testing.assert_allclose(
        floored(np.array([0, 0.01, 0.24, 0.75]), 0.2), [0.2, 0.2, 0.2, 0.4], atol=1e-15
    )


def test_a_floor_of_exactly_one_kth_is_uniform_and_more_is_refused():
    for k in (2, 3, 7, 200):
        np.testing.assert_allclose(floored(specific(k, [0]), 1 / k), uniform(k), atol=1e-12)
    with pytest.raises(
        ValueError, match=r"min_share: 0\.3 for each of 4 domains exceeds 1; at most 0\.25"
    ):
        floored(uniform(4), 0.3)


def test_floors_hold_for_random_shares_and_keep_ratios_above():
    rng = np.random.default_rng(1)
    for _ in range(300):
        k = int(rng.integers(1, 201))
        shares = rng.dirichlet(np.full(k, 10 ** rng.uniform(-1.5, 1)))
        floor = rng.uniform(0, 1) / k
        result = floored(shares, floor)
        assert result.min() >= floor - 1e-15
        assert abs(result.sum() - 1) < 1e-12
        free = result > floor + 1e-9
        ratio = result[free] / shares[free]
        assert np.ptp(ratio) < 1e-9 * ratio.max()


def test_every_start_is_a_distribution():
    rng = np.random.default_rng(2)
    for k in (2, 6, 200):
        p = rng.dirichlet(np.ones(k))
        for shares in (
            uniform(k),
            inverse(p),
            inverse(p, "complement"),
            specific(k, [k - 1]),
            uniform_remainder(k, [0], 0.3),
            proportional(p * 100),
            temperature(p, 3),
        ):
            assert shares.dtype == np.float64 and shares.shape == (k,)
            assert shares.min() >= 0 and abs(shares.sum() - 1) < 1e-12
