"""Runs the cells of an ablation in the process of the test, which spares seconds of start each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fcmae.ablation import runner
from fcmae.ablation.worker import run_cell


class InProcess:
    """Stands in for subprocess.Popen: the cell has run when it is created."""

    def __init__(self, command: list[str], *, stdout: Any, **options: Any) -> None:
        try:
            self.returncode = run_cell(Path(command[-2]), command[-1])
        except Exception as error:  # as a process ends: a last line in the log, a status
            stdout.write(f"{type(error).__name__}: {error}\n".encode())
            self.returncode = 1

    def poll(self) -> int:
        """Return the exit status: it has ended."""
        return self.returncode


def use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `fcmae ablate` run its cells here."""
    monkeypatch.setattr(runner.subprocess, "Popen", InProcess)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.0)
