"""Compiles the C kernels on demand where there is a compiler; without one nothing is missing.

A library is kept in the user's cache folder under a name made of source, flags and compiler, so
it is built once, in a second. FCMAE_COMPILED=0 in the environment switches it off.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

_SOURCE = Path(__file__).with_name("depthwise.c")
_REALS = {torch.float32: "float", torch.float64: "double"}
_VECTORS = {"AVX512": ["-mavx512f", "-mfma"], "AVX2": ["-mavx2", "-mfma"]}
_TIMEOUT_SECONDS = 120


@functools.cache
def load_kernels(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Return the library of depthwise.c for a dtype, or None where it cannot be had."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    is_wanted = os.environ.get("FCMAE_COMPILED", "1") != "0" and os.name == "posix"
    if dtype not in _REALS or compiler is None or not is_wanted:
        return None
    flags = ["-O3", "-ffp-contract=fast", "-shared", "-fPIC", f"-DREAL={_REALS[dtype]}"]
    if platform.machine() in ("x86_64", "AMD64"):
        flags += _VECTORS.get(torch.backends.cpu.get_cpu_capability(), [])
    for parallel in (["-fopenmp"], []):  # some compilers come without OpenMP
        try:
            return ctypes.CDLL(str(_build(compiler, [*flags, *parallel])))
        except (OSError, subprocess.SubprocessError):
            continue
    return None


def _build(compiler: str, flags: list[str]) -> Path:
    """Return the compiled library, from the cache if it is there."""
    identity = [_SOURCE.read_text("ascii"), compiler, platform.machine(), *flags]
    name = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fcmae" / "kernels"
    library = cache / f"depthwise-{name}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            partial = Path(folder) / "depthwise.so"
            subprocess.run(
                [compiler, *flags, str(_SOURCE), "-o", str(partial)],
                check=True,
                capture_output=True,
                timeout=_TIMEOUT_SECONDS,
            )
            partial.replace(library)
    return library
