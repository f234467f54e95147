"""How long a pretraining takes from its command to the end of its first step."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from fcmae.errors import DataError
from fcmae.machine.bench.timing import Times
from fcmae.pretraining.task import Pretraining
from fcmae.training.loop import TrainingLoop
from fcmae.training.task import Task

FILES = 10_000
DIFFERENT, SIZE_PX = 64, (320, 240)
# The command itself, in an interpreter of its own.
_CHILD = """
import sys
from fcmae.machine.console import without_collections
with without_collections():  # as the command loads the same
    from fcmae.machine.bench.starting import end_after_a_step
end_after_a_step()
from fcmae.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def measure_starting(
    repeats: int,
    files: int = FILES,
    tell: Callable[[str], None] = print,
    settings: Sequence[str] = (),
) -> tuple[Times, Times]:
    """Return the seconds on the clock, and those of computing, of each round after a first one.

    Args:
        repeats: rounds after the first one.
        files: images that the pretraining finds.
        tell: takes a sentence on what is being done.
        settings: words of the pretraining, such as `--train.batch_size=4`; the rest is left to it.

    Raises:
        DataError: the command failed.
    """
    with tempfile.TemporaryDirectory(prefix="fcmae-bench-") as folder:
        tell(f"making {files:,} files ...")
        _write(Path(folder) / "images", files)
        rounds = [_start(Path(folder), number, settings) for number in range(1 + repeats)]
    clock, computing = zip(*rounds[1:], strict=True)  # the first one fills caches
    return Times(clock), Times(computing)


def describe_starting(clock: Times, computing: Times, files: int = FILES) -> str:
    """Return both in a sentence."""
    return (
        f"fcmae pretrain on {files:,} files ends its first step {clock.median:.1f} s after the "
        f"command (median of {len(clock.rounds)}, {min(clock.rounds):.1f} to "
        f"{max(clock.rounds):.1f}), after {computing.median:.1f} s of computing."
    )


def _write(folder: Path, files: int) -> None:
    """Write so many small JPEGs, of DIFFERENT pictures."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = [folder / f"{number:06d}.jpg" for number in range(files)]
    for path in paths[:DIFFERENT]:
        pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(SIZE_PX).save(path, quality=80)
    for number, path in enumerate(paths[DIFFERENT:]):
        shutil.copyfile(paths[number % DIFFERENT], path)


def _start(folder: Path, number: int, settings: Sequence[str]) -> tuple[float, float]:
    where = {"run.dir": folder / f"run-{number}", "data.path": folder / "images"}
    words = [f"--{name}={value}" for name, value in where.items()]
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, "pretrain", *words, "--train.steps=1000", *settings],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise DataError(f"bench: the pretraining failed: {last}")
    ended, computing = map(float, done.stdout.splitlines()[-1].split())
    return ended - began, computing


def end_after_a_step() -> None:
    """Have this process end where a pretraining has taken its first step; print when, and what."""

    def end(task: Task, run: TrainingLoop, was_taken: bool | Tensor) -> None:
        print(time.time(), sum(os.times()[:2]), flush=True)
        os._exit(0)

    Pretraining.after_update = end  # type: ignore[assignment, method-assign]
