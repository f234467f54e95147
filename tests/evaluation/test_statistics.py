"""Intervals and differences over seeds, against scipy's own tests and hand-computed cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fcmae.evaluation.statistics import Mean, PairedDifference, differences, means, pairwise

RNG = np.random.default_rng(3)
ONE = {"a": {0: 70.0, 1: 74.0, 2: 71.5}}
TWO = {**ONE, "b": {0: 73.0, 1: 76.0, 2: 76.5}}


def test_one_setting_has_the_t_interval_of_scipy() -> None:
    values = list(ONE["a"].values())
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    found = means(ONE)["a"]
    assert found.value - (found.half_width or 0) == pytest.approx(low)
    assert found.value + (found.half_width or 0) == pytest.approx(high)
    assert found.count == 3


def test_two_settings_have_the_paired_t_interval_of_scipy() -> None:
    first, second = ([*TWO[name].values()] for name in "ba")
    interval = stats.ttest_rel(first, second).confidence_interval(0.95)
    found = differences(TWO, "a")["b"]
    assert found.value - (found.half_width or 0) == pytest.approx(interval.low)
    assert found.value + (found.half_width or 0) == pytest.approx(interval.high)


def test_noise_of_many_settings_is_what_is_left_after_setting_and_seed() -> None:
    # Two seeds, three settings: y = setting + seed + residual, worked out by hand.
    table = {"a": {0: 1.0, 1: 3.0}, "b": {0: 2.0, 1: 5.0}, "c": {0: 6.0, 1: 7.0}}
    grand = 4.0
    rows, columns = {"a": 2.0, "b": 3.5, "c": 6.5}, {0: 3.0, 1: 5.0}
    squares = sum(
        (value - rows[name] - columns[seed] + grand) ** 2
        for name, values in table.items()
        for seed, value in values.items()
    )
    deviation = math.sqrt(squares / 2)  # (3 - 1) * (2 - 1) degrees of freedom
    quantile = stats.t.ppf(1 - 0.05 / 4, 2)  # two comparisons
    found = differences(table, "a")
    assert {name: gap.value for name, gap in found.items()} == {"b": 1.5, "c": 4.5}
    assert found["c"].half_width == pytest.approx(quantile * deviation)  # sqrt(2 / 2 seeds)


def test_what_all_settings_of_a_seed_share_is_no_noise() -> None:
    shifted = {name: {seed: value + 10 * seed for seed, value in values.items()}
               for name, values in TWO.items()}  # fmt: skip
    before, after = differences(TWO, "a")["b"], differences(shifted, "a")["b"]
    assert after.value == pytest.approx(before.value)
    assert after.half_width == pytest.approx(before.half_width)


def test_intervals_miss_a_true_difference_of_zero_as_seldom_as_they_say() -> None:
    wrong = 0
    for _ in range(400):
        noise = RNG.normal(size=(5, 3)) + RNG.normal(size=3)
        table = {row: dict(enumerate(map(float, noise[row]))) for row in range(5)}
        wrong += any(gap.exceeds_noise for gap in differences(table, 0).values())
    assert wrong / 400 < 0.08  # 5 % for all four comparisons together, and chance


def test_a_real_difference_is_seen() -> None:
    table = {name: {seed: 70.0 + seed + 0.1 * len(name) for seed in range(3)} for name in "ab"}
    table["b"] = {seed: value + 5 + 0.2 * seed for seed, value in table["b"].items()}
    gap = differences(table, "a")["b"]
    assert gap.exceeds_noise
    assert gap.text() == "+5.2 +- 0.5"


def test_one_seed_has_no_interval_and_claims_nothing() -> None:
    table = {"a": {0: 1.0}, "b": {0: 9.0}}
    assert means(table)["b"] == Mean(9.0, None, 1)
    assert differences(table, "a")["b"] == PairedDifference(8.0, None, 1)
    assert not differences(table, "a")["b"].exceeds_noise
    assert (means(table)["b"].text(), differences(table, "a")["b"].text()) == ("9.0", "+8.0")


def test_a_failed_cell_leaves_its_seed_out_of_its_own_difference_only() -> None:
    table = {"a": {0: 1.0, 1: 2.0}, "b": {1: 5.0}, "c": {0: 2.0, 1: 4.0}, "d": {}}
    found = differences(table, "a")
    assert found["b"].count == 1
    assert found["b"].value == 3.0
    assert found["c"].count == 2
    assert "d" not in found
    assert "d" not in means(table)
    assert differences({"a": {}, "b": {0: 1.0}}, "a") == {}


NOISE = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "bounded": lambda rng, shape: rng.uniform(-1.0, 1.0, size=shape),
    # A share of 525 images, 86 % of which are right.
    "of counts": lambda rng, shape: (rng.binomial(525, 0.86, size=shape) / 525 - 0.86) / 0.015,
}


def simulated(
    means_of: tuple[float, ...],
    deviations: tuple[float, ...],
    seeds: int,
    noise: str = "normal",
    times: int = 2000,
) -> list[dict[int, dict[int, float]]]:
    """Tables of scores: a true mean per arm, noise of its own, and what a seed does to all."""
    rng = np.random.default_rng(0)
    shape = (times, len(means_of), seeds)
    values = np.array(means_of)[:, None] + 3 * rng.normal(size=(shape[0], 1, seeds))
    values = values + np.array(deviations)[:, None] * NOISE[noise](rng, shape)
    return [
        {arm: dict(enumerate(row)) for arm, row in enumerate(table)} for table in values.tolist()
    ]


@pytest.mark.parametrize(
    ("means_of", "deviations", "seeds"),
    [
        ((70.0, 75.0), (1.0, 1.0), 3),
        ((50.0, 88.0), (0.2, 6.0), 5),
        ((50.0, 86.0, 88.0), (1.0, 1.0, 1.0), 3),
        ((50.0, 86.0, 88.0), (0.2, 4.0, 1.0), 5),
        ((50.0, 80.0, 86.0, 88.0), (0.2, 1.0, 4.0, 1.0), 5),
    ],
)
def test_intervals_of_all_pairs_hold_the_true_differences_in_93_to_97_of_100(
    means_of: tuple[float, ...], deviations: tuple[float, ...], seeds: int
) -> None:
    held = 0
    for table in simulated(means_of, deviations, seeds):
        found = pairwise(table)
        assert len(found) == len(means_of) * (len(means_of) - 1) // 2
        held += all(
            abs(gap.value - (means_of[second] - means_of[first])) <= (gap.half_width or 0.0)
            for (first, second), gap in found.items()
        )
    assert 0.93 <= held / 2000 <= 0.97


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("seeds", [3, 5])
def test_three_equal_arms_are_told_apart_in_5_of_100_comparisons_at_most(
    seeds: int, noise: str
) -> None:
    """About 4 % are to be expected, so that 2,000 comparisons do not leave it to chance."""
    tables = simulated((80.0, 80.0, 80.0), (1.0, 1.0, 1.0), seeds, noise)
    alarms = sum(any(gap.exceeds_noise for gap in pairwise(table).values()) for table in tables)
    assert 0.025 < alarms / 2000 <= 0.05


def test_pairs_are_those_of_the_paired_t_test_divided_among_them() -> None:
    three = {**TWO, "c": {0: 60.0, 1: 66.0, 2: 61.0}}
    found = pairwise(three)
    assert list(found) == [("a", "b"), ("a", "c"), ("b", "c")]
    first, second = (list(three[name].values()) for name in "ac")
    interval = stats.ttest_rel(second, first).confidence_interval(1 - 0.04 / 3)
    assert found["a", "c"].value - (found["a", "c"].half_width or 0) == pytest.approx(interval.low)
    alone, before = pairwise(TWO)["a", "b"], differences(TWO, "a")["b"]
    assert alone.value == before.value
    assert alone.half_width == pytest.approx(before.half_width)


def test_pairs_that_no_seed_changes_claim_nothing() -> None:
    same = {"a": {0: 50.0, 1: 50.0, 2: 50.0}, "b": {0: 88.1, 1: 88.1, 2: 88.1}}
    assert not pairwise(same)["a", "b"].exceeds_noise
    assert pairwise({"a": {0: 1.0}, "b": {1: 2.0}}) == {}
