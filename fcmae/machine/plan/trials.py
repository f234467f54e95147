"""Trials of a pretraining, each in a process of its own so that its peak memory is its own.

Run as `python -m fcmae.machine.plan.trials TRIAL SETTINGS RESULT`; see `run_trial`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fcmae.data import MicroBatches, SampleStream, make_loader, open_images
from fcmae.data.splits import hold_out
from fcmae.errors import ConfigError, DataError
from fcmae.machine.plan.memory import peak_bytes, private_bytes
from fcmae.model.autoencoder import FCMAE, create_model
from fcmae.model.masking import draw_visible
from fcmae.pretraining.setup import create_dataset, create_optimizer, open_cache
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.reading import load, to_yaml
from fcmae.settings.sections import RunConfig
from fcmae.training.optimization import Optimization
from fcmae.training.processes import start_processes

STEP_SECONDS = 4.0  # of steps on made images that are timed
MOST_STEPS = 20
READ_BATCHES = 4  # per reader

Result = dict[str, Any]


def run_trial(name: str, config: PretrainConfig) -> tuple[Result, float]:
    """Run a trial in a new process; return its result and the seconds that the process lived.

    Raises:
        ConfigError: the memory is too small for the batch.
        DataError: the trial failed for another reason.
    """
    with tempfile.TemporaryDirectory(prefix="fcmae-plan-") as folder:
        settings, result = Path(folder) / "settings.yaml", Path(folder) / "result.json"
        settings.write_text(to_yaml(config), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "fcmae.machine.plan.trials",
            name,
            str(settings),
            str(result),
        ]
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - started
        if done.returncode == 0:
            found: Result = json.loads(result.read_text(encoding="utf-8"))
            return found, seconds
    lines = [line.strip() for line in done.stderr.replace("\r", "\n").split("\n") if line.strip()]
    last = lines[-1] if lines else f"exit status {done.returncode}"
    if done.returncode < 0 or "OutOfMemory" in last or "can't allocate memory" in last:
        raise ConfigError(
            f"train.batch_size: {config.train.batch_size} images at a time do not fit into the "
            "memory of this machine; use fewer and raise train.accumulate, or set "
            "model.checkpoint_activations true."
        )
    raise DataError(f"plan: the trial run failed: {last}")


def measure_parts(config: PretrainConfig) -> Result:
    """Measure reading alone, steps alone on made images, and the memory of two batch sizes."""
    processes = start_processes(config.train.device)
    read_seconds = _time_reading(config)
    size = config.train.batch_size
    half, whole = (size // 2, size) if size > 1 else (1, 2)
    model = create_model(config).to(processes.device)
    network: Any = torch.compile(model) if config.train.compile else model
    optimization = Optimization(
        network,
        create_optimizer(config, model),
        lambda step: 0.0,
        processes,
        precision=config.train.precision,
        clip_grad=config.optim.clip_grad,
    )
    peaks, seconds = [], 0.0
    for batch_size in (half, whole):
        batch = _noise(model, batch_size, processes.device)
        step = functools.partial(optimization.step, 0, [batch], lambda one: network(*one).loss)
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


def rehearse(config: PretrainConfig) -> Result:
    """Run a pretraining under the stopwatch and return the seconds of everything it did."""
    from fcmae.pretraining.monitoring import Watch
    from fcmae.pretraining.task import pretrain
    from fcmae.training.saving import RunSaving

    seconds: dict[str, list[float]] = defaultdict(list)
    readers: list[int] = []
    for owner, method, name in (
        (Optimization, "step", "step"),
        (RunSaving, "save", "checkpoint"),
        (Watch, "_draw_pictures", "picture"),
        (Watch, "_log_knn", "knn"),
        (Watch, "_log_health", "health"),
        (Watch, "_describe", "features"),
        (Watch, "_report_scores", "scores"),
    ):
        _put_under_stopwatch(owner, method, seconds[name])
    finish = Watch.finish

    def count_readers(watch: Watch, step: int) -> Path:
        sizes = [private_bytes(child.pid or 0) for child in multiprocessing.active_children()]
        readers.extend(size for size in sizes if size is not None)
        return finish(watch, step)

    Watch.finish = count_readers  # type: ignore[assignment,method-assign]
    with tempfile.TemporaryDirectory(prefix="fcmae-plan-") as folder:
        pretrain(dataclasses.replace(config, run=RunConfig(dir=str(Path(folder) / "run"))))
    device = start_processes(config.train.device).device
    return {
        "seconds": dict(seconds),
        "peak_bytes": peak_bytes(),
        "device_bytes": _peak(device) if device.type == "cuda" else None,
        "reader_bytes": readers,
    }


TRIALS: dict[str, Callable[[PretrainConfig], Result]] = {
    "measure_parts": measure_parts,
    "rehearse": rehearse,
}


def _put_under_stopwatch(owner: type, method: str, seconds: list[float]) -> None:
    """Let a method of a class append its duration to `seconds`; this process does nothing else."""
    measured = getattr(owner, method)

    @functools.wraps(measured)
    def timed(*arguments: Any, **settings: Any) -> Any:
        started = time.monotonic()
        try:
            return measured(*arguments, **settings)
        finally:
            seconds.append(time.monotonic() - started)

    setattr(owner, method, timed)


def _time_reading(config: PretrainConfig) -> float:
    """Return the seconds per image of all readers together, while nothing else runs."""
    images = open_images(config.data.path, config.data.label, exclude=config.data.exclude)
    training, _ = hold_out(images, config.health, config.train.seed, config.data.group)
    size, workers = config.train.batch_size, config.data.workers
    with torch.device("meta"):
        model = create_model(config)
    count = 1 + READ_BATCHES * max(1, workers)
    stream = SampleStream(len(training), config.train.seed, size)
    batches = MicroBatches(stream, 0, count, size)
    loader = make_loader(
        create_dataset(config, model, training, open_cache(config, model, training)),
        batches,
        workers,
        timeout_seconds=config.data.timeout_seconds,
    )
    arrivals = [time.monotonic() for _ in loader]
    # The first of each reader come together, and towards the end readers are idle.
    measured = arrivals[max(1, workers) - 1 : len(arrivals) - max(0, workers - 1)]
    return (measured[-1] - measured[0]) / (len(measured) - 1) / size


def _noise(model: FCMAE, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return images and visible patches: what a step costs does not depend on the pictures."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, model.in_chans, *model.image_size, generator=rng)
    visible = draw_visible(batch_size, model.num_patches, model.mask_ratio, rng)
    return images.to(device), visible.to(device)


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


def main(arguments: list[str]) -> None:
    """Run the trial that is named, with the settings in a file, and write its result."""
    name, settings, result = arguments
    found = TRIALS[name](load(PretrainConfig, settings))
    Path(result).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
