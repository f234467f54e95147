"""Intervals and differences over seeds, against scipy's own tests and hand-computed cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fcmae.evaluation.statistics import Mean, PairedDifference, differences, means

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
