"""The learning rate, by hand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from fcmae.settings.sections import OptimConfig, TrainConfig
from fcmae.training.schedule import Schedule, lr_factor, peak_lr, steps_of


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


def schedule(steps: int, warmup: int = 4, **optim: Any) -> Schedule:
    """Return the schedule of a run with a peak rate of 1."""
    settings = OptimConfig(base_lr=1.0, warmup_steps=warmup, **optim)
    return Schedule(TrainConfig(steps=steps), settings, 100, 256)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.25), (3, 1.0), (4, 1.0), (80, 1.0), (85, 0.55), (96, 0.19502), (99, 0.12278)],
)
def test_warmup_constant_decay_by_hand(step: int, expected: float) -> None:
    found = schedule(100, schedule="wsd", min_lr=0.1)
    assert found.decay_start == 80
    assert found(step) == pytest.approx(expected, abs=1e-5)


def test_before_the_decay_of_the_shorter_run_two_lengths_have_equal_rates() -> None:
    short, long = (schedule(steps, schedule="wsd") for steps in (500, 1000))
    assert (short.decay_start, long.decay_start) == (400, 800)
    assert [short(step) for step in range(401)] == [long(step) for step in range(401)]
    assert short(401) < long(401)


def test_the_decay_begins_behind_the_warm_up_and_lasts_a_step_at_least() -> None:
    assert schedule(10, warmup=9, schedule="wsd", decay_share=0.5).decay_start == 9
    assert schedule(10, schedule="wsd", decay_share=0.01).decay_start == 9
    assert schedule(10, warmup=10, schedule="wsd")(9) == 1.0


def test_a_cosine_has_no_step_before_its_decay() -> None:
    assert schedule(10).decay_start is None
