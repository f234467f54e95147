"""Batches come whole from their readers, whatever the machine lacks for it."""

from __future__ import annotations

import errno
import os
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import faults
import pytest
import torch
from fork_server import SERVER
from pictures_on_disk import write_pictures

from fcmae.data import (
    EvaluationDataset,
    EvaluationTransform,
    Reading,
    decoding,
    find_images,
    in_order,
    make_loader,
)
from fcmae.data.parcels import BY_PIPE, SMALLEST_SHARED, Sender
from fcmae.errors import DONE, MISTAKE, DataError, status_of

COUNT = 12


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "pictures", COUNT)
    return tmp_path / "pictures"


def load(folder: Path, workers: int) -> list[dict[str, Any]]:
    transform = EvaluationTransform((96, 96), mean=(0.5,) * 3, std=(0.5,) * 3)
    dataset = EvaluationDataset(find_images(str(folder)), transform, reading=Reading(in_chans=3))
    return list(make_loader(dataset, in_order(COUNT, 4), workers))


def compare(fault: faults.Fault, folder: Path) -> int:
    """Be a process that loads with and without workers under a fault, and compares."""

    def work() -> None:
        alone = load(folder, 0)
        fault(folder)
        together = load(folder, 2)
        assert len(alone) == len(together) == COUNT // 4
        for one, other in zip(alone, together, strict=True):
            assert one.keys() == other.keys()
            assert torch.equal(one["image"], other["image"])
            assert one["path"] == other["path"]

    return status_of(work)


def needs_mounts() -> None:
    if SERVER.wait(SERVER.start(faults.can_mount, Path(os.devnull))) != 0:
        pytest.skip("NOT RUN: this kernel lets nobody mount here")


def told_under(fault: faults.Fault, folder: Path, status: int) -> str:
    log = folder.with_name("log")
    assert SERVER.wait(SERVER.start(partial(compare, fault, folder), log)) == status, (
        log.read_text()
    )
    return log.read_text()


def test_a_batch_that_finds_no_room_in_shared_memory_comes_through_a_pipe(pictures: Path) -> None:
    needs_mounts()
    little = partial(faults.little_shared_memory, size="100k")
    told = told_under(little, pictures, DONE)
    assert told.count("\n") == 1  # once, however many batches and readers
    assert "batches come through pipes, which is slower, since /dev/shm has no room" in told
    assert "docker run --shm-size=1g" in told


def test_without_any_shared_memory_one_sentence_says_what_to_change(pictures: Path) -> None:
    needs_mounts()
    none = partial(faults.little_shared_memory, size="4k,nr_inodes=2")
    told = told_under(none, pictures, MISTAKE)
    assert told.count("\n") == 1
    assert "data.workers: 2 readers cannot be started (No space left on device)" in told
    assert "--shm-size=1g" in told
    assert "with 0, images are read by the process that computes" in told


def test_too_few_descriptors_for_readers_are_one_sentence(pictures: Path) -> None:
    told = told_under(partial(faults.few_descriptors, number=13), pictures, MISTAKE)
    assert told.count("\n") == 1
    assert "data.workers: " in told
    assert "allow more open files (ulimit -n 4096; it is 13)" in told


def test_few_descriptors_that_are_enough_change_nothing(pictures: Path) -> None:
    assert told_under(partial(faults.few_descriptors, number=40), pictures, DONE) == ""


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_file_that_finds_no_descriptor_is_not_left_out_as_damaged(
    number: int, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise ValueError("wrapped by a library") from OSError(number, os.strerror(number))

    monkeypatch.setattr(decoding, "read", refuse)
    with pytest.raises(DataError, match=r"too many files are open to read it.*ulimit -n 4096"):
        load(pictures, 0)


def test_a_parcel_holds_what_went_in_by_both_ways() -> None:
    batch: dict[str, Any] = {
        "image": torch.arange(SMALLEST_SHARED, dtype=torch.float32).view(2, -1),
        "label": torch.tensor([3, 4]),
        "path": ["a", "b\udcff"],
        "skipped": [],
    }
    sender = Sender()
    sender.obstacle = "no room"
    opened = pickle.loads(pickle.dumps(sender.wrap(batch)))
    assert opened.pop(BY_PIPE) == "no room"
    assert opened.keys() == batch.keys()
    assert torch.equal(opened["image"], batch["image"])
    assert torch.equal(opened["label"], batch["label"])
    assert opened["path"] == batch["path"]
