"""Peak memory of a piece of work: how much a fresh process grows beyond its model and inputs.

On a CPU it is the growth of the resident set up to its largest size; on a GPU, of what torch
allocates.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import torch

from fcmae.machine.bench.subjects import Subject, prepare

STEPS = 2  # the optimizer's state appears in the first
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory(subject: Subject, device: torch.device, threads: int) -> int | None:
    """Return bytes, measured in a process of its own; None where the system does not tell."""
    request = {"subject": dataclasses.asdict(subject), "device": str(device), "threads": threads}
    child = subprocess.run(
        [sys.executable, "-m", "fcmae.machine.bench", json.dumps(request)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    answer = json.loads(child.stdout.splitlines()[-1])
    return None if answer is None else int(answer)


def answer(request: str) -> str:
    """Be the process that measures: the other side of `peak_memory`."""
    asked = json.loads(request)
    if asked["threads"]:
        torch.set_num_threads(asked["threads"])
    device = torch.device(asked["device"])
    work = prepare(Subject(**asked["subject"]), device)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    elif RESET.exists():
        RESET.write_text("5")  # the largest size starts again from the present one
        before = _resident("VmRSS")
    else:  # not Linux
        return json.dumps(None)
    for _ in range(STEPS):
        work()
    is_cuda = device.type == "cuda"
    after = torch.cuda.max_memory_allocated(device) if is_cuda else _resident("VmHWM")
    return json.dumps(after - before)


def _resident(name: str) -> int:
    """Read a size of this process, in bytes, from Linux."""
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024  # the file counts in kB
    raise RuntimeError(f"{STATUS} has no line {name}")
