"""What a result was computed on, in words: hardware and versions."""

import os
import platform
from pathlib import Path

import timm
import torch

from fcmae import __version__


def hardware() -> str:
    """Return processor, cores this process may use, and GPUs."""
    words = [f"{processor()}, {num_cores()} cores"]
    words += [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(words)


def computing(device: torch.device) -> str:
    """Return what times depend on: processor and its instructions or card, threads, torch."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{processor()} ({torch.backends.cpu.get_cpu_capability()})"
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def versions() -> str:
    """Return the versions that numbers depend on."""
    return (
        f"fcmae {__version__}, torch {torch.__version__}, timm {timm.__version__}, "
        f"Python {platform.python_version()}"
    )


def num_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
