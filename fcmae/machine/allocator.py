"""Memory that was freed is kept for the next step.

glibc gives every block above 32 MiB (at first above less) fresh memory, which the system clears
page by page. Training on a CPU makes and frees the same tensors in every step; docs/performance.md
says what keeping them is worth.
"""

import ctypes
import os
import sys

M_TRIM_THRESHOLD = -1  # of glibc's malloc.h
M_MMAP_MAX = -4
# The environment variables of the same meaning, for programs started from here.
NEVER = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62)}


def keep_freed_memory() -> None:
    """Have this process and those it starts reuse memory; on Linux with glibc, else nothing.

    Whoever has set one of malloc's environment variables is left with what they chose.
    """
    chosen = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    if sys.platform != "linux" or any(name.startswith(chosen) for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
        os.environ.update(NEVER)
