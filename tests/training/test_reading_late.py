"""A device that does not wait for the host computes the same run, and says the same of it.

GPUs read a step's result late; here processors do, whose arithmetic repeats bit for bit.
"""

from __future__ import annotations

import math
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from masked_pictures import write_bright_masks
from pictures_on_disk import write_pictures
from real_runs import (
    assert_same_run,
    assert_same_state,
    final_state,
    options,
    pretrain_arguments,
    run,
    run_together,
    signal_in,
)
from torch import Tensor, nn
from undrawn import without_pictures

from fcmae.errors import DONE, FAILED, INTERRUPTED
from fcmae.settings.sections import OptimConfig
from fcmae.training.optimization import LateResult, Optimization, StepResult, create_optimizer
from fcmae.training.processes import Processes

STEPS = 12
ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_pictures(folder, 13)
    return folder


def late() -> None:
    """Read the results of steps late, as on a GPU."""
    from fcmae.training import loop

    loop.may_read_late = lambda device: True
    without_pictures()


def lose(*at_calls: int) -> None:
    """Make the loss NaN when it is asked for at these times, counted from 1."""
    from fcmae.pretraining.task import Pretraining

    original, calls = Pretraining.compute_loss, 0

    def compute_loss(self: Any, *args: Any) -> Tensor:
        nonlocal calls
        calls += 1
        loss: Tensor = original(self, *args)
        return loss * math.nan if calls in at_calls else loss

    Pretraining.compute_loss = compute_loss  # type: ignore[method-assign]


