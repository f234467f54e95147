"""The verdict on the held-out loss, as a table that a person can check."""

from __future__ import annotations

import pytest

from fcmae.evaluation.health import verdict


def lines_of(*losses: float | None, steps: int = 100) -> list[dict[str, float | None]]:
    """Checks at the start and evenly up to `steps`, between lines of the training."""
    distance = steps // (len(losses) - 1)
    checks = [{"step": n * distance, "health/loss": loss} for n, loss in enumerate(losses)]
    return [line for check in checks for line in (check, {"step": check["step"], "loss": 0.1})]


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ((1.0,) * 3, "too early to say (2 of 3 checks of the held-out loss after the start)."),
        # 1 % of the last loss, 0.6, per tenth of the run: 0.006 per 10 steps
        ((1.0, 0.9, 0.630, 0.615, 0.600), "still improving at the end"),
        # 0.6 % and 0.4 %
        ((1.0, 0.9, 0.618, 0.609, 0.600), "still improving at the end"),
        ((1.0, 0.9, 0.612, 0.606, 0.600), "no longer improving"),
        ((1.0, 0.9, 0.588, 0.594, 0.600), "no longer improving"),
        ((1.0, 0.9, 0.582, 0.591, 0.600), "getting worse: the model begins to learn its training"),
        # only the last three count, and the line goes through all of them
        ((1.0, 0.2, 0.630, 0.700, 0.600), "still improving at the end"),
    ],
)
def test_verdict_by_hand(losses: tuple[float, ...], says: str) -> None:
    steps = 100 if len(losses) != 3 else 40
    assert verdict(lines_of(*losses, steps=steps), steps).startswith(says)


def test_the_verdict_states_its_rule_and_its_numbers() -> None:
    assert verdict(lines_of(1.0, 0.9, 0.630, 0.615, 0.600), 100) == (
        "still improving at the end: a longer run should give a lower loss (the held-out loss "
        "falls by 1.0 % per tenth of the run over its last 3 checks; 0.5 % or more counts)."
    )


def test_a_run_in_its_middle_is_not_told_to_be_at_its_end() -> None:
    says = verdict(lines_of(1.0, 0.9, 0.630, 0.615, 0.600), 200)
    assert says.startswith(
        "still improving with 100 of 200 steps left, and at this pace 0.540 at the end ("
    )
    assert "falls by 2.0 %" in says  # the same fall, of tenths twice as long


def test_the_check_of_the_untrained_model_does_not_count() -> None:
    lines = lines_of(1.0, 0.5, 0.5, steps=100)
    assert verdict(lines, 100).startswith("too early to say (2 of 3")


def test_checks_whose_loss_was_not_finite_are_left_out() -> None:
    lines = lines_of(1.0, 0.630, None, 0.615, 0.600)
    assert verdict(lines, 100).startswith("still improving at the end")


@pytest.mark.parametrize(
    ("loss", "says"), [(0.985, "nothing learned yet"), (0.975, "no longer improving")]
)
def test_a_loss_near_the_patch_means_is_told_from_one_that_fell(loss: float, says: str) -> None:
    lines = [{"step": 0, "health/loss_patch_mean": 1.0}, *lines_of(1.0, loss, loss, loss, loss)]
    assert verdict(lines, 100).startswith(says)


def test_the_hint_at_a_longer_run_names_the_command_that_makes_it() -> None:
    lines = lines_of(1.0, 0.9, 0.630, 0.615, 0.600)
    command = "fcmae pretrain --config runs/a/config.yaml --train.steps 200"
    assert verdict(lines, 100, command).endswith(f"counts). For that: {command}")
    assert command not in verdict(lines_of(1.0, 0.9, 0.6, 0.6, 0.6), 100, command)


def test_a_run_that_has_learned_nothing_is_told_how_many_steps_are_left() -> None:
    lines = [{"step": 0, "health/loss_patch_mean": 1.0}, *lines_of(1.0, 1.0, 1.0, 1.0, 1.0)]
    assert verdict(lines, 1400).startswith("nothing learned yet with 1,300 of 1,400 steps left: ")
