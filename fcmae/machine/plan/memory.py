"""Memory of this process and of this machine, in bytes."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

_CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def peak_bytes() -> int:
    """Return the largest resident memory that this process has had.

    Read from the kernel's own record where there is one: getrusage counts, after an exec, also
    what the process was before.
    """
    kibibytes = _field("/proc/self/status", "VmHWM")
    if kibibytes is not None:
        return 1024 * kibibytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def private_bytes(process: int) -> int | None:
    """Return the memory that a process shares with no other; None where that is not known."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def available_bytes() -> int:
    """Return the memory that new processes may take: free in the machine and in its container."""
    free = _field("/proc/meminfo", "MemAvailable")
    if free is None:
        pages = os.sysconf("SC_PHYS_PAGES")
        return pages * os.sysconf("SC_PAGE_SIZE")
    limits = [1024 * free]
    for limit, used in _CGROUP_FILES:
        try:
            limits.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such container, or no limit
            continue
    return max(0, min(limits))


def _field(file: str, name: str) -> int | None:
    """Return the number behind `name:` in a file of the kernel."""
    try:
        lines = Path(file).read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
