"""Whole runs on folders with broken files: finished, listed, resumed exactly, or stopped."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fork_server import PATIENCE_SECONDS
from image_files import FAULTS
from PIL import Image
from real_runs import (
    assert_same_run,
    before_step,
    lines_without_clock,
    pretrain_arguments,
    run,
    signal_in,
    start,
    wait,
    wait_for,
)
from torch import nn
from undrawn import without_pictures

from fcmae.errors import DONE, FAILED, INTERRUPTED, MISTAKE

GOOD = 200


def write_good(folder: Path, count: int) -> None:
    """Small pictures, and one of each kind that is unusual and yet fine."""
    folder.mkdir()
    rng = np.random.default_rng(4)
    for number in range(count):
        pixels = rng.integers(0, 256, (24, 20 + number % 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"good-{number:03d}.png")
    photo = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.save(folder / "really-a-png.jpg", format="PNG")
    photo.save(folder / "animated.gif", save_all=True, append_images=[photo.rotate(90)])
    Image.fromarray(rng.integers(0, 65536, (24, 24), dtype=np.uint16)).save(folder / "deep.png")
    photo.save(os.fsencode(folder) + b"/caf\xe9 \xff\n.png", format="PNG")


def write_faults(folder: Path) -> set[str]:
    """Write one file of each fault; return their names."""
    names = set()
    for name, (content, _) in FAULTS.items():
        if " for " not in name:
            (folder / f"bad {name}.png").write_bytes(content())
            names.add(f"bad {name}.png")
    (folder / "bad link.png").symlink_to("nowhere.png")
    (folder / "bad loop.png").symlink_to("bad loop.png")
    (folder / "loop").symlink_to(folder, target_is_directory=True)  # is entered once: no fault
    os.mkfifo(folder / "bad pipe.png")
    return {*names, "bad link.png", "bad loop.png", "bad pipe.png"}


def listed(run_dir: Path) -> set[str]:
    lines = os.fsencode((run_dir / "skipped_files.txt").read_bytes()).decode("latin-1").split("\n")
    assert lines.pop() == ""
    paths, reasons = zip(*(line.split("\t") for line in lines), strict=True)
    assert all(reasons)
    return {os.path.basename(path) for path in paths}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    folder = tmp_path_factory.mktemp("faulty") / "data"
    write_good(folder, GOOD)
    return folder, write_faults(folder)


def arguments_for(data: Path, run_dir: Path, **more: Any) -> list[str]:
    settings = {
        "train__steps": "null",
        "train__epochs": 1.2,
        "train__batch_size": 12,
        "data__max_skipped_share": 0.3,
        "health__checks": 1,  # some faults are held out of the training and must be listed, too
        "log__every_steps": 3,
        "checkpoint__every_steps": 2,
    }
    return pretrain_arguments(data, run_dir, 0, **{**settings, **more})


def test_every_fault_is_skipped_counted_and_listed_and_resuming_is_exact(
    faulty: tuple[Path, set[str]], tmp_path: Path
) -> None:
    data, bad = faulty
    assert len(bad) >= 20
    log = tmp_path / "log"
    whole = arguments_for(data, tmp_path / "whole", data__workers=2)
    assert run(whole, log, before=without_pictures) == DONE, log.read_text()
    assert listed(tmp_path / "whole") == bad
    counted = [line.get("skipped_files") for line in lines_without_clock(tmp_path / "whole")]
    assert [count for count in counted if count is not None][-1] == len(bad)
    assert "Traceback" not in log.read_text()
    stopped = arguments_for(data, tmp_path / "stopped")
    for call in (5, 7):
        before = signal_in("loss", call, signal.SIGTERM)
        assert run(stopped, log, before=before) == INTERRUPTED
    assert run(stopped, log, before=without_pictures) == DONE
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    assert listed(tmp_path / "stopped") == bad


@pytest.mark.parametrize("kind", ["undecodable", "links to nothing"])
def test_thirty_per_cent_of_bad_files_stop_the_run_with_a_summary(
    kind: str, tmp_path: Path
) -> None:
    write_good(tmp_path / "data", 65)
    for number in range(30):
        path = tmp_path / "data" / f"bad-{number:02d}.png"
        if kind == "undecodable":
            path.write_bytes(b"")
        else:
            path.symlink_to("nowhere")
    log = tmp_path / "log"
    arguments = arguments_for(tmp_path / "data", tmp_path / "run", data__max_skipped_share=0.05)
    assert run(arguments, log) == MISTAKE
    told = log.read_text().splitlines()[-1]
    assert told.startswith("fcmae: error: data.path: ")
    assert "of 100 files cannot be used (" in told
    assert "more than data.max_skipped_share 5.0%): " in told
    assert "skipped_files.txt; repair or remove them, or raise data.max_skipped_share." in told
    assert len(listed(tmp_path / "run")) > 5
    assert not (tmp_path / "run" / "checkpoints").exists() or kind == "undecodable"


def in_reader(act: Callable[[], object], at_index: int = 7) -> None:
    """Make readers `act` when they come to an image."""
    from fcmae.data import PretrainDataset

    without_pictures()
    original = PretrainDataset.__getitem__

    def read(self: Any, key: tuple[int, int]) -> Any:
        if key[1] == at_index:
            act()
        return original(self, key)

    PretrainDataset.__getitem__ = read  # type: ignore[method-assign]


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "data"
    write_good(folder, 20)
    return folder


def test_a_reader_that_dies_is_named_and_the_run_goes_on_when_started_again(
    small: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    arguments = pretrain_arguments(small, tmp_path / "run", 8, data__workers=2)
    before = partial(in_reader, kill_this_process)
    assert run(arguments, log, before=before) == MISTAKE
    assert "of 2 (process " in log.read_text()
    assert "was killed by SIGKILL. Most often the system lacked memory" in log.read_text()
    assert run(arguments, log, before=without_pictures) == DONE


def test_a_reader_that_is_stuck_is_told_after_the_timeout(small: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = pretrain_arguments(
        small, tmp_path / "run", 8, data__workers=1, data__timeout_seconds=1
    )
    stuck = partial(in_reader, partial(time.sleep, 2 * PATIENCE_SECONDS))
    assert run(arguments, log, before=stuck) == MISTAKE
    assert "no batch for 1 s, a reader is stuck; the batch that is late holds" in log.read_text()


def test_files_that_vanish_during_the_run_are_skipped(small: Path, tmp_path: Path) -> None:
    data, log = tmp_path / "data", tmp_path / "log"
    write_good(data, 20)
    arguments = pretrain_arguments(
        data, tmp_path / "run", 40, data__workers=1, data__max_skipped_share=0.5
    )
    pid = start(arguments, log, before=without_pictures)
    wait_for(tmp_path / "run" / "checkpoints" / "step-00000003", pid)
    (data / "good-005.png").unlink()
    (data / "good-006.png").write_bytes(b"changed")
    assert wait(pid) == DONE, log.read_text()
    assert listed(tmp_path / "run") == {"good-005.png", "good-006.png"}


def poison(model: nn.Module) -> None:
    next(model.parameters()).data[0] = float("inf")


def test_poisoned_weights_stop_the_run_with_everything_needed_to_look_into_it(
    small: Path, tmp_path: Path
) -> None:
    log, arguments = tmp_path / "log", pretrain_arguments(small, tmp_path / "run", 8)
    assert run(arguments, log, before=partial(before_step, 5, poison)) == FAILED
    told = log.read_text().splitlines()[-1]
    assert "error: step 5, process 0: the loss is nan" in told
    assert re.search(r"finite losses before: [01]\.?\d*(, [01]\.?\d*){3}\. The process read", told)
    assert "good-" in told
    saved = torch.load(tmp_path / "run" / "nonfinite-step-00000005-0.pt", weights_only=True)
    assert saved["step"] == 5
    assert saved["batches"][0]["image"].shape == (4, 3, 64, 64)
    assert run(arguments, log, before=without_pictures) == DONE  # the weights on disk are good
