"""Turns what two trials measured into the time and the memory of a whole run."""

import dataclasses
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fcmae.errors import ConfigError
from fcmae.machine.hardware import num_cores
from fcmae.machine.memory import available_bytes
from fcmae.machine.plan.trials import measure_parts, rehearse, run_trial
from fcmae.pretraining.task import Pretraining, open_data, resolve
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.sections import image_height_width
from fcmae.training.loop import TrainingLoop
from fcmae.training.processes import start_processes

REHEARSED_SECONDS = 15.0  # of steps
FEWEST_STEPS, MOST_STEPS = 4, 60
PREFETCH = 2  # batches that each reader prepares ahead
LEAST_SECONDS = 0.001  # what takes less did nothing, such as scores without labels
ROOM = 0.9  # share of the free memory that a run may take


@dataclass(frozen=True)
class Part:
    """What a run does several times.

    Attributes:
        seconds: of each time.
        times: how often in the whole run.
    """

    name: str
    seconds: float
    times: int

    @property
    def total(self) -> float:
        """Seconds in the whole run."""
        return self.seconds * self.times


@dataclass(frozen=True)
class Plan:
    """What a run takes on this machine.

    Attributes:
        config: its settings.
        num_images: that it trains on.
        effective_batch: images per step.
        total_steps: of the whole run.
        parts: what takes its time, steps first; the last is start and end.
        memory_bytes: peak of the training process, on the CPU.
        reader_bytes: of all readers together, what they do not share.
        device_bytes: peak of the GPU's allocator; None on a CPU.
        free_bytes: what the device had free before.
        largest_batch: images at a time that should fit; None when nothing grew.
        read_rate: images per second of the readers alone.
        compute_rate: images per second of steps alone.
        rate: images per second of the run.
        cores: that this process may use.
        threads: that torch computes with.
        is_busy: whether other work took the cores while this was measured.
    """

    config: PretrainConfig
    device: str
    num_images: int
    effective_batch: int
    total_steps: int
    parts: tuple[Part, ...]
    memory_bytes: int
    reader_bytes: int
    device_bytes: int | None
    free_bytes: int
    largest_batch: int | None
    read_rate: float
    compute_rate: float
    rate: float
    cores: int
    threads: int
    is_busy: bool

    @property
    def seconds(self) -> float:
        """Of the whole run, with everything."""
        return sum(part.total for part in self.parts)

    @property
    def taken_bytes(self) -> int:
        """Of the memory that bounds the batch: the GPU's, or all of the processes."""
        if self.device_bytes is not None:
            return self.device_bytes
        return self.memory_bytes + self.reader_bytes

    @property
    def epoch_seconds(self) -> float:
        """Of one pass over the images, steps only."""
        return self.num_images / self.rate


def make_plan(config: PretrainConfig, say: Callable[[str], None]) -> Plan:
    """Measure some steps with these settings, and everything else that a run does, once.

    The folder of the run is not touched: what is written goes to a temporary one.

    Raises:
        ConfigError: a setting that cannot work, a batch that does not fit into the memory.
        DataError: images that cannot be used, or a trial that failed.
    """
    processes = start_processes(config.train.device)
    if processes.world_size > 1:
        raise ConfigError("plan: it measures one process; start it without torchrun.")
    images = open_data(config)
    config, rules = resolve(config, images, processes)
    for sentence in rules:
        say(sentence)
    run = TrainingLoop(Pretraining(config, images), processes)
    num_images = len(run.task.images)
    free = available_bytes(processes.device)
    say("measuring reading alone and steps alone ...")
    parts, _ = run_trial(measure_parts, config)
    batch_seconds = run.effective_batch * max(
        parts["compute_seconds_per_image"], parts["read_seconds_per_image"]
    )
    short, warm = short_run(config, run.total_steps, batch_seconds)
    say(f"a short run of {short.train.steps} steps in a temporary folder ...")
    load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    rehearsal, lived = run_trial(rehearse, short)
    labelled = sum(label >= 0 for label in run.task.images.labels or ())
    counts = count_parts(config, run.total_steps, has_labels=images.labels is not None)
    scored = Scored(min(labelled, config.evaluate.max_images), short.evaluate.max_images)
    timed = time_parts(rehearsal["seconds"], lived, warm, counts, scored, config)
    if rehearsal["num_cached"] and (missing := _num_uncached(config, run)):
        each = sum(rehearsal["seconds"]["cache"]) / rehearsal["num_cached"]
        timed = (*timed[:-1], Part("filling data.cache", each, missing), timed[-1])
    step_seconds = timed[0].seconds
    readers = sum(rehearsal["reader_bytes"])
    peak = rehearsal["device_bytes"]
    taken = rehearsal["peak_bytes"] + readers if peak is None else peak
    return Plan(
        config=config,
        device=str(processes.device),
        num_images=num_images,
        effective_batch=run.effective_batch,
        total_steps=run.total_steps,
        parts=timed,
        memory_bytes=rehearsal["peak_bytes"],
        reader_bytes=readers,
        device_bytes=peak,
        free_bytes=free,
        largest_batch=largest_batch(config, taken, free, parts["bytes_per_image"]),
        read_rate=1 / parts["read_seconds_per_image"],
        compute_rate=1 / parts["compute_seconds_per_image"],
        rate=run.effective_batch / step_seconds,
        cores=num_cores(),
        threads=parts["num_threads"],
        is_busy=load_before > 1.5 * (os.cpu_count() or 1),
    )