@pytest.mark.parametrize("lost", [(), (5, 6), (12,)], ids=str)
def test_a_run_that_is_read_late_is_that_which_is_read_at_once(
    lost: tuple[int, ...], data: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    for name, how in (("late", late), ("at-once", without_pictures)):
        arguments = pretrain_arguments(
            data, tmp_path / name, STEPS, train__skip_nonfinite_steps=2, log__every_steps=4
        )
        status = run(arguments, log, before=[partial(lose, *lost), how])
        assert status == DONE, log.read_text()
    assert_same_run(tmp_path / "late", tmp_path / "at-once")
    told = log.read_text()
    for number, step in enumerate(lost, start=1):
        sentence = f"step {step}: loss nan, gradient norm nan; step left out ({number} of 2)."
        assert told.count(sentence) == 2


def lose_labels(*at_calls: int) -> None:
    """Make the loss of a fine-tuning NaN when it is asked for at these times."""
    from fcmae.finetuning.segmentation.task import Segmentation
    from fcmae.finetuning.task import Finetuning

    for kind in (Finetuning, Segmentation):
        _lose(kind, at_calls)


def _lose(kind: Any, at_calls: tuple[int, ...]) -> None:
    original, calls = kind.compute_loss, 0

    def compute_loss(self: Any, *args: Any) -> Tensor:
        nonlocal calls
        calls += 1
        loss: Tensor = original(self, *args)
        return loss * math.nan if calls in at_calls else loss

    kind.compute_loss = compute_loss


@pytest.mark.parametrize(
    ("warmup", "of_masks"), [(True, False), (False, False), (False, True)], ids=str
)
def test_an_average_of_weights_that_is_read_late_is_that_which_is_read_at_once(
    warmup: bool, of_masks: bool, data: Path, tmp_path: Path
) -> None:
    """The device decides whether the average follows: two steps have no finite loss."""
    labelled, log = tmp_path / "labelled", tmp_path / "log"
    for seed, name in enumerate(("left", "right")):
        write_pictures(labelled / name, 8, seed=seed)
    settings = {
        "data.path": labelled,
        "data.image_size": 64,
        "data.workers": 0,
        "data.val_share": 0.5,
        "model.name": "convnextv2_speck",
        "ema.decay": 0.7,
        "ema.warmup": warmup,
        "train.batch_size": 4,
        "train.steps": 7,
        "train.device": "cpu",
        "train.skip_nonfinite_steps": 2,
        "evaluate.every_steps": 3,
        "log.every_steps": 4,
        "log.tensorboard": "false",
        "checkpoint.every_steps": 100,
    }
    if of_masks:
        write_bright_masks(labelled, tmp_path / "masks")
        settings |= {
            "task": "segmentation",
            "task.decoder_channels": 16,
            "data.masks": tmp_path / "masks",
            "data.classes": "[dark, bright]",
        }
    for name, how in (("late", late), ("at-once", without_pictures)):
        words = ["finetune", *options(settings, {"run__dir": tmp_path / name})]
        status = run(words, log, before=[partial(lose_labels, 2, 5), how, tell_late_results])
        assert status == DONE, log.read_text()
    assert log.read_text().count("read late") == log.read_text().count("read at once") == 7
    assert_same_run(tmp_path / "late", tmp_path / "at-once")


def tell_late_results() -> None:
    """Print for each step whether its result was still on its way."""
    original = Optimization.step

    def step(self: Optimization, *args: Any) -> Any:
        result = original(self, *args)
        print("read late" if isinstance(result, LateResult) else "read at once", flush=True)
        return result

    Optimization.step = step  # type: ignore[method-assign]


def test_processes_that_read_late_stay_at_one_mind(data: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    for name, how in (("late", late), ("at-once", without_pictures)):
        arguments = pretrain_arguments(data, tmp_path / name, STEPS, train__batch_size=2)
        assert run_together(arguments, log, 2, before=how) == [DONE, DONE], log.read_text()
    assert_same_run(tmp_path / "late", tmp_path / "at-once")


def test_a_checkpoint_of_a_stopped_run_says_what_it_holds(data: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    changes = {"checkpoint__every_steps": 100, "log__every_steps": 4}
    arguments = pretrain_arguments(data, tmp_path / "late", STEPS, **changes)
    stopping = signal_in("loss", 5, signal.SIGTERM)
    assert run(arguments, log, before=[stopping, late]) == INTERRUPTED, log.read_text()
    # Asked for in step 5, known to the host when step 6 has begun.
    assert "SIGTERM: stopped after step 6." in log.read_text()
    state = final_state(tmp_path / "late")
    assert state["progress"]["step"] == 6
    assert len(state["progress"]["history"]) == 6
    assert run(arguments, log, before=late) == DONE, log.read_text()

    undisturbed = pretrain_arguments(data, tmp_path / "at-once", STEPS, **changes)
    assert run(undisturbed, log, before=without_pictures) == DONE, log.read_text()
    assert_same_run(tmp_path / "late", tmp_path / "at-once")


def test_a_loss_that_stops_the_run_is_told_of_its_own_step(data: Path, tmp_path: Path) -> None:
    log, run_dir = tmp_path / "log", tmp_path / "run"
    arguments = pretrain_arguments(data, run_dir, STEPS, log__every_steps=100)
    assert run(arguments, log, before=[partial(lose, 8), late]) == FAILED
    assert "step 8, process 0: the loss is nan" in log.read_text()
    kept = torch.load(run_dir / "nonfinite-step-00000008-0.pt", weights_only=True)
    assert kept["step"] == 8
    assert final_state(run_dir)["progress"]["step"] == 6
    # What was read for the step, and not what was read for the one that had begun.
    again = run(arguments, log, before=[partial(lose, 2), late])
    assert again == FAILED
    assert_same_state(torch.load(run_dir / "nonfinite-step-00000008-0.pt", weights_only=True), kept)


def steps_of(is_late: bool, bad: int) -> tuple[dict[str, Any], list[StepResult]]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    groups = [{"params": list(model.parameters()), "weight_decay": 0.1}]
    optimization = Optimization(
        model,
        create_optimizer(groups, OptimConfig(base_lr=0.1), ALONE.device),
        lambda step: 0.1,
        ALONE,
        clip_grad=0.5,
        is_late=is_late,
    )
    rng, results = torch.Generator().manual_seed(1), []
    for step in range(4):
        batch = torch.randn(4, 3, generator=rng)
        batch[0, 0] = math.nan if step == bad else batch[0, 0]
        taken = optimization.step(step, [batch], lambda rows: model(rows).square().mean())
        assert isinstance(taken, LateResult) == is_late
        results.append(taken.read())
    return {"model": model.state_dict(), **optimization.state_dict()}, results


@pytest.mark.parametrize("bad", [0, 2])
def test_the_device_leaves_out_the_steps_that_the_host_would(bad: int) -> None:
    (state, results), (expected, told) = steps_of(True, bad), steps_of(False, bad)
    assert_same_state(state, expected)
    assert [result.is_finite for result in results] == [step != bad for step in range(4)]
    for result, other in zip(results, told, strict=True):
        assert str(result) == str(other)


@pytest.mark.parametrize("is_fused", [True, None])
def test_a_run_goes_on_with_the_kernel_that_it_began_with(is_fused: bool | None) -> None:
    """On a CPU, which has both: a run of an earlier version computes as it did, bit for bit."""

    def make(**kind: Any) -> tuple[nn.Module, Optimization]:
        torch.manual_seed(0)
        model = nn.Linear(300, 200)
        groups = [{"params": list(model.parameters()), "weight_decay": 0.1}]
        if kind:
            optimizer = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.95), **kind)
        else:
            optimizer = create_optimizer(groups, OptimConfig(base_lr=0.1), ALONE.device)
        return model, Optimization(model, optimizer, lambda step: 0.1, ALONE)

    def train(model: nn.Module, optimization: Optimization, steps: range) -> None:
        for step in steps:
            rows = torch.randn(5, 300, generator=torch.Generator().manual_seed(step))
            optimization.step(step, [rows], lambda rows: model(rows).square().mean())

    undisturbed = make(fused=is_fused)
    train(*undisturbed, range(4))
    first, second = make(fused=is_fused), make()
    train(*first, range(2))
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(first[1].state_dict())
    train(*second, range(2, 4))
    (group,) = second[1].state_dict()["optimizer"]["param_groups"]
    assert group["fused"] is is_fused
    assert_same_state(second[0].state_dict(), undisturbed[0].state_dict())


def test_optimizers_are_fused_where_torch_has_it() -> None:
    for device, is_fused in (("cpu", True), ("cuda", True), ("mtia", None)):
        groups = [{"params": [nn.Parameter(torch.ones(2))]}]
        made = create_optimizer(groups, OptimConfig(base_lr=0.1), torch.device(device))
        assert made.param_groups[0]["fused"] is is_fused
