"""Cells of an ablation as jobs of a cluster, by submitit: the same interface as processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fcmae.errors import DONE, FAILED, ConfigError
from fcmae.settings.submit import SlurmConfig
from fcmae.studies.ablation.grid import Cell
from fcmae.studies.ablation.worker import failure_file
from fcmae.studies.slurm_queue import Queue
from fcmae.studies.submission import Job, submit

_queue = Queue()


def check_slurm(slurm: SlurmConfig) -> None:
    """Raise ConfigError unless a job is one process: a cell is trained by one."""
    if slurm.nodes != 1 or slurm.gpus > 1:
        raise ConfigError(
            f"slurm.nodes, slurm.gpus: got {slurm.nodes} and {slurm.gpus}, expected 1 and at most "
            "1: each cell of an ablation is a job of one process; run.jobs says how many at a time."
        )


class CellJob:
    """A submitted cell, as subprocess.Popen shows a running one.

    Whether it is done is read from the run folders; the cluster is asked about jobs that ended
    without leaving a word there.

    Args:
        cell: what is trained.
        folder: of the ablation.
        slurm: what the job asks for.
        has_result: whether the cell is done.

    Attributes:
        returncode: exit status; None while it is queued or runs.
    """

    def __init__(
        self, cell: Cell, folder: str, slurm: SlurmConfig, has_result: Callable[[], bool]
    ) -> None:
        self._failure = failure_file(folder, cell.name)
        self._failure.unlink(missing_ok=True)  # of an earlier start
        self._has_result = has_result
        self._is_local = slurm.executor == "local"
        self._job: Any = submit(
            Job(_run_cell, [folder, cell.name]), slurm, f"{folder}/jobs/{cell.name}"
        )
        self._state = ""
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status when the job has ended."""
        if self.returncode is None:
            if self._failure.exists():
                self.returncode = FAILED
            elif self._has_result():
                self.returncode = DONE
            elif self._has_ended():  # it may have written its last word in the meantime
                self.returncode = DONE if self._has_result() else FAILED
        return self.returncode

    def why(self) -> str:
        """Say why a job without a result failed: its last words, and how the cluster ended it."""
        log = Path(self._job.paths.stderr)
        try:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        own = [line.strip() for line in lines if line.startswith("fcmae: error: ")]
        state = f"its job ended as {self._state}" if self._state else "its job ended"
        last = f": {own[-1].removeprefix('fcmae: error: ').rstrip('.')}" if own else ""
        return f"{state}{last} (see {log.parent})."

    def terminate(self) -> None:
        """Take the job from the cluster; it is told to stop and writes a checkpoint."""
        self._job.cancel(check=False)

    def wait(self, timeout: float) -> None:
        """Return at once: the cluster ends the job."""

    def kill(self) -> None:
        """Take the job from the cluster."""
        self._job.cancel(check=False)

    def _has_ended(self) -> bool:
        if self._is_local:
            return bool(self._job.done())
        self._state = _queue.end_of(self._job.job_id) or ""
        return bool(self._state)


def _run_cell(arguments: list[str]) -> int:
    from fcmae.studies.ablation.worker import run_cell

    return run_cell(*arguments)
