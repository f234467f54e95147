"""Files are complete or absent, with the umask's mode, and a failing disk is an OSError."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fcmae.errors import CheckpointError
from fcmae.runs import durable
from fcmae.runs.durable import save_torch, write_atomically, write_files, write_text

WEIGHTS = {"weight": torch.arange(6.0)}


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def write_weights(partial: Path) -> None:
    save_file(WEIGHTS, partial)


@pytest.mark.parametrize(
    "write", [write_weights, lambda partial: partial.write_bytes(b"text")], ids=["weights", "text"]
)
def test_files_have_the_mode_that_the_umask_gives(
    write: Callable[[Path], object], umask: int, tmp_path: Path
) -> None:
    write_atomically(tmp_path / "one", write)
    write_files(tmp_path / "folder", lambda partial: write(partial / "two"))
    for path in (tmp_path / "one", tmp_path / "folder" / "two"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def full_torch(partial: Path) -> None:
    save_torch(WEIGHTS, Path("/dev/full"))


def full_safetensors(partial: Path) -> None:
    from safetensors import SafetensorError

    raise SafetensorError("Error while serializing: I/O error: No space left (os error 28)")


def full_python(partial: Path) -> None:
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"text")


def without_folder(partial: Path) -> None:
    save_file(WEIGHTS, partial / "nowhere" / "weights")


@pytest.mark.parametrize("write", [full_torch, full_safetensors, full_python, without_folder])
def test_a_failing_disk_is_an_oserror_and_leaves_the_file_of_before(
    write: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "PAUSE_SECONDS", 0.0)
    path = tmp_path / "file"
    write_text(path, "before")
    with pytest.raises(OSError):
        write_atomically(path, write)
    with pytest.raises(OSError):
        write_files(tmp_path, lambda partial: write(partial / "file"))
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_passes_is_tried_again_and_what_stays_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "PAUSE_SECONDS", 0.0)
    tries: list[int] = []

    def fail_twice(number: int, partial: Path) -> None:
        tries.append(number)
        if len(tries) <= 2:
            raise OSError(number, os.strerror(number))
        partial.write_text("written")

    write_atomically(tmp_path / "file", lambda partial: fail_twice(errno.ESTALE, partial))
    assert (tmp_path / "file").read_text() == "written"
    assert len(tries) == 3
    tries.clear()
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "file", lambda partial: fail_twice(errno.ENOSPC, partial))
    assert len(tries) == 1


def test_other_errors_go_on_as_they_are(tmp_path: Path) -> None:
    def refuse(partial: Path) -> None:
        raise CheckpointError("another model") from OSError(errno.EIO, "hidden")

    with pytest.raises(CheckpointError, match="another model"):
        write_atomically(tmp_path / "file", refuse)
    with pytest.raises(ZeroDivisionError):
        write_atomically(tmp_path / "file", lambda partial: 1 / 0)


def test_files_of_a_folder_come_together_and_leave_others_alone(tmp_path: Path) -> None:
    (tmp_path / "other").touch()

    def write(partial: Path) -> str:
        save_file(WEIGHTS, partial / "a")
        (partial / "b").write_text("b")
        return "proof"

    assert write_files(tmp_path, write) == "proof"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "other"]
    assert torch.equal(load_file(tmp_path / "a")["weight"], WEIGHTS["weight"])