def _num_uncached(config: PretrainConfig, run: TrainingLoop) -> int:
    """Return how many images the user's cache lacks; a folder that is not there is not made."""
    task = run.task
    assert isinstance(task, Pretraining)
    if config.data.cache is None or not Path(config.data.cache).expanduser().is_dir():
        return len(task.images)
    cache = task.open_cache()
    return 0 if cache is None else len(cache.missing())


def short_run(
    config: PretrainConfig, total_steps: int, step_seconds: float
) -> tuple[PretrainConfig, int]:
    """Return settings of a short run that does everything, and its steps that do not count.

    The first steps find batches waiting that readers made before, and more than steps can use.
    """
    train, optim, evaluate = config.train, config.optim, config.evaluate
    warm = 1 + math.ceil(PREFETCH * config.data.workers / train.accumulate)
    wanted = min(max(FEWEST_STEPS, round(REHEARSED_SECONDS / step_seconds)), MOST_STEPS)
    steps = min(warm + wanted, total_steps)
    return dataclasses.replace(
        config,
        train=dataclasses.replace(train, steps=steps, epochs=None),
        optim=dataclasses.replace(optim, warmup_epochs=None, warmup_steps=None),
        evaluate=dataclasses.replace(
            evaluate,
            every_steps=None if evaluate.every_steps is None else steps,
            max_images=min(evaluate.max_images, max(2 * evaluate.labels, 10)),
        ),
        health=dataclasses.replace(config.health, checks=min(1, config.health.checks)),
        checkpoint=dataclasses.replace(config.checkpoint, every_steps=None, every_minutes=None),
        log=dataclasses.replace(config.log, pictures_every_steps=None, to="tensorboard"),
    ), min(warm, steps - 1)


def count_parts(config: PretrainConfig, total_steps: int, *, has_labels: bool) -> dict[str, int]:
    """Return how often a run does what; checkpoints by the clock are counted by `time_parts`."""

    def times(every: int | None) -> int:
        return total_steps // every if every else 0

    checkpoint, evaluate, checks = config.checkpoint, config.evaluate, config.health.checks
    every = checkpoint.every_steps
    scored = has_labels and evaluate.every_steps is not None and evaluate.draws > 0
    return {
        "step": total_steps,
        "picture": 2 + times(config.log.pictures_every_steps),
        "knn": 1 + times(evaluate.every_steps) if scored else 0,
        "health": 1 + len({round(total_steps * (n + 1) / checks) for n in range(checks)}),
        "checkpoint": times(every) + (not every or total_steps % every > 0),
    }


@dataclass(frozen=True)
class Scored:
    """How many labelled images a run and its rehearsal are scored on."""

    in_run: int
    in_rehearsal: int

    @property
    def factor(self) -> float:
        """How much longer the run's scoring reads and encodes."""
        return self.in_run / max(1, min(self.in_rehearsal, self.in_run))


NAMES = {
    "step": "training steps",
    "picture": "pictures",
    "knn": "kNN scores",
    "health": "health checks",
    "checkpoint": "checkpoints",
}


def time_parts(
    seconds: Mapping[str, Sequence[float]],
    lived: float,
    warm: int,
    counts: Mapping[str, int],
    scored: Scored,
    config: PretrainConfig,
) -> tuple[Part, ...]:
    """Return what takes the time of a whole run, from the durations in a rehearsal.

    Args:
        seconds: durations by what took them.
        lived: seconds of the whole rehearsal.
        warm: its first steps, which do not count.
        counts: how often the run does what.
        scored: how many images both are scored on; reading and encoding grow with them.
        config: of the run.
    """
    parts = []
    features = seconds.get("features", [])
    for name, title in NAMES.items():
        found = seconds.get(name, [])
        found = found[warm:] if name == "step" else found
        if found and counts[name]:
            each = statistics.median(found)
            if name == "knn":
                each += (scored.factor - 1) * features[0]
            if each > LEAST_SECONDS:
                parts.append(Part(title, each, counts[name]))
    minutes = config.checkpoint.every_minutes
    if minutes is not None:
        by_clock = int(sum(part.total for part in parts) / 60 / minutes)
        parts = [
            dataclasses.replace(part, times=part.times + by_clock)
            if part.name == NAMES["checkpoint"]
            else part
            for part in parts
        ]
    once = lived - sum(sum(seconds.get(name, [])) for name in (*NAMES, "cache"))
    first = seconds["step"][:warm]
    once += max(0.0, sum(first) - len(first) * parts[0].seconds)
    if sum(seconds.get("scores", [])) > LEAST_SECONDS:
        once += (scored.factor - 1) * features[-1]
    return (*parts, Part("start, last scores and export", once, 1))


def largest_batch(
    config: PretrainConfig, taken: float, free: float, bytes_per_image: float
) -> int | None:
    """Return how many images at a time should fit into nine tenths of the free memory.

    Args:
        config: of the run.
        taken: bytes at its batch size.
        free: bytes that the device has for it.
        bytes_per_image: how fast the memory of steps grows.
    """
    height, width = image_height_width(config.data.image_size)
    image = 4 * config.data.in_chans * height * width
    waiting = PREFETCH * config.data.workers  # batches of readers, in shared memory
    growth = bytes_per_image
    if growth <= 0:
        return None
    if not torch.cuda.is_available() or config.train.device == "cpu":
        growth += waiting * image
    else:
        growth += image  # of the batch that is copied ahead
    return max(1, int(config.train.batch_size + (ROOM * free - taken) / growth))
