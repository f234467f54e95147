"""Jobs of a cluster: a training that SLURM starts, stops and starts again, by submitit."""

import contextlib
import io
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fcmae.errors import DONE, INTERRUPTED, ConfigError, complain, status_of
from fcmae.machine.allocator import keep_freed_memory
from fcmae.settings.submit import SlurmConfig
from fcmae.studies.slurm_queue import is_preempted, is_running
from fcmae.training.signals import REPEAT_SECONDS, StopRequest

PREEMPTION = signal.SIGUSR2  # what submitit has SLURM send before the time is over


class Job:
    """The training as one process of a job sees it; every process calls it.

    Args:
        command: what a module of fcmae.cli runs; it travels by its name.
        arguments: its command line.
    """

    def __init__(
        self, command: Callable[[list[str]], int | None], arguments: Sequence[str]
    ) -> None:
        self.command = command
        self.arguments = list(arguments)

    def __call__(self) -> None:
        """Train; leave with the status of the command, or be queued again."""
        from submitit.helpers import TorchDistributedEnvironment

        # LOCAL_RANK chooses among the node's GPUs.
        environment = TorchDistributedEnvironment()
        environment.export(set_cuda_visible_devices=False, overwrite=True)
        keep_freed_memory()
        StopRequest.never_at_once = True  # SLURM kills what outlasts its time
        with StopRequest():  # signals that come before the training stop its first step
            status = status_of(lambda: self.command(self.arguments))
        if status == INTERRUPTED:
            status = self._queue_again() if environment.rank == 0 else DONE
            # Of the other processes a bad status would end the first while it queues the job, and
            # leaving by exit keeps submitit from taking the whole job for done.
            sys.exit(status)
        if status:
            sys.exit(status)

    def _queue_again(self) -> int:
        """Queue the stopped job again if its scheduler stopped it; else return the exit status."""
        from submitit.core.utils import UncompletedJobError

        if StopRequest.latest is None:
            time.sleep(REPEAT_SECONDS)  # another process was told first: submitit's handler waits
        number = os.environ.get("SLURM_JOB_ID")
        if StopRequest.latest != PREEMPTION.name and not (number and is_preempted(number)):
            return INTERRUPTED  # a person stopped it
        if number is not None and not is_running(number):
            return INTERRUPTED  # SLURM has already begun to requeue it by itself
        try:
            # The checkpoint is written: now submitit may queue the job again and end it.
            os.kill(os.getpid(), PREEMPTION)
        except UncompletedJobError:
            return complain(
                "slurm.requeues: used up, so the job is not queued again; its checkpoint is "
                "written, submit the same command again to go on.",
                INTERRUPTED,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            return complain(
                f"the job could not be queued again ({error}); its checkpoint is written, submit "
                "the same command again to go on.",
                INTERRUPTED,
            )
        return INTERRUPTED

    def checkpoint(self) -> Any:
        """Return what submitit queues when a job was stopped: the same command again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(job: Job, slurm: SlurmConfig, run_dir: str) -> Any:
    """Queue `job` and return submitit's handle of it.

    Raises:
        ConfigError: submitit is not installed, the machine has no SLURM, or SLURM refuses the job;
            no file is left then.
    """
    try:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError
    except ImportError as error:
        raise ConfigError(
            "fcmae submit: needs submitit, which is not installed; pip install 'fcmae[slurm]'."
        ) from error
    folder = Path(slurm.folder or run_dir.rstrip("/") + "-jobs")
    before = set(folder.iterdir()) if folder.is_dir() else None
    try:
        executor = submitit.AutoExecutor(
            folder=folder, cluster=slurm.executor, slurm_max_num_timeout=slurm.requeues
        )
        executor.update_parameters(**_parameters(slurm, os.path.basename(run_dir.rstrip("/"))))
        with contextlib.redirect_stderr(io.StringIO()):  # the error below says what sbatch said
            return executor.submit(job)
    except (FailedJobError, FailedSubmissionError) as error:
        _remove_new(folder, before)
        raise ConfigError(
            f"SLURM refused the job: {_refusal(str(error))}; change the setting of the section "
            "slurm that it names (fcmae submit --help lists them)."
        ) from error
    except RuntimeError as error:
        _remove_new(folder, before)
        raise ConfigError(
            f"slurm.executor: slurm cannot be used here ({error}); run this on a login node of "
            "the cluster, or try the job out with --slurm.executor local."
        ) from error
    except UnicodeEncodeError as error:  # submitit writes its script in the locale's letters
        _remove_new(folder, before)
        raise ConfigError(
            f"slurm.folder: the locale of this process has no letters for {str(folder)!r}, which "
            "the script of the job names; set PYTHONUTF8=1, or LC_ALL to one with UTF-8."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"slurm.folder: {folder} cannot be written ({error.strerror}); choose another."
        ) from error


def _refusal(said: str) -> str:
    """Return what sbatch said on one line: its reason, and what it makes of it in brackets."""
    lines = [line.removeprefix("sbatch:").strip() for line in said.splitlines() if line.strip()]
    lines = [line.removeprefix("error:").strip() for line in lines]
    result = "Batch job submission failed: "
    reasons = [line for line in lines if not line.startswith(result)]
    results = [line.removeprefix(result) for line in lines if line.startswith(result)]
    if reasons and results:
        return f"{'; '.join(reasons)} ({'; '.join(results)})"
    return "; ".join(reasons or results) or "sbatch gave no reason"


def _remove_new(folder: Path, before: set[Path] | None) -> None:
    """Remove the files of a job that was not queued, and the folder if there was none."""
    if before is None:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in set(folder.iterdir()) - before:
        path.unlink(missing_ok=True)


def _parameters(slurm: SlurmConfig, name: str) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "name": name,
        "nodes": slurm.nodes,
        "tasks_per_node": max(slurm.gpus, 1),
        "gpus_per_node": slurm.gpus,
        "cpus_per_task": slurm.cpus_per_process,
        "timeout_min": math.ceil(slurm.hours * 60),
        "mem_gb": slurm.memory_gib,
        "slurm_partition": slurm.partition,
        "slurm_account": slurm.account,
        "slurm_constraint": slurm.constraint,
        "slurm_signal_delay_s": slurm.grace_seconds,
        # A process that ends with an error must not leave the others waiting for it; one that ends
        # well before the first must not end it, as a cluster's WaitTime would.
        "slurm_srun_args": ["--kill-on-bad-exit=1", "--wait=0"],
        "slurm_additional_parameters": {"requeue": True, **slurm.extra},
    }
    return {key: value for key, value in parameters.items() if value is not None}
