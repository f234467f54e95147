"""Runs the cells of an ablation in the process of the test, which spares seconds of start each."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from undrawn import draw_nothing

from fcmae.studies.ablation import runner
from fcmae.studies.ablation.grid import Cell
from fcmae.studies.ablation.worker import run_cell


class InProcess:
    """A cell that has run when it is created, as subprocess.Popen shows one."""

    def __init__(self, folder: Path, name: str) -> None:
        with (folder / "logs" / f"{name}.txt").open(
            "a", encoding="utf-8", errors="backslashreplace"
        ) as log:
            try:
                with contextlib.redirect_stderr(log):
                    self.returncode = run_cell(folder, name)
            except Exception as error:  # as a process ends: a last line in the log, a status
                log.write(f"Traceback\n{type(error).__name__}: {error}\n")
                self.returncode = 1

    def poll(self) -> int:
        """Return the exit status: it has ended."""
        return self.returncode


def use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `fcmae ablate` run its cells here, without what runs draw."""

    def spawn(self: runner.Runner, cell: Cell, slot: int) -> InProcess:
        return InProcess(self.folder, cell.name)

    monkeypatch.setattr(runner.Runner, "start_process", spawn)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.0)
    draw_nothing(monkeypatch)
