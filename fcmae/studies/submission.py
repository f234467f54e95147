"""Jobs of a cluster: a training that SLURM starts, stops and starts again, by submitit."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from fcmae.errors import INTERRUPTED, ConfigError, status_of
from fcmae.machine.allocator import keep_freed_memory
from fcmae.settings.submit import SlurmConfig
from fcmae.training.signals import StopRequest

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
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        keep_freed_memory()
        status = status_of(lambda: self.command(self.arguments))
        if status == INTERRUPTED and StopRequest.latest == PREEMPTION.name:
            # The checkpoint is written: now submitit may queue the job again and end it.
            os.kill(os.getpid(), PREEMPTION)
        if status:
            sys.exit(status)

    def checkpoint(self) -> Any:
        """Return what submitit queues when a job was stopped: the same command again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(job: Job, slurm: SlurmConfig, run_dir: str) -> Any:
    """Queue `job` and return submitit's handle of it.

    Raises:
        ConfigError: submitit is not installed, or the machine has no SLURM.
    """
    try:
        import submitit
    except ImportError as error:
        raise ConfigError(
            "fcmae submit: needs submitit, which is not installed; pip install 'fcmae[slurm]'."
        ) from error
    folder = slurm.folder or run_dir.rstrip("/") + "-jobs"
    try:
        executor = submitit.AutoExecutor(
            folder=folder, cluster=slurm.executor, slurm_max_num_timeout=slurm.requeues
        )
        executor.update_parameters(**_parameters(slurm, os.path.basename(run_dir.rstrip("/"))))
        return executor.submit(job)
    except RuntimeError as error:
        raise ConfigError(
            f"slurm.executor: slurm cannot be used here ({error}); run this on a login node of "
            "the cluster, or try the job out with --slurm.executor local."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"slurm.folder: {folder} cannot be written ({error.strerror}); choose another."
        ) from error


def _parameters(slurm: SlurmConfig, name: str) -> dict[str, Any]:
    """Return submitit's names of what the job asks for."""
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
        # A process that ends with an error must not leave the others waiting for it.
        "slurm_srun_args": ["--kill-on-bad-exit=1"],
        "slurm_additional_parameters": slurm.extra or None,
    }
    return {key: value for key, value in parameters.items() if value is not None}
