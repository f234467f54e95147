"""A real SLURM on the loopback, from Debian's slurm-wlm and munge, for one test module.

Two nodes of two cores, no accounting. `low` is preempted at once, `grace` after a grace time.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from fork_server import PATIENCE_SECONDS

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "srun")
GRACE_SECONDS = 40
KILL_SECONDS = 25  # between SLURM's SIGTERM and its SIGKILL
_CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
{controller}
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait={kill_seconds}
ReturnToService=2
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=1000
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=1000
PartitionName=low Nodes=ALL Default=YES PriorityTier=1
PartitionName=grace Nodes=ALL PriorityTier=1 GraceTime={grace_seconds}
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


def missing_programs() -> list[str]:
    """Return what of SLURM is not installed here."""
    path = os.environ["PATH"] + ":/usr/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


class Slurm:
    """A running cluster.

    Attributes:
        environment: what a process needs to talk to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "PATH": os.environ["PATH"] + ":/usr/sbin",
            "SLURM_CONF": str(folder / "slurm.conf"),
        }
        self._ports = _free_ports(3)
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start munged, slurmctld and two slurmd, and wait until both nodes are idle."""
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir()
        munge = self.folder / "munge"
        munge.chmod(0o700)
        (munge / "key").write_bytes(secrets.token_bytes(1024))
        (munge / "key").chmod(0o400)
        self._write_configuration("")
        self._start(
            ["munged", "--force", "--foreground"]
            + [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
            + [f"--socket={munge / 'socket'}"],
        )
        _wait(lambda: (munge / "socket").exists(), "munged")
        self._start(["slurmctld", "-D", "-c"])
        for name in (socket.gethostname(), "localhost"):  # names that processes can look up
            self._start(["slurmd", "-D", "-N", name])
        _wait(lambda: self.ask("sinfo", "-h", "-o", "%T %D").strip() == "idle 2", "the nodes")

    def stop(self) -> None:
        """End all jobs and daemons, by their process ids."""
        with contextlib.suppress(subprocess.CalledProcessError):
            for job in self.ask("squeue", "-h", "-o", "%i").split():
                self.ask("scancel", "--signal=KILL", "--full", job)
                self.ask("scancel", job)
            # What is left when the daemons are gone, nobody ends.
            end = time.monotonic() + KILL_SECONDS + 10
            while self.ask("squeue", "-h", "-o", "%i").split() and time.monotonic() < end:
                time.sleep(0.2)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self._daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def let_preemption_send_the_user_signal(self, is_sent: bool) -> None:
        """Switch between SIGTERM and the signal that the job asked for."""
        flag = "SlurmctldParameters=preempt_send_user_signal" if is_sent else ""
        self._write_configuration(flag)
        self.ask("scontrol", "reconfigure")

    def ask(self, *command: str) -> str:
        """Return what a command of the cluster prints."""
        return subprocess.run(
            command, env=self.environment, check=True, capture_output=True, text=True, timeout=60
        ).stdout

    def job(self, number: str) -> dict[str, str]:
        """Return the fields of scontrol show job."""
        words = self.ask("scontrol", "show", "job", "--oneliner", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def preempt(self) -> None:
        """Queue a job that takes both nodes from everybody, for a moment."""
        self.ask(
            *("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null"),
            *("--job-name=preempting", "--wrap=sleep 1"),
        )

    def _start(self, command: list[str]) -> None:
        with (self.folder / f"{command[0]}-{len(self._daemons)}.log").open("wb") as log:
            self._daemons.append(
                subprocess.Popen(
                    command,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def _write_configuration(self, controller: str) -> None:
        text = _CONFIGURATION.format(
            host=socket.gethostname(),
            ports=self._ports,
            folder=self.folder,
            user=os.environ.get("USER") or "root",
            controller=controller,
            kill_seconds=KILL_SECONDS,
            grace_seconds=GRACE_SECONDS,
        )
        (self.folder / "slurm.conf").write_text(text, encoding="utf-8")


@contextlib.contextmanager
def running_slurm(folder: Path) -> Iterator[Slurm]:
    """Start a cluster in `folder` and end it afterwards."""
    slurm = Slurm(folder)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait(is_there: object, what: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        with contextlib.suppress(subprocess.CalledProcessError):
            if is_there():  # type: ignore[operator]
                return
        if time.monotonic() > end:
            raise AssertionError(f"SLURM does not start: {what} did not come up")
        time.sleep(0.2)
