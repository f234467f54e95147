"""Checkpoints of a run: written beside, forced to disk, checksummed, renamed; newest good one read.

checkpoints/step-00001200/{state.pt, sha256}   checkpoints/last   (names the newest)
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fcmae.durable import sync, write_text
from fcmae.errors import CheckpointError

_STATE, _CHECKSUM = "state.pt", "sha256"


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
        """Return the steps of the complete checkpoints, ascending."""
        names = [path.name for path in self.folder.glob("step-*") if path.is_dir()]
        return sorted(int(name[5:]) for name in names if name[5:].isdigit())

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write `state`, plain data and tensors, as the checkpoint of `step`; return its folder.

        A reader, or a restart after a kill at any moment, sees it whole or not at all.

        Raises:
            OSError: the disk is full or may not be written; older checkpoints are untouched.
        """
        final = self._path(step)
        partial = self.folder / f".partial-{final.name}"
        self._remove_partial()
        partial.mkdir(parents=True)
        try:
            torch.save(state, partial / _STATE)
            (partial / _CHECKSUM).write_text(_digest(partial / _STATE) + "\n")
            for path in (partial / _STATE, partial / _CHECKSUM, partial):
                sync(path)
            if final.exists():  # a damaged one of the same step, passed over when resuming
                shutil.rmtree(final)
            os.rename(partial, final)
            sync(self.folder)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            # torch's zip writer reports a full disk as a RuntimeError.
            if isinstance(error, RuntimeError):
                raise OSError(str(error).splitlines()[0]) from error
            raise
        write_text(self.folder / "last", final.name + "\n")
        self._prune()
        return final

    def load_newest(self) -> tuple[int, dict[str, Any]] | None:
        """Return (step, state) of the newest undamaged checkpoint, on the CPU; None without any.

        Raises:
            CheckpointError: there are checkpoints and every one is damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return step, self.load(step)
            except CheckpointError as error:
                self._report(str(error))
        if steps:
            raise CheckpointError(
                f"{self.folder}: all {len(steps)} checkpoints are damaged; restore one from a "
                "backup, or start again in another run.dir."
            )
        return None

    def load(self, step: int) -> dict[str, Any]:
        """Return the state saved at `step`, on the CPU, after checking its checksum.

        Raises:
            CheckpointError: missing, truncated or changed since it was written.
        """
        path = self._path(step)
        try:
            expected = (path / _CHECKSUM).read_text(encoding="ascii").strip()
            if _digest(path / _STATE) != expected:
                raise ValueError("its checksum does not match")
            state: dict[str, Any] = torch.load(path / _STATE, map_location="cpu", weights_only=True)
        except (OSError, ValueError, RuntimeError, EOFError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{path}: damaged checkpoint, not used ({reason}).") from error
        return state

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _remove_partial(self) -> None:
        """Remove what a kill during an earlier save left behind."""
        for path in self.folder.glob(".partial-*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _prune(self) -> None:
        for step in self.steps()[: -self._keep_last]:
            if self._keep_every is None or step % self._keep_every:
                shutil.rmtree(self._path(step), ignore_errors=True)


def _digest(path: Path) -> str:
    """SHA-256 of a file as hex, read back from what was written."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
