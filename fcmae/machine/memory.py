"""Memory in bytes, of this process and of this machine; new processes with peaks of their own."""

import importlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_ANSWER = "from fcmae.machine.memory import answer; answer()"
_RESET = Path("/proc/self/clear_refs")
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


def growth_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """Return by how much the memory grows at most while `work` runs; None where nothing tells.

    That of the GPU's allocator, or the resident memory of this process.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    resident = _field("/proc/self/status", "VmRSS")
    if resident is None or not _RESET.exists():
        return None
    _RESET.write_text("5")  # the largest size starts again from the present one
    work()
    return peak_bytes() - 1024 * resident


def private_bytes(process: int) -> int | None:
    """Return the memory that a process shares with no other; None where that is not known."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def available_bytes(device: torch.device) -> int:
    """Return what new work may take: free on the GPU, or in the machine and its container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
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


def call_alone(function: Callable[[Any], Any], request: Any) -> Any:
    """Return what a module's function makes of `request` in a new process; both are plain data.

    Raises:
        ChildProcessError: the process failed; its arguments are the exit status and the last line
            that it wrote.
    """
    name = f"{function.__module__}:{function.__name__}"
    done = subprocess.run(
        [sys.executable, "-c", _ANSWER, name],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    lines = [line.strip() for line in done.stderr.replace("\r", "\n").split("\n")]
    last = next((line for line in reversed(lines) if line), f"exit status {done.returncode}")
    raise ChildProcessError(done.returncode, last)


def answer() -> None:
    """Be the new process of `call_alone`."""
    module, _, name = sys.argv[1].partition(":")
    function = getattr(importlib.import_module(module), name)
    print(json.dumps(function(json.load(sys.stdin))), flush=True)


def _field(file: str, name: str) -> int | None:
    """Return the number behind `name:` in a file of the kernel."""
    try:
        lines = Path(file).read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
