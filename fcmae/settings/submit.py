"""The settings of a job of a cluster."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from fcmae.settings.ranges import NonNegativeInt, PositiveInt, check_ranges, require


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """What a job asks for."""

    executor: Literal["slurm", "local"] = "slurm"
    """slurm, or local: processes of this machine with the same requeueing, to try a job out."""
    nodes: PositiveInt = 1
    """Machines."""
    gpus: NonNegativeInt = 1
    """GPUs per node, with one process each; 0 computes on the CPU with one process per node."""
    hours: float = 24.0
    """Time limit; the job is stopped with a checkpoint before it and queued again."""
    grace_seconds: PositiveInt = 120
    """How long before the time limit the job is told to stop."""
    requeues: NonNegativeInt = 100
    """Time limits that the job may reach before it is given up; preemptions do not count."""
    cpus_per_process: PositiveInt = 8
    """CPU cores for each process and its readers of images."""
    memory_gib: PositiveInt | None = None
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
        check_ranges(self)
        slurm = self.slurm
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
