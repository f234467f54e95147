"""A task is a data set and a loss: all else of a run, and the order of things, is the loop's."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures_on_disk import write_pictures
from real_runs import final_state
from settled import settled
from tiny_run import make_config
from torch import Tensor, nn

from fcmae.data import PretrainAugmentation, PretrainDataset, Reading, open_images, to_float
from fcmae.errors import CheckpointError, DiskError
from fcmae.runs.metrics import read_metrics
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.sections import CheckpointConfig, OptimConfig, TrainConfig
from fcmae.training.loop import TrainingLoop
from fcmae.training.optimization import StepResult
from fcmae.training.processes import Processes
from fcmae.training.task import Task

ALONE = Processes(0, 1, torch.device("cpu"))


class Brightness(Task):
    """Learns one number: how bright the pictures are."""

    def __init__(self, config: PretrainConfig) -> None:
        network = nn.Linear(1, 1)
        nn.init.zeros_(network.bias)  # black, wherever the global generator stands
        super().__init__(config, open_images(config.data.path), network)

    def create_dataset(self) -> PretrainDataset:
        return PretrainDataset(
            self.images,
            PretrainAugmentation((16, 16)),
            seed=self.config.train.seed,
            reading=Reading(in_chans=1),
            num_patches=4,
            mask_ratio=0.5,
        )

    def compute_loss(self, network: nn.Module, batch: dict[str, Any]) -> Tensor:
        guess = network(torch.zeros(1, 1))
        loss: Tensor = (to_float(batch["image"]).mean() - guess).square().mean()
        return loss


class Talking(Brightness):
    """Notes when it is asked for what, and has a state of its own."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__(config)
        self.events: list[str] = []
        self.seen = 0

    def prepare(self, run: TrainingLoop) -> None:
        self.events.append("prepare")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.events.append("load")
        self.seen = state["seen"]

    def begin(self, run: TrainingLoop) -> None:
        self.events.append(f"begin at {run.progress.step}")

    def after_step(self, run: TrainingLoop, result: StepResult) -> None:
        self.seen += 1
        self.events.append(f"step {run.progress.step}")

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def finish(self, run: TrainingLoop) -> None:
        self.events.append("finish")


class Failing(Talking):
    """Cannot write its results."""

    def finish(self, run: TrainingLoop) -> None:
        raise OSError(28, "No space left on device", "results.txt")


@pytest.fixture
def config(tmp_path: Path) -> PretrainConfig:
    write_pictures(tmp_path / "pictures", 9, channels=1)
    plain = make_config(tmp_path / "run")
    changed: PretrainConfig = dataclasses.replace(
        plain,
        data=dataclasses.replace(plain.data, path=str(tmp_path / "pictures")),
        train=TrainConfig(steps=4, batch_size=2, device="cpu"),
        optim=OptimConfig(base_lr=10.0),
        checkpoint=CheckpointConfig(every_steps=2, keep_every=2),
        log=dataclasses.replace(plain.log, every_steps=1, tensorboard=False),
    )
    found: PretrainConfig = settled(changed)
    return found


def test_a_data_set_and_a_loss_are_enough(config: PretrainConfig) -> None:
    assert TrainingLoop(Brightness(config), ALONE).run() is None
    losses = [line["loss"] for line in read_metrics(Path(config.run.dir) / "metrics.jsonl")]
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)
    state = final_state(Path(config.run.dir))
    assert state["progress"]["step"] == 4
    assert state["extra"] == {}


def test_a_run_that_is_over_holds_no_memory(config: PretrainConfig) -> None:
    """One command may make many runs, and garbage in cycles is collected at some later time."""
    task = Brightness(config)
    model = weakref.ref(task.model)
    gc.disable()
    try:
        TrainingLoop(task, ALONE).run()
        del task
        assert model() is None
    finally:
        gc.enable()


def test_a_task_is_asked_in_the_order_that_its_class_says(config: PretrainConfig) -> None:
    task = Talking(config)
    TrainingLoop(task, ALONE).run()
    steps = ["step 1", "step 2", "step 3", "step 4"]
    assert task.events == ["prepare", "begin at 0", *steps, "finish"]
    assert final_state(Path(config.run.dir))["extra"] == {"seen": 4}


def test_a_continued_task_has_its_state_again_and_results_are_made_again(
    config: PretrainConfig,
) -> None:
    with pytest.raises(DiskError, match=r"results\.txt: cannot be written .* All steps are taken"):
        TrainingLoop(Failing(config), ALONE).run()
    task = Talking(config)
    TrainingLoop(task, ALONE).run()
    assert task.events == ["prepare", "load", "begin at 4", "finish"]
    assert task.seen == 4
    task = Talking(config)
    TrainingLoop(task, ALONE).run()  # now it is finished
    assert task.events == ["prepare", "load"]


def test_a_checkpoint_of_another_task_is_one_sentence(config: PretrainConfig) -> None:
    TrainingLoop(Brightness(config), ALONE).run()
    with pytest.raises(CheckpointError, match="does not fit the model: 'seen'"):
        TrainingLoop(Talking(config), ALONE).run()


def test_whoever_measures_a_run_is_told_of_each_piece_of_work(config: PretrainConfig) -> None:
    entered: list[str] = []

    @contextlib.contextmanager
    def around(name: str) -> Iterator[None]:
        entered.append(name)
        yield

    TrainingLoop(Brightness(config), ALONE, around).run()
    assert entered == ["step", "step", "checkpoint", "step", "step", "checkpoint", "finish"]
