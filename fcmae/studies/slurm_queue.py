"""What SLURM's controller says of jobs, without accounting: asked seldom, and never trusted alone.

Jobs stay known to the controller for MinJobAge (300 s as installed) after their end.
"""

import os
import subprocess
import time

ASK_SECONDS = 5.0  # one question for all jobs of the user
ANSWER_SECONDS = 60.0
ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
)
GONE = "UNKNOWN"  # the controller has forgotten the job


class Queue:
    """The user's jobs; several of its readers share one question.

    A job has ended when two answers in a row say so: between its end and its requeueing it looks
    ended, too.
    """

    def __init__(self) -> None:
        self._asked = float("-inf")
        self._states: dict[str, str] | None = None
        self._before: dict[str, str] | None = None

    def end_of(self, job: str) -> str | None:
        """Return the state in which a job ended; None while it waits or runs, or nobody knows."""
        if time.monotonic() - self._asked >= ASK_SECONDS:
            self._before, self._states = self._states, self._ask()
            self._asked = time.monotonic()
        if self._states is None or self._before is None:
            return None
        now, before = (states.get(job, GONE) for states in (self._states, self._before))
        return now if _is_end(now) and _is_end(before) else None

    def _ask(self) -> dict[str, str] | None:
        user = f"--user={os.getuid()}"
        said = _output("squeue", "--noheader", "--states=all", user, "--format=%i %T")
        return None if said is None else dict(line.split() for line in said.splitlines())


def is_running(job: str) -> bool:
    """Whether a job runs and is not being ended; true when the controller gives no answer."""
    return _fields(job).get("JobState", "RUNNING") == "RUNNING"


def is_preempted(job: str) -> bool:
    """Whether a job is being preempted, by itself or by now."""
    fields = _fields(job)
    return fields.get("PreemptTime", "None") not in ("None", "Unknown")


def _is_end(state: str) -> bool:
    return state in ENDED or state == GONE


def _fields(job: str) -> dict[str, str]:
    """Return the fields of scontrol show job; none when the controller does not answer."""
    words = (_output("scontrol", "show", "job", "--oneliner", job) or "").split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def _output(*command: str) -> str | None:
    """Return what a command of SLURM prints; None when it fails."""
    try:
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=ANSWER_SECONDS
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
