"""The comparisons that other tests rely on fail when they should."""

from __future__ import annotations

import pytest
import torch
from comparison import assert_relative, assert_same_bits


def test_relative_comparison_accepts_what_is_within_the_tolerance() -> None:
    expected = torch.tensor([1.0, -10.0])
    assert_relative(expected + 0.9e-3, expected, 1e-4)


@pytest.mark.parametrize("error", [1.1e-3, -1.1e-3, 5.0])
def test_relative_comparison_fails_beyond_the_tolerance(error: float) -> None:
    expected = torch.tensor([1.0, -10.0], dtype=torch.float64)
    with pytest.raises(AssertionError, match="largest difference"):
        assert_relative(expected + torch.tensor([error, 0.0]), expected, 1e-4)


def test_relative_comparison_fails_on_zeros_in_place_of_values_and_values_in_place_of_zeros() -> (
    None
):
    for actual, expected in ((0.0, 1.0), (1e-12, 0.0)):
        with pytest.raises(AssertionError, match="largest difference"):
            assert_relative(torch.full((3,), actual), torch.full((3,), expected), 0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_comparisons_fail_on_values_that_are_not_finite(value: float) -> None:
    good, bad = torch.zeros(2), torch.tensor([0.0, value])
    with pytest.raises(AssertionError, match="actual is not finite"):
        assert_relative(bad, good, 1.0)
    with pytest.raises(AssertionError, match="expected is not finite"):
        assert_relative(good, bad, 1.0)
    with pytest.raises(AssertionError, match="not finite"):
        assert_same_bits(bad, bad)


def test_comparisons_fail_on_shapes_that_would_broadcast() -> None:
    with pytest.raises(AssertionError, match="shapes"):
        assert_relative(torch.ones(3, 1), torch.ones(1, 3), 1.0)
    with pytest.raises(AssertionError, match="bit for bit"):
        assert_same_bits(torch.ones(3, 1), torch.ones(1, 3))


def test_bitwise_comparison_fails_on_the_smallest_difference() -> None:
    one = torch.ones(2)
    assert_same_bits(one, one.clone())
    with pytest.raises(AssertionError, match="bit for bit"):
        assert_same_bits(torch.nextafter(one, torch.tensor(2.0)), one)
