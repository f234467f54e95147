"""Checkpoints: complete or absent, damage is detected, hostile files are refused."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from fcmae.errors import CheckpointError, DiskError
from fcmae.runs import checkpoints
from fcmae.runs.checkpoints import CheckpointStore


@pytest.fixture
def told() -> list[str]:
    return []


def make_store(folder: Path, told: list[str], **settings: Any) -> CheckpointStore:
    return CheckpointStore(folder / "checkpoints", report=told.append, **settings)


def state_of(step: int) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(step)
    return {"weights": torch.randn(30, 7, generator=rng), "step": step, "names": ["a", None]}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_a_state_comes_back_as_it_was_saved(tmp_path: Path, told: list[str]) -> None:
    store = make_store(tmp_path, told)
    assert store.load_newest() is None
    assert store.save(7, state_of(7)) == tmp_path / "checkpoints" / "step-00000007"
    found = store.load_newest()
    assert found is not None
    step, state = found
    assert (step, state["step"], state["names"]) == (7, 7, ["a", None])
    assert torch.equal(state["weights"], state_of(7)["weights"])
    assert (tmp_path / "checkpoints" / "last").read_text() == "step-00000007\n"
    assert told == []


def test_the_newest_and_multiples_of_keep_every_are_kept(tmp_path: Path, told: list[str]) -> None:
    store = make_store(tmp_path, told, keep_last=2, keep_every=6)
    for step in range(2, 15, 2):
        store.save(step, state_of(step))
    assert store.steps() == [6, 12, 14]


def test_names_that_are_no_steps_are_left_alone(tmp_path: Path, told: list[str]) -> None:
    store = make_store(tmp_path, told, keep_last=1)
    store.save(1, state_of(1))
    for name in ("step-", "step-x", "step-\u00b2", "other"):
        (tmp_path / "checkpoints" / name).mkdir()
    assert store.steps() == [1]
    store.save(2, state_of(2))
    assert store.steps() == [2]
    assert {"step-", "step-x", "step-\u00b2", "other"} < set(names(tmp_path))


def test_every_truncation_and_every_flipped_bit_is_detected(
    tmp_path: Path, told: list[str]
) -> None:
    store = make_store(tmp_path, told)
    store.save(3, state_of(3))
    newest = store.save(6, state_of(6))
    places = 0
    for name, count in (("state.pt", 20), ("sha256", 5)):
        file = newest / name
        whole = file.read_bytes()
        for place in [round(k * (len(whole) - 1) / (count - 1)) for k in range(count)]:
            flipped = bytearray(whole)
            flipped[place] ^= 1 << place % 8
            for damaged in (whole[:place], bytes(flipped)):
                file.write_bytes(damaged)
                told.clear()
                found = store.load_newest()
                assert found is not None
                assert (found[0], found[1]["step"]) == (3, 3), (name, place)
                assert len(told) == 1
                assert "step-00000006: damaged checkpoint, not used: " in told[0]
                assert told[0].endswith("Trying the one before it, of step 3.")
                places += 1
        file.write_bytes(whole)
    assert places == 50
    told.clear()
    found = store.load_newest()
    assert found is not None
    assert found[0] == 6
    assert told == []


@pytest.mark.parametrize("name", ["state.pt", "sha256"])
def test_a_missing_file_is_damage(name: str, tmp_path: Path, told: list[str]) -> None:
    store = make_store(tmp_path, told)
    store.save(1, state_of(1))
    (store.save(2, state_of(2)) / name).unlink()
    found = store.load_newest()
    assert found is not None
    assert found[0] == 1
    assert f"{name} cannot be read (No such file or directory)" in told[0]


class Refusing:
    """An open file that gives so many bytes and then raises."""

    def __init__(self, file: Any, error: Exception, after: int) -> None:
        self.file, self.error, self.left = file, error, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *details: object) -> None:
        self.file.close()

    def _take(self, content: Any) -> Any:
        self.left -= len(content) if isinstance(content, bytes) else content
        if self.left < 0:
            raise self.error
        return content

    def read(self, *size: int) -> Any:
        return self._take(self.file.read(*size))

    def readinto(self, buffer: Any) -> Any:
        return self._take(self.file.readinto(buffer))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.5], ids=["at once", "halfway", "after the checksum"])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EIO, "Input/output error", "state.pt"), "state.pt: Input/output error"),
        (OSError(errno.ESTALE, "Stale file handle"), "Stale file handle"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "Cannot allocate memory"),
        (MemoryError(), "there is not enough memory"),
        (ModuleNotFoundError("No module named 'torch.x'"), "lacks a part of torch: No module"),
    ],
    ids=["EIO", "ESTALE", "ENOMEM", "MemoryError", "no module"],
)
def test_what_cannot_be_read_now_is_no_damage_and_nothing_older_is_taken(
    error: Exception,
    reason: str,
    share: float,
    tmp_path: Path,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = make_store(tmp_path, told)
    for step in (1, 2):
        store.save(step, state_of(step))
    size = (tmp_path / "checkpoints" / "step-00000002" / "state.pt").stat().st_size
    opened = Path.open

    def refuse(path: Path, *how: Any, **more: Any) -> Any:
        file = opened(path, *how, **more)
        return Refusing(file, error, int(share * size)) if path.name == "state.pt" else file

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DiskError, match=reason) as caught:
        store.load_newest()
    assert "Nothing is lost" in str(caught.value)
    assert told == []
    monkeypatch.undo()
    found = store.load_newest()
    assert found is not None
    assert found[0] == 2
    assert store.steps() == [1, 2]


def test_nothing_but_damaged_checkpoints_is_an_error(tmp_path: Path, told: list[str]) -> None:
    store = make_store(tmp_path, told)
    for step in (1, 2):
        (store.save(step, state_of(step)) / "state.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="all 2 checkpoints are damaged; restore one"):
        store.load_newest()
    assert len(told) == 2


def test_a_folder_that_cannot_be_read_is_not_taken_for_a_new_run(
    tmp_path: Path, told: list[str]
) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder was")
    with pytest.raises(CheckpointError, match=r"checkpoints: cannot be read \(Not a directory\)"):
        make_store(tmp_path, told).load_newest()


def test_a_damaged_newer_checkpoint_does_not_push_out_good_ones(
    tmp_path: Path, told: list[str]
) -> None:
    store = make_store(tmp_path, told, keep_last=1)
    store.save(10, state_of(10))
    store.save(20, state_of(20))
    (tmp_path / "checkpoints" / "step-00000020" / "sha256").write_text("0")
    store.save(15, state_of(15))  # the run went on from before the damaged one
    found = store.load_newest()
    assert found is not None
    assert found[0] == 15
    assert store.steps() == [15]


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path, told: list[str]) -> None:
    store = make_store(tmp_path, told)
    (store.save(5, state_of(5)) / "state.pt").write_bytes(b"broken")
    store.save(5, state_of(5))
    assert store.load(5)["step"] == 5


class FullDisk:
    """A file on a disk that takes so many writes."""

    def __init__(self, file: Any, writes: int) -> None:
        self.file, self.left = file, writes

    def write(self, data: bytes) -> Any:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


@pytest.mark.parametrize("writes", [0, 1, 5])
def test_a_full_disk_leaves_the_checkpoint_before_and_no_rest(
    writes: int, tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path, told)
    store.save(1, state_of(1))
    save = torch.save
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lambda state, file: save(state, FullDisk(file, writes)))
        with pytest.raises(OSError, match="No space left on device") as caught:
            store.save(2, state_of(2))
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == ["last", "step-00000001"]
    store.save(2, state_of(2))
    assert store.steps() == [1, 2]


def test_a_checkpoint_is_good_even_when_its_name_cannot_be_noted(
    tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_text", refuse)
    store = make_store(tmp_path, told)
    store.save(1, state_of(1))
    assert store.load(1)["step"] == 1
    assert told == [f"{tmp_path}/checkpoints/last: cannot be written (No space left on device)."]


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_a_hostile_pickle_with_the_right_checksum_is_refused_and_not_run(
    tmp_path: Path, told: list[str]
) -> None:
    store = make_store(tmp_path, told, keep_last=5)
    store.save(1, state_of(1))
    trap = tmp_path / "executed"
    for number, content in enumerate(("zip", "bare"), start=2):
        folder = store.save(number, state_of(number))
        if content == "zip":
            torch.save({"model": Bomb(trap)}, folder / "state.pt")
        else:
            (folder / "state.pt").write_bytes(pickle.dumps({"model": Bomb(trap)}))
        digest = hashlib.sha256((folder / "state.pt").read_bytes()).hexdigest()
        (folder / "sha256").write_text(f"{digest}\n")
        with pytest.raises(CheckpointError, match="other things than plain data and tensors"):
            store.load(number)
    assert not trap.exists()
    found = store.load_newest()
    assert found is not None
    assert found[0] == 1


def test_a_state_that_is_no_dict_is_refused(tmp_path: Path, told: list[str]) -> None:
    store = make_store(tmp_path, told)
    store.save(1, [1, 2])  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="it holds a list"):
        store.load(1)
