"""How long a step of a task takes here, with its reading: a few real ones, thrown away."""

from __future__ import annotations

import functools
import itertools
import math
import time
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fcmae.data import MicroBatches, SampleStream, make_loader, seeded
from fcmae.data.transfer import DeviceBatches
from fcmae.runs import terminal
from fcmae.training.optimization import Optimization, create_optimizer
from fcmae.training.processes import Processes
from fcmae.training.schedule import effective_batch_of
from fcmae.training.task import Task

MEASURED_SECONDS = 8.0
FEWEST_STEPS, MOST_STEPS = 4, 40
PREFETCH = 2  # batches that each reader has ready before the first step


def seconds_per_step(task: Task, processes: Processes) -> float:
    """Return the seconds of a step, the slowest process's.

    The task must not be used for anything else afterwards. Nothing is written, and no weight
    changes: the rate is 0.

    Raises:
        ConfigError: fewer images than a step takes.
        DataError: images that cannot be used.
    """
    config = task.config
    effective_batch = effective_batch_of(config.train, processes.world_size, len(task.images))
    task.model.to(processes.device).train()
    network: nn.Module = task.model
    if processes.world_size > 1:
        network = DistributedDataParallel(network)
    optimization = Optimization(
        network,
        create_optimizer(task.parameter_groups(), config.optim, processes.device),
        lambda step: 0.0,
        processes,
        precision=config.train.precision,
        accumulate=config.train.accumulate,
    )

    def compute_loss(sent: tuple[dict[str, Any], dict[str, Any]]) -> Tensor:
        _, on_device = sent
        with seeded(0):
            return task.compute_loss(network, on_device)

    # The first steps are slow by themselves and then find batches that were made before them.
    warm = 2 + math.ceil(PREFETCH * config.data.workers / config.train.accumulate)
    batches = _batches(task, processes, effective_batch, warm + MOST_STEPS)
    if processes.is_main:
        terminal.say("measuring how long a step takes ...")
    started = time.monotonic()
    for step in range(warm + MOST_STEPS):
        if step == warm:
            started = time.monotonic()
        spent = time.monotonic() - started
        is_enough = step - warm >= FEWEST_STEPS and spent > MEASURED_SECONDS
        micro_batches = itertools.islice(batches, config.train.accumulate)
        # All processes stop in the same step: a question that the step asks them all.
        answer = functools.partial(tuple, (is_enough,))
        result = optimization.step(step, micro_batches, compute_loss, answer).read()
        if result.agreed[0]:
            break
    mine = (time.monotonic() - started) / (step + 1 - warm)
    everyones: Any = processes.gather([mine])
    return float(max(everyones))


def _batches(task: Task, processes: Processes, effective_batch: int, steps: int) -> DeviceBatches:
    train = task.config.train
    micro_batches = MicroBatches(
        SampleStream(len(task.images), train.seed, effective_batch),
        0,
        steps,
        train.batch_size,
        train.accumulate,
        processes.rank,
        processes.world_size,
    )
    loader = make_loader(
        task.create_dataset(),
        micro_batches,
        task.config.data.workers,
        timeout_seconds=task.config.data.timeout_seconds,
        pin_memory=processes.device.type == "cuda",
    )
    return DeviceBatches(loader, processes.device)
