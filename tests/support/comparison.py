"""How tests compare tensors: one relative measure that asserts."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_relative(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Assert that the largest difference is at most `tolerance` times the largest expected value.

    Elementwise relative errors mean nothing where a sum cancels to nearly zero. Both tensors must
    be finite and of one shape; they are compared in float64.
    """
    assert actual.shape == expected.shape, f"shapes {actual.shape} and {expected.shape}"
    assert bool(actual.isfinite().all()), "actual is not finite"
    assert bool(expected.isfinite().all()), "expected is not finite"
    difference = (actual.double() - expected.double()).abs().max().item()
    scale = expected.double().abs().max().item()
    assert difference <= tolerance * scale, (
        f"largest difference {difference:.3g}, allowed {tolerance:.3g} x {scale:.3g}"
    )


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Assert that every value is finite and the same, bit for bit."""
    assert bool(actual.isfinite().all()), "actual is not finite"
    assert torch.equal(actual, expected), "not equal bit for bit"
