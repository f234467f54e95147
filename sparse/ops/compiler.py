"""Compiles the C kernels on demand where there is a compiler; without one nothing is missing.

A library is kept in the user's cache folder under a name made of source, flags and the compiler
that answers, so it is built once, in a second. FCMAE_COMPILED=0 in the environment switches it off.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

_REALS = {torch.float32: "float", torch.float64: "double"}
_VECTORS = {"AVX512": ["-mavx512f", "-mfma"], "AVX2": ["-mavx2", "-mfma"]}
_TIMEOUT_SECONDS = 120
_CHECKSUM = ".sha256"  # beside each library: one that a full disk cut may crash when it is loaded


def load_kernels(dtype: torch.dtype, name: str = "depthwise") -> ctypes.CDLL | None:
    """Return the library of a C file of this folder for a dtype, None where it cannot be had."""
    return _load(dtype, name)[0]


def missing_kernels(dtype: torch.dtype = torch.float32) -> str | None:
    """Say why a dtype has no compiled kernels on this machine's CPU; None when it has them."""
    return _load(dtype, "depthwise")[1]


def forget_kernels() -> None:
    """Look for kernels again, after the environment has changed."""
    _load.cache_clear()


@functools.cache
def _load(dtype: torch.dtype, name: str) -> tuple[ctypes.CDLL | None, str | None]:
    if dtype not in _REALS:
        return None, f"they are for float32 and float64, not {dtype}"
    if os.environ.get("FCMAE_COMPILED", "1") == "0":
        return None, "FCMAE_COMPILED=0 switches them off"
    if os.name != "posix":
        return None, "they are for POSIX systems"
    command = os.environ.get("CC") or "cc"
    try:
        compiler = shlex.split(command)
    except ValueError:
        compiler = []
    if not compiler or shutil.which(compiler[0]) is None:
        return None, f"there is no C compiler {command!r}; install gcc or set CC"
    flags = ["-O3", "-ffp-contract=fast", "-shared", "-fPIC", f"-DREAL={_REALS[dtype]}"]
    if platform.machine() in ("x86_64", "AMD64"):
        flags += _VECTORS.get(torch.backends.cpu.get_cpu_capability(), [])
    why = ""
    for parallel in (["-fopenmp"], []):  # some compilers come without OpenMP
        try:
            return ctypes.CDLL(str(_build(name, compiler, [*flags, *parallel]))), None
        except subprocess.CalledProcessError as error:
            lines = error.stderr.decode(errors="replace").strip().splitlines()
            why = f"{command!r} failed: {lines[-1] if lines else error.returncode}"
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            why = " ".join(str(error).split())
    return None, why


def _build(name: str, compiler: list[str], flags: list[str]) -> Path:
    """Return the compiled library of a C file, from the cache if it is there and whole."""
    source = Path(__file__).with_name(f"{name}.c")
    identity = [source.read_text("ascii"), _version(compiler), platform.machine(), *flags]
    digits = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]
    cache = _cache_folder()
    library = cache / f"{name}-{digits}.so"
    checksum = library.with_suffix(_CHECKSUM)
    if _is_whole(library, checksum):
        return library
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        partial = Path(folder) / "kernels.so"
        subprocess.run(
            [*compiler, *flags, str(source), "-o", str(partial)],
            check=True,
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
        )
        digest = Path(folder) / "digest"
        digest.write_text(_digest(partial), encoding="ascii")
        partial.replace(library)
        digest.replace(checksum)
    return library


def _cache_folder() -> Path:
    """Return where libraries are kept: the user's cache, or a folder of their own in /tmp.

    Raises:
        OSError: the folder in /tmp belongs to somebody else, who could put anything there.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        home = Path(given) if given else Path.home() / ".cache"
    except (RuntimeError, KeyError):  # no HOME, and a user id that has no name
        home = None
    if home is not None and (given or os.access(_existing(home), os.W_OK)):
        return home / "fcmae" / "kernels"
    folder = Path(tempfile.gettempdir()) / f"fcmae-{os.getuid()}" / "kernels"
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    owner = folder.parent.lstat()
    if owner.st_uid != os.getuid() or owner.st_mode & 0o077:
        raise PermissionError(f"{folder.parent} is open to others; set XDG_CACHE_HOME")
    return folder


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _version(compiler: list[str]) -> str:
    """Return what the compiler says it is; another one of the same name builds anew."""
    answer = subprocess.run(
        [*compiler, "--version"], check=False, capture_output=True, timeout=_TIMEOUT_SECONDS
    )
    return f"{shutil.which(compiler[0])}\n{answer.stdout.decode(errors='replace')}"


def _is_whole(library: Path, checksum: Path) -> bool:
    try:
        return _digest(library) == checksum.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return False


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
