"""Jobs of a cluster: a training that SLURM starts, stops and starts again, by submitit."""

from __future__ import annotations

import math
import os
import signal
import sys
from dataclasses import dataclass, field
from typing import Any, Literal

from fcmae.errors import ConfigError
from fcmae.settings.pretrain import require

PREEMPTION = signal.SIGUSR2  # what submitit has SLURM send before the time is over


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """What a job asks for."""

    executor: Literal["slurm", "local"] = "slurm"
    """slurm, or local: processes of this machine with the same requeueing, to try a job out."""
    nodes: int = 1
    """Machines."""
    gpus: int = 1
    """GPUs per node, with one process each; 0 computes on the CPU with one process per node."""
    hours: float = 24.0
    """Time limit; the job is stopped with a checkpoint before it and queued again."""
    grace_seconds: int = 120
    """How long before the time limit the job is told to stop."""
    requeues: int = 100
    """Time limits that the job may reach before it is given up; preemptions do not count."""
    cpus_per_process: int = 8
    """CPU cores for each process and its readers of images."""
    memory_gib: int | None = None
    """Memory per node; null leaves it to the cluster."""
    partition: str | None = None
    """Partition to queue in; null leaves it to the cluster."""
    account: str | None = None
    """Account that pays; null leaves it to the cluster."""
    constraint: str | None = None
    """Features that the nodes must have."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further options of sbatch, e.g. '{qos: low, reservation: mine}'."""
    folder: str | None = None
    """Folder of the job's script and its output; null takes run.dir with -jobs behind it."""


@dataclass(frozen=True, kw_only=True)
class SubmitConfig:
    """Settings of `fcmae submit` beside those of the command that is submitted."""

    slurm: SlurmConfig = field(default_factory=SlurmConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError for a value outside its range."""
        slurm = self.slurm
        for name, value, lowest in (
            ("nodes", slurm.nodes, 1),
            ("gpus", slurm.gpus, 0),
            ("grace_seconds", slurm.grace_seconds, 1),
            ("requeues", slurm.requeues, 0),
            ("cpus_per_process", slurm.cpus_per_process, 1),
            ("memory_gib", slurm.memory_gib or 1, 1),
        ):
            require(value >= lowest, f"slurm.{name}", value, f"{lowest} or more")
        require(
            slurm.grace_seconds / 3600 < slurm.hours < math.inf,
            "slurm.hours",
            slurm.hours,
            f"more than slurm.grace_seconds ({slurm.grace_seconds} s)",
        )
        require(
            slurm.executor == "slurm" or slurm.nodes == 1,
            "slurm.nodes",
            slurm.nodes,
            "1 with the local executor",
        )


class Job:
    """The training as one process of a job sees it; every process calls it.

    Args:
        command: such as pretrain.
        arguments: settings of the command.
    """

    def __init__(self, command: str, arguments: list[str]) -> None:
        self.command = command
        self.arguments = arguments

    def __call__(self) -> None:
        """Train; leave with the status of the command, or be queued again."""
        from submitit.helpers import TorchDistributedEnvironment

        from fcmae.cli import INTERRUPTED, main
        from fcmae.training.signals import StopRequest

        # LOCAL_RANK chooses among the node's GPUs.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        status = main([self.command, *self.arguments])
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
