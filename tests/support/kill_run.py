"""Kills a real run again and again and compares it with an undisturbed one, bit for bit.

`python tests/support/kill_run.py [KILLS] [WORKERS]` (200 and 1): about a second per kill.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pictures_on_disk import write_pictures
from real_runs import assert_same_run, pretrain_arguments, run, start, wait

EVENTS = ("fsync", "rename", "replace", "unlink", "mkdir")


def kill_again_and_again(
    arguments: list[str], run_dir: Path, log: Path, kills: int, rng: random.Random, life: float
) -> int:
    """Start a run `kills` times, killing it each time; return how often that hit it alive.

    A life ends after a random time of up to `life` seconds, or a random moment after its first
    checkpoint, so that a fast machine does not finish the run before the last kill.
    """
    alive = 0
    for _ in range(kills):
        before = newest(run_dir)
        pid = start(arguments, log)
        end = time.monotonic() + rng.uniform(0, life)
        while time.monotonic() < end and newest(run_dir) == before:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, life / 50))
        os.kill(pid, signal.SIGKILL)  # one that has ended is a zombie until it is waited for
        alive += wait(pid) == -signal.SIGKILL
    return alive


def newest(run_dir: Path) -> str:
    """Return the name of the newest checkpoint, or ""."""
    return max((path.name for path in run_dir.glob("checkpoints/step-*")), default="")


def kill_at_event(number: int) -> Callable[[], None]:
    """Return what makes a process kill itself before its `number`th change of the disk.

    Those are calls of EVENTS in os, and writes of a checkpoint's state.
    """
    return partial(_kill_at_event, number)


def _kill_at_event(number: int) -> None:
    counted = 0

    def count() -> None:
        nonlocal counted
        counted += 1
        if counted == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            count()
            return function(*args, **kwargs)

        return wrapped

    for name in EVENTS:
        setattr(os, name, counting(getattr(os, name)))
    save = torch.save

    def save_half(state: Any, file: Any, *args: Any) -> None:
        write, written = file.write, 0

        def write_counting(data: bytes) -> Any:
            nonlocal written
            written += 1
            if written in (2, 40):  # soon after the beginning, and inside
                count()
            return write(data)

        file.write = write_counting
        save(state, file, *args)

    torch.save = save_half


def main(kills: int = 200, workers: int = 1, seed: int = 0) -> None:
    """Print how often a run was killed and that it is the same."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_pictures(root / "data", 13)
        steps = 3 * kills
        names = {"data__workers": workers, "checkpoint__every_steps": 2}
        undisturbed = pretrain_arguments(root / "data", root / "undisturbed", steps, **names)
        started = time.monotonic()
        assert run(undisturbed, root / "log") == 0
        seconds = time.monotonic() - started
        killed = pretrain_arguments(root / "data", root / "killed", steps, **names)
        life = 2.0 + 12 * seconds / steps  # a start and a few steps
        rng = random.Random(seed)
        count = kill_again_and_again(killed, root / "killed", root / "log", kills, rng, life)
        assert wait(start(killed, root / "log"), 10 * seconds + 60) == 0
        assert_same_run(root / "killed", root / "undisturbed")
        print(f"{steps} steps with {workers} workers, killed {count} times: the same, bit for bit.")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
