"""Faults of files, disks and processes under a segmentation: what classification promises, too."""

from __future__ import annotations

import errno
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from kill_run import kill_again_and_again
from masked_pictures import segment_arguments, write_pairs
from real_runs import (
    assert_same_run,
    assert_same_state,
    run,
    start,
    wait,
    wait_for,
)
from safetensors.torch import load_file
from undrawn import without_pictures

from fcmae.__main__ import main
from fcmae.errors import DONE, FAILED, INTERRUPTED
from fcmae.weights import segmenter

pytestmark = pytest.mark.usefixtures("undrawn")

RANDOM = {"model__drop_path": 0.3, "ema__decay": 0.5, "evaluate__every_steps": 4}
STEPS = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"), 14)


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert main(segment_arguments(data, folder, train__steps=STEPS, **RANDOM)) == DONE
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_segmentation_goes_on_exactly(
    workers: int, data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    words = segment_arguments(
        data, tmp_path / "run", train__steps=STEPS, data__workers=workers, **RANDOM
    )
    log = tmp_path / "log"
    pid = start(words, log, before=without_pictures)
    try:
        wait_for(tmp_path / "run" / "checkpoints" / "step-00000003", pid)
        os.kill(pid, signal.SIGTERM)
    finally:
        status = wait(pid)
    assert status == INTERRUPTED, log.read_text()
    assert run(words, log, before=without_pictures) == DONE, log.read_text()
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_segmentation_killed_at_random_moments_is_the_undisturbed_one(
    data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    words = segment_arguments(data, tmp_path / "run", train__steps=STEPS, **RANDOM)
    log = tmp_path / "log"
    kill_again_and_again(words, tmp_path / "run", log, 3, random.Random(5), 2.0)
    assert run(words, log, before=without_pictures) == DONE, log.read_text()
    assert_same_run(tmp_path / "run", undisturbed)


def test_pictures_and_masks_that_vanish_are_skipped_and_listed(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", 14)
    words = segment_arguments(
        data, tmp_path / "run", train__steps=40, data__max_skipped_share=0.5,
        augment__class_balanced=0,
    )  # fmt: skip
    log = tmp_path / "log"
    pid = start(words, log, before=without_pictures)
    try:
        wait_for(tmp_path / "run" / "checkpoints" / "step-00000003", pid)
        os.kill(pid, signal.SIGTERM)
    finally:
        wait(pid)
    used = (tmp_path / "run/images.jsonl").read_text()
    gone = [name for name in (f"{number:02}.png" for number in range(14)) if name in used]
    for name in gone[:1]:
        (data / "images" / name).unlink()
    for name in gone[1:2]:
        (data / "masks" / name).unlink()
    for name in gone[2:3]:
        (data / "masks" / name).write_bytes(b"no mask")
    assert run(words, log, before=without_pictures) == DONE, log.read_text()
    listed = (tmp_path / "run/skipped_files.txt").read_text()
    for folder, name in zip(("images", "images", "masks"), gone, strict=False):
        assert f"{folder}/{name}" in listed, listed
    assert "it has no mask any more" in listed
    assert "Traceback" not in log.read_text()


def test_best_weights_that_the_disk_refuses_are_written_when_it_takes_them(
    data: Path,
    undisturbed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write, refused = segmenter.write_atomically, [0]

    def refuse(path: Path, fill: Any) -> None:
        if path.name == segmenter.BEST_FILE and refused[0] < 2:
            refused[0] += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, fill)

    monkeypatch.setattr(segmenter, "write_atomically", refuse)
    words = segment_arguments(data, tmp_path / "run", train__steps=STEPS, **RANDOM)
    assert main(words) == DONE
    assert refused == [2]
    assert "No space left on device" in capsys.readouterr().err
    name = f"export/{segmenter.BEST_FILE}"
    assert_same_state(load_file(tmp_path / "run" / name), load_file(undisturbed / name))


def test_best_weights_that_were_never_written_are_no_success_and_come_with_the_next_start(
    data: Path,
    undisturbed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(path: Path, fill: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    words = segment_arguments(data, tmp_path / "run", train__steps=STEPS, **RANDOM)
    with monkeypatch.context() as patch:
        patch.setattr(segmenter, "write_atomically", refuse)
        assert main(words) == FAILED
    assert "All steps are taken and saved." in capsys.readouterr().err
    assert not (tmp_path / "run" / "finished.txt").exists()
    assert main(words) == DONE
    name = f"export/{segmenter.BEST_FILE}"
    assert_same_state(load_file(tmp_path / "run" / name), load_file(undisturbed / name))
