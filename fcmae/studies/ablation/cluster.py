"""Cells of an ablation as jobs of a cluster, by submitit: the same interface as processes."""

from __future__ import annotations

from typing import Any

from fcmae.errors import DONE, FAILED, ConfigError
from fcmae.settings.submit import SlurmConfig
from fcmae.studies.ablation.grid import Cell
from fcmae.studies.submission import Job, submit


def check_slurm(slurm: SlurmConfig) -> None:
    """Raise ConfigError unless a job is one process: a cell is trained by one."""
    if slurm.nodes != 1 or slurm.gpus > 1:
        raise ConfigError(
            f"slurm.nodes, slurm.gpus: got {slurm.nodes} and {slurm.gpus}, expected 1 and at most "
            "1: each cell of an ablation is a job of one process; run.jobs says how many at a time."
        )


class CellJob:
    """A submitted cell, as subprocess.Popen shows a running one.

    Attributes:
        returncode: exit status; None while it is queued or runs.
    """

    def __init__(self, cell: Cell, folder: str, slurm: SlurmConfig) -> None:
        job = Job(_run_cell, [folder, cell.name])
        self._job: Any = submit(job, slurm, f"{folder}/jobs/{cell.name}")
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status when the job has ended."""
        if self.returncode is None and self._job.done():
            self.returncode = DONE if self._job.exception() is None else FAILED
        return self.returncode

    def terminate(self) -> None:
        """Take the job from the cluster; it is told to stop and writes a checkpoint."""
        self._job.cancel()

    def wait(self, timeout: float) -> None:
        """Return at once: the cluster ends the job."""

    def kill(self) -> None:
        """Take the job from the cluster."""
        self._job.cancel()


def _run_cell(arguments: list[str]) -> int:
    from fcmae.studies.ablation.worker import run_cell

    return run_cell(*arguments)
