"""Checkpoints of a run: written beside, forced to disk, checksummed, renamed; newest good one read.

checkpoints/step-00001200/{state.pt, sha256}   checkpoints/last   (names the newest)
"""

import hashlib
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

from fcmae.errors import CheckpointError
from fcmae.runs.durable import PARTIAL, sync, write_text

_STATE, _CHECKSUM = "state.pt", "sha256"
_PREFIX = "step-"


class CheckpointStore:
    """The checkpoints of one run folder.

    Args:
        folder: where they live; created when the first is saved.
        keep_last: newest ones to keep.
        keep_every: steps whose multiples are kept for good; None keeps none for good.
        report: called with one sentence for every damaged checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_last: int = 2,
        keep_every: int | None = None,
        report: Callable[[str], None] = print,
    ) -> None:
        self.folder = folder
        self._keep_last = keep_last
        self._keep_every = keep_every
        self._report = report

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, ascending.

        Raises:
            CheckpointError: the folder is there and cannot be read. To take that for a run
                without checkpoints would be to start it over.
        """
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: cannot be read ({error.strerror}); mend that and start again."
            ) from error
        numbers = [name[len(_PREFIX) :] for name in names if name.startswith(_PREFIX)]
        return sorted(int(text) for text in numbers if text.isascii() and text.isdigit())

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write `state`, plain data and tensors, as the checkpoint of `step`; return its folder.

        A reader, or a restart after a kill at any moment, sees it whole or not at all.

        Raises:
            OSError: the disk is full or may not be written; older checkpoints are untouched.
        """
        final = self._path(step)
        partial = self._partial(final)
        self._clear_partial()
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            sync(self.folder.parent)
        partial.mkdir()
        try:
            digest = _write_state(partial / _STATE, state)
            (partial / _CHECKSUM).write_text(digest, encoding="ascii")
            sync(partial / _CHECKSUM)
            sync(partial)
            if final.exists():  # a damaged one of the same step, passed over when resuming
                self._remove(final)
            os.rename(partial, final)
            sync(self.folder)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            # torch's writer hides the error of the file behind a RuntimeError of its own.
            for cause in _causes(error):
                if isinstance(cause, OSError) and cause is not error:
                    raise cause from error
            raise
        self._tidy(step)
        return final

    def load_newest(self) -> tuple[int, dict[str, Any]] | None:
        """Return (step, state) of the newest undamaged checkpoint, on the CPU; None without any.

        Raises:
            CheckpointError: there are checkpoints and every one is damaged.
        """
        steps = self.steps()
        for place in range(len(steps) - 1, -1, -1):
            try:
                return steps[place], self.load(steps[place])
            except CheckpointError as error:
                before = f" Trying the one before it, of step {steps[place - 1]}." if place else ""
                self._report(f"{error}{before}")
        if steps:
            raise CheckpointError(
                f"{self.folder}: all {len(steps)} checkpoints are damaged; restore one from a "
                "backup, or start again in another run.dir."
            )
        return None

    def load(self, step: int) -> dict[str, Any]:
        """Return the state saved at `step`, on the CPU, after checking its checksum.

        Raises:
            CheckpointError: missing, truncated or changed since it was written, or made to run
                code when it is read, which it does not.
        """
        path = self._path(step)
        try:
            expected = (path / _CHECKSUM).read_bytes()
            if _digest(path / _STATE).encode() != expected:
                raise ValueError("its checksum does not match its content")
            state = _read_state(path / _STATE)
        except Exception as error:  # a damaged or hostile file may raise anything
            raise CheckpointError(
                f"{path}: damaged checkpoint, not used: {_reason(error)}."
            ) from error
        return state

    def name_newest(self, step: int) -> None:
        """Write `last`, for people and their scripts; a kill may have come before it."""
        try:
            write_text(self.folder / "last", self._path(step).name + "\n")
        except OSError as error:
            self._report(f"{self.folder / 'last'}: cannot be written ({error.strerror}).")

    def _path(self, step: int) -> Path:
        return self.folder / f"{_PREFIX}{step:08d}"

    def _partial(self, final: Path) -> Path:
        return self.folder / f"{PARTIAL}{final.name}"

    def _clear_partial(self) -> None:
        """Remove what a kill during an earlier save left behind."""
        for path in self.folder.glob(f"{PARTIAL}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _remove(self, path: Path) -> None:
        """Remove a checkpoint, which is never seen half removed."""
        hidden = path.with_name(f"{PARTIAL}removed-{path.name}")
        os.rename(path, hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def _tidy(self, step: int) -> None:
        """Name the newest and remove the others that are too many; nothing of it is essential."""
        self.name_newest(step)
        try:
            past = [other for other in self.steps() if other <= step]
            for other in self.steps():
                # Later ones are damaged: the run passed over them. Kept, they would count as new.
                is_kept = other in past[-self._keep_last :] or (
                    other <= step and self._keep_every and other % self._keep_every == 0
                )
                if not is_kept:
                    self._remove(self._path(other))
        except OSError as error:
            self._report(f"{self.folder}: cannot be tidied ({error.strerror}).")


class _Hashing:
    """A file for writing that computes the SHA-256 of what passes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _write_state(path: Path, state: dict[str, Any]) -> str:
    """Write a state, force it to disk, and return the line of its checksum file."""
    with path.open("wb") as file:
        hashing = _Hashing(file)
        torch.save(state, hashing)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    return hashing.digest.hexdigest() + "\n"


def _read_state(path: Path) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickles that torch did not write; refused anyway
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}")
    return state


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() + "\n"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        return "it holds other things than plain data and tensors, and these are never loaded"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'} cannot be read ({error.strerror})"
    return (str(error).splitlines() or [type(error).__name__])[0]
