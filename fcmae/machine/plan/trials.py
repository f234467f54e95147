"""Trials of a pretraining, each in a process of its own so that its peak memory is its own."""

import contextlib
import dataclasses
import functools
import multiprocessing
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from fcmae.data import MicroBatches, PixelCache, SampleStream, make_loader
from fcmae.errors import ConfigError, DataError
from fcmae.machine.memory import call_alone, peak_bytes, private_bytes
from fcmae.model.compiling import compiled
from fcmae.model.masking import draw_visible
from fcmae.pretraining.task import Pretraining, open_data
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.reading import from_plain, to_plain
from fcmae.settings.sections import RunConfig
from fcmae.training.loop import TrainingLoop
from fcmae.training.optimization import Optimization, create_optimizer
from fcmae.training.processes import start_processes

STEP_SECONDS = 4.0  # of steps on made images that are timed
MOST_STEPS = 20
READ_BATCHES = 4  # per reader

Plain = dict[str, Any]


def run_trial(trial: Callable[[Plain], Plain], config: PretrainConfig) -> tuple[Plain, float]:
    """Run a trial in a new process; return its result and the seconds that the process lived.

    Raises:
        ConfigError: the memory is too small for the batch.
        DataError: the trial failed for another reason.
    """
    started = time.monotonic()
    try:
        return call_alone(trial, to_plain(config)), time.monotonic() - started
    except ChildProcessError as error:
        status, last = error.args
        if status < 0 or "OutOfMemory" in last or "can't allocate memory" in last:
            raise ConfigError(
                f"train.batch_size: {config.train.batch_size} images at a time do not fit into the "
                "memory of this machine; use fewer and raise train.accumulate, or set "
                "model.checkpoint_activations true."
            ) from error
        raise DataError(f"plan: the trial run failed: {last}") from error


class _Trial(Pretraining):
    """A pretraining whose cache is given nothing but what its own steps read.

    Attributes:
        num_cached: images that it was given.
    """

    num_cached = 0

    def fill_cache(self, cache: PixelCache, run: TrainingLoop) -> None:
        stream = SampleStream(len(self.images), self.config.train.seed, run.effective_batch)
        keys = stream.samples(0, run.total_steps * run.effective_batch)
        self.num_cached = len({index for _, index in keys})
        cache.fill(self.config.data.workers, run.say, {index for _, index in keys})


def _with_cache_in(config: PretrainConfig, folder: str) -> PretrainConfig:
    """Return settings whose cache, if there is one, lies in `folder`: the user's stays as it is."""
    if config.data.cache is None:
        return config
    data = dataclasses.replace(config.data, cache=str(Path(folder) / "cache"))
    return dataclasses.replace(config, data=data)


def measure_parts(settings: Plain) -> Plain:
    """Measure reading alone, steps alone on made images, and the memory of two batch sizes."""
    config = from_plain(PretrainConfig, settings, where="fcmae plan")
    processes = start_processes(config.train.device)
    task = Pretraining(config, open_data(config))
    with tempfile.TemporaryDirectory(prefix="fcmae-plan-") as folder:
        cached = _with_cache_in(config, folder)
        read_seconds = _time_reading(task if cached is config else Pretraining(cached, task.images))
    size = config.train.batch_size
    half, whole = (size // 2, size) if size > 1 else (1, 2)
    network = compiled(task.model.to(processes.device), config.train.compile)
    optimization = Optimization(
        network,
        create_optimizer(task.parameter_groups(), config.optim, processes.device),
        lambda step: 0.0,
        processes,
        precision=config.train.precision,
        clip_grad=config.optim.clip_grad,
    )
    compute_loss = functools.partial(task.compute_loss, network)
    peaks, seconds = [], 0.0
    for batch_size in (half, whole):
        batch = _noise(task, batch_size, processes.device)
        step = functools.partial(optimization.step, 0, [batch], compute_loss)
        step()
        step()
        seconds = _median_seconds(step)
        peaks.append(_peak(processes.device))
    return {
        "read_seconds_per_image": read_seconds,
        "compute_seconds_per_image": seconds / whole,
        "bytes_per_image": max(0.0, (peaks[1] - peaks[0]) / (whole - half)),
        "num_threads": torch.get_num_threads(),
    }


def rehearse(settings: Plain) -> Plain:
    """Run a pretraining under the stopwatch and return the seconds of everything it did."""
    config = from_plain(PretrainConfig, settings, where="fcmae plan")
    seconds: dict[str, list[float]] = defaultdict(list)
    readers: list[int] = []

    @contextlib.contextmanager
    def measured(name: str) -> Iterator[None]:
        if name == "finish":  # the readers have done their work and are still there
            sizes = [private_bytes(child.pid or 0) for child in multiprocessing.active_children()]
            readers.extend(size for size in sizes if size is not None)
        started = time.monotonic()
        yield
        seconds[name].append(time.monotonic() - started)

    processes = start_processes(config.train.device)
    with tempfile.TemporaryDirectory(prefix="fcmae-plan-") as folder:
        run = RunConfig(dir=str(Path(folder) / "run"))
        config = dataclasses.replace(_with_cache_in(config, folder), run=run)
        task = _Trial(config, open_data(config))
        TrainingLoop(task, processes, measured).run()
    device = processes.device
    return {
        "num_cached": task.num_cached,
        "seconds": seconds,
        "peak_bytes": peak_bytes(),
        "device_bytes": _peak(device) if device.type == "cuda" else None,
        "reader_bytes": readers,
    }


def _time_reading(task: Pretraining) -> float:
    """Return the seconds per image of all readers together, while nothing else runs."""
    config = task.config
    size, workers = config.train.batch_size, config.data.workers
    count = 1 + READ_BATCHES * max(1, workers)
    stream = SampleStream(len(task.images), config.train.seed, size)
    cache = task.open_cache()
    if cache is not None:
        keys = stream.samples(0, count * size)
        cache.fill(workers, lambda _: None, {index for _, index in keys})
    loader = make_loader(
        task.create_dataset(),
        MicroBatches(stream, 0, count, size),
        workers,
        timeout_seconds=config.data.timeout_seconds,
    )
    arrivals = [time.monotonic() for _ in loader]
    # The first of each reader come together, and towards the end readers are idle.
    measured = arrivals[max(1, workers) - 1 : len(arrivals) - max(0, workers - 1)]
    return (measured[-1] - measured[0]) / (len(measured) - 1) / size


def _noise(task: Pretraining, batch_size: int, device: torch.device) -> dict[str, Any]:
    """Return a batch of made images: what a step costs does not depend on the pictures."""
    model, rng = task.model, torch.Generator().manual_seed(0)
    images = torch.rand(batch_size, model.in_chans, *model.image_size, generator=rng)
    visible = draw_visible(batch_size, model.num_patches, model.mask_ratio, rng)
    return {"image": images.to(device), "visible": visible.to(device)}


def _median_seconds(step: Callable[[], object]) -> float:
    def durations() -> Iterator[float]:
        begun = time.monotonic()
        for _ in range(MOST_STEPS):
            started = time.monotonic()
            step()
            yield time.monotonic() - started
            if time.monotonic() - begun > STEP_SECONDS:
                return

    found = sorted(durations())
    return found[len(found) // 2]


def _peak(device: torch.device) -> int:
    """Return the largest memory of the device so far: the GPU's, or that of this process."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else peak_bytes()
