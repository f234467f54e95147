"""The learning rate, by hand."""

from __future__ import annotations

import itertools

import pytest

from fcmae.training.schedule import lr_factor, peak_lr, steps_of


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.25), (1, 0.5), (3, 1.0), (4, 1.0), (6, 0.5), (8, 0.0), (99, 0.0)]
)
def test_lr_factor_by_hand(step: int, expected: float) -> None:
    assert lr_factor(step, warmup_steps=4, total_steps=8) == pytest.approx(expected)


def test_the_rate_ends_at_its_final_share() -> None:
    assert lr_factor(8, warmup_steps=4, total_steps=8, final=0.1) == pytest.approx(0.1)
    assert lr_factor(6, warmup_steps=4, total_steps=8, final=0.1) == pytest.approx(0.55)


@pytest.mark.parametrize("warmup", [0, 1, 5, 20])
def test_the_rate_is_bounded_and_has_no_jumps(warmup: int) -> None:
    factors = [lr_factor(step, warmup_steps=warmup, total_steps=20) for step in range(21)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert max(factors) == pytest.approx(1.0, abs=1e-2)
    jumps = [abs(after - before) for before, after in itertools.pairwise(factors)]
    # The steepest piece is the warm-up's 1 / warmup or the cosine's pi / 2 / steps.
    steepest = max(1 / max(warmup, 20), 1 / warmup if warmup else 0, 1.571 / max(20 - warmup, 1))
    assert max(jumps) <= steepest + 1e-9


def test_a_run_that_is_all_warm_up_divides_by_nothing() -> None:
    assert lr_factor(20, warmup_steps=20, total_steps=20) == 1.0


def test_the_linear_rule_is_per_256_images() -> None:
    assert peak_lr(1.5e-4, 4096) == pytest.approx(2.4e-3)
    assert peak_lr(1.5e-4, 128) == pytest.approx(0.75e-4)


@pytest.mark.parametrize(
    ("epochs", "images", "batch", "expected"),
    [(1, 10, 5, 2), (1, 11, 5, 3), (0.5, 10, 5, 1), (3, 7, 7, 3), (0.1, 300, 3, 10)],
)
def test_epochs_are_rounded_up_to_steps_without_float_noise(
    epochs: float, images: int, batch: int, expected: int
) -> None:
    assert steps_of(epochs, images, batch) == expected
