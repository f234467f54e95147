"""Checkpoints of a run: written beside, forced to disk, checksummed, renamed; newest good one read.

checkpoints/step-00001200/{state.pt, sha256}   checkpoints/last   (names the newest)
checkpoints/undecayed-00000960   (kept for good: from it the run can be extended)
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

from fcmae.errors import CheckpointError, DiskError, is_out_of_memory
from fcmae.runs.durable import PARTIAL, sync, write_text

_STATE, _CHECKSUM = "state.pt", "sha256"
_PREFIX, _UNDECAYED = "step-", "undecayed-"
_NO_SUCH_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class CheckpointStore:
    """The checkpoints of one run folder.

    Args:
        folder: where they live; created when the first is saved.
        keep_last: newest ones to keep.
        keep_every: steps whose multiples are kept for good; None keeps none for good.
        report: called with one sentence for every damaged checkpoint.

    Attributes:
        decay_start: step whose state, or the newest one from before it, is kept for good beside
            the others, since the run can be extended from there; None keeps none.
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
        self.decay_start: int | None = None

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, ascending, each once.

        Raises:
            CheckpointError: the folder is there and cannot be read. To take that for a run
                without checkpoints would be to start it over.
        """
        return sorted({*self._steps(_PREFIX), *self._steps(_UNDECAYED)})

    def _steps(self, prefix: str) -> list[int]:
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: cannot be read ({error.strerror}); mend that and start again."
            ) from error
        numbers = [name[len(prefix) :] for name in names if name.startswith(prefix)]
        return sorted(int(text) for text in numbers if text.isascii() and text.isdigit())

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write `state`, plain data and tensors, as the checkpoint of `step`; return its folder.

        A reader, or a restart after a kill at any moment, sees it whole or not at all.

        Raises:
            OSError: the disk is full or may not be written; older checkpoints are untouched.
        """
        final = self.folder / f"{_PREFIX}{step:08d}"
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

    def load_newest(
        self, fits: Callable[[int, dict[str, Any]], bool] = lambda step, state: True
    ) -> tuple[int, dict[str, Any]] | None:
        """Return (step, state) of the newest undamaged checkpoint that `fits`, on the CPU, or None.

        Raises:
            CheckpointError: there are checkpoints and every one is damaged.
            DiskError: the newest one cannot be read now; see `load`. An older one is not taken in
                its place: the next save would remove a newer, good one.
        """
        steps = self.steps()
        num_damaged = 0
        for place in range(len(steps) - 1, -1, -1):
            try:
                state = self.load(steps[place])
            except CheckpointError as error:
                num_damaged += 1
                before = f" Trying the one before it, of step {steps[place - 1]}." if place else ""
                self._report(f"{error}{before}")
                continue
            if fits(steps[place], state):
                return steps[place], state
        if steps and num_damaged == len(steps):
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
            DiskError: the disk, the memory or an incomplete Python does not give it now, which
                says nothing about it.
        """
        path = self._path(step)
        try:
            expected = (path / _CHECKSUM).read_bytes()
            with (path / _STATE).open("rb") as file:
                if _digest(file).encode() != expected:
                    raise ValueError("its checksum does not match its content")
                file.seek(0)
                state = _read_state(file)
        except Exception as error:  # a damaged or hostile file may raise anything
            if (refusal := _refusal(error)) is not None:
                raise DiskError(
                    f"{path}: cannot be read now ({refusal}). Nothing is lost and nothing was "
                    "changed: start the same command again when that is mended."
                ) from error
            raise CheckpointError(
                f"{path}: damaged checkpoint, not used: {_reason(error)}."
            ) from error
        return state

    def keep_undecayed(self) -> None:
        """Keep the state of `decay_start` for good, where it is saved and not kept yet.

        Its files are links to those of the checkpoint, which may be removed later and cost
        nothing until then; where the file system has no links they are copies. One is kept: that
        of an earlier decay, before the run was extended, makes way.

        Raises:
            OSError: the disk refuses; the newest checkpoint from before the decay stays then.
        """
        step = self.decay_start
        if step is None or step not in self._steps(_PREFIX):
            return
        final = self.folder / f"{_UNDECAYED}{step:08d}"
        if not final.exists():
            partial = self._partial(final)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                for name in (_STATE, _CHECKSUM):
                    _link(self._path(step) / name, partial / name)
                sync(partial)
                os.rename(partial, final)
                sync(self.folder)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        for other in self._steps(_UNDECAYED):
            if other != step:
                self._remove(self.folder / f"{_UNDECAYED}{other:08d}")

    def remove_after(self, step: int) -> None:
        """Remove the checkpoints of later steps: the run goes on from `step` in another way.

        Raises:
            OSError: one cannot be removed.
        """
        for prefix in (_PREFIX, _UNDECAYED):
            for other in self._steps(prefix):
                if other > step:
                    self._remove(self.folder / f"{prefix}{other:08d}")
        if step in self.steps():
            self.name_newest(step)

    def name_newest(self, step: int) -> None:
        """Write `last`, for people and their scripts; a kill may have come before it."""
        try:
            write_text(self.folder / "last", self._path(step).name + "\n")
        except OSError as error:
            self._report(f"{self.folder / 'last'}: cannot be written ({error.strerror}).")

    def _path(self, step: int) -> Path:
        """Return the folder of a checkpoint, of which one that is kept for good may be left."""
        path = self.folder / f"{_PREFIX}{step:08d}"
        undecayed = self.folder / f"{_UNDECAYED}{step:08d}"
        return undecayed if undecayed.exists() and not path.exists() else path

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
            saved = self._steps(_PREFIX)
            past = [other for other in saved if other <= step]
            kept = {*past[-self._keep_last :], *self._to_extend_from(past)}
            for other in saved:
                # Later ones are damaged: the run passed over them. Kept, they would count as new.
                is_kept = other in kept or (
                    other <= step and self._keep_every and other % self._keep_every == 0
                )
                if not is_kept:
                    self._remove(self.folder / f"{_PREFIX}{other:08d}")
        except OSError as error:
            self._report(f"{self.folder}: cannot be tidied ({error.strerror}).")

    def _to_extend_from(self, past: list[int]) -> list[int]:
        """Return the newest checkpoint from before the decay, unless that is kept already."""
        if self.decay_start is None or self.decay_start in self._steps(_UNDECAYED):
            return []
        return [step for step in past if step <= self.decay_start][-1:]


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


def _read_state(file: IO[bytes]) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickles that torch did not write; refused anyway
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}")
    return state


def _digest(file: IO[bytes]) -> str:
    """Return the line that the checksum file of a state must hold."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest() + "\n"


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        sync(target)


def _refusal(error: Exception) -> str | None:
    """Return why a file could not be read that may be good; None when it is about its content."""
    for cause in _causes(error):
        if isinstance(cause, _NO_SUCH_FILE):
            return None
        if isinstance(cause, OSError):
            return f"{cause.filename or 'its file'}: {cause.strerror or cause}"
        if is_out_of_memory(cause):
            return "there is not enough memory"
        if isinstance(cause, ImportError):  # torch imports some of its parts when it needs them
            return f"Python lacks a part of torch: {cause}"
    return None


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
