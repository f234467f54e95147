"""Freed memory is kept by the console's processes, and by those that they start."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys

import pytest

MEASURE = """
import ctypes, json
class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
block = bytearray(64 * 2**20)
mapped = libc.mallinfo2().hblkhd
del block
print(json.dumps([mapped, libc.mallinfo2().fordblks]))
"""
KEEP = "from fcmae.machine.allocator import keep_freed_memory\nkeep_freed_memory()\n"
CHILD = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {MEASURE!r}], check=True)"
BLOCK = 64 * 2**20

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="this is not glibc 2.33 or newer"
)


def measure(script: str, **environment: str) -> tuple[int, int]:
    """Return bytes in mapped blocks beside a large one, and bytes kept after it was freed."""
    own = {name: os.environ[name] for name in os.environ if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**own, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    mapped, kept = json.loads(done.stdout)
    return mapped, kept


def test_large_blocks_are_mapped_and_given_back_by_default() -> None:
    mapped, kept = measure(MEASURE)
    assert mapped >= BLOCK
    assert kept < BLOCK


@pytest.mark.parametrize("script", [KEEP + MEASURE, KEEP + CHILD])
def test_large_blocks_are_kept_here_and_in_processes_started_from_here(script: str) -> None:
    mapped, kept = measure(script)
    assert mapped < BLOCK
    assert kept >= BLOCK


def test_what_the_user_chose_stays() -> None:
    mapped, _ = measure(KEEP + MEASURE, MALLOC_ARENA_MAX="4")
    assert mapped >= BLOCK
