"""Faults of disks, users and machines that a process of a test meets: real ones, by the kernel.

Mounts are made in a mount namespace of the process and end with it. What can be seen of a folder
only there is copied out when its work is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ablation_in_process
import minkowski_stand_ins
import pytest

from fcmae.__main__ import main
from fcmae.machine.bench import roofline
from fcmae.machine.plan import trials

NEW_MOUNTS = 0x20000  # CLONE_NEWNS
READ_ONLY, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 32, 4096, 16384, 1 << 18
DETACH = 2  # MNT_DETACH
NOBODY, UNKNOWN = 65534, 54321
SMALL_FILE_BYTES = 6000
PROGRAMS = "programs"
PROJECT = Path(__file__).parents[2]

Fault = Callable[[Path], object]


def own_mounts() -> None:
    """Let this process mount what no other sees; raises OSError where the kernel forbids it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    _mount("none", Path("/"), flags=RECURSIVE | PRIVATE)


def _mount(source: str, place: Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), os.fsencode(place), kind.encode(), flags, options.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(place))


def can_mount() -> int:
    """Be a process that finds out whether `own_mounts` works: its exit status is 0 if it does."""
    try:
        own_mounts()
    except OSError:
        return 1
    return 0


def can_become() -> int:
    """Be a process that finds out whether `become` works: its exit status is 0 if it does."""
    try:
        become(NOBODY)
    except OSError:
        return 1
    return 0


def read_only(folder: Path) -> None:
    """Nothing in `folder` can be written, not even by root."""
    own_mounts()
    _mount(str(folder), folder, flags=BIND)
    _mount("none", folder, flags=BIND | REMOUNT | READ_ONLY)


def full(folder: Path) -> None:
    """The disk of `folder` takes not one byte more; what is in it stays."""
    own_mounts()
    kept = folder.with_name(folder.name + "-kept")
    shutil.copytree(folder, kept)
    _mount("tmpfs", folder, "tmpfs", options="size=64m")
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    shutil.rmtree(kept)
    os.chmod(folder, 0o777)
    with open(folder / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
        # what is left is less than that
    with open(folder / "filler", "ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))


def small_files(folder: Path) -> None:
    """No file may become larger than some kilobytes, as under a quota."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_FILE_BYTES, SMALL_FILE_BYTES))


def vanishing(folder: Path, *, at_write: int = 1) -> None:
    """`folder` is removed when a file in it is opened for the `at_write`th time to be written."""
    writes, name = 0, os.fspath(folder)

    def watch(event: str, given: tuple[object, ...]) -> None:
        nonlocal writes
        if event != "open" or writes >= at_write or not isinstance(given[0], (str, bytes)):
            return
        is_write = bool(int(str(given[2] or 0)) & (os.O_WRONLY | os.O_RDWR))
        if is_write and os.path.abspath(os.fsdecode(given[0])).startswith(name):
            writes += 1
            if writes == at_write:
                shutil.rmtree(folder)

    sys.addaudithook(watch)


def vanishing_at_read(folder: Path, *, at_read: int = 2) -> None:
    """`folder` is removed when a file in it is opened for the `at_read`th time."""
    reads, name = 0, os.fspath(folder)

    def watch(event: str, given: tuple[object, ...]) -> None:
        nonlocal reads
        if event != "open" or reads >= at_read or not isinstance(given[0], (str, bytes)):
            return
        if os.path.abspath(os.fsdecode(given[0])).startswith(name):
            reads += 1
            if reads == at_read:
                shutil.rmtree(folder)

    sys.addaudithook(watch)


def _let_everybody_use_python() -> None:
    """Where Python, its packages or the project lie in a folder closed to others, open it.

    Here only: the closed folder makes way for an open one that holds them alone.
    """
    used = {Path(place).resolve() for place in (sys.base_prefix, sys.prefix, PROJECT)}
    closed = {path: place for place in used if (path := _outermost_closed(place)) is not None}
    if not closed:
        return
    own_mounts()
    kept = {}
    for place in used:
        kept[place] = Path(tempfile.mkdtemp())
        _mount(str(place), kept[place], flags=BIND)
    for path in closed:
        _mount("tmpfs", path, "tmpfs", options="mode=755")
    for place in sorted(used):
        if any(place.is_relative_to(path) for path in closed) and not place.exists():
            place.mkdir(parents=True)
            _mount(str(kept[place]), place, flags=BIND)
    for path in kept.values():
        ctypes.CDLL(None).umount2(os.fsencode(path), DETACH)
        path.rmdir()


def _outermost_closed(place: Path) -> Path | None:
    return next((path for path in (place, *place.parents)[::-1] if _is_closed(path)), None)


def _is_closed(path: Path) -> bool:
    return not path.stat().st_mode & 0o001


def become(user: int) -> None:
    """Be another user, with no rights but those of everybody."""
    _let_everybody_use_python()
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


def stranger(folder: Path) -> None:
    """Another user, who may read everything and write nowhere in `folder`."""
    become(NOBODY)


def shut_out(folder: Path) -> None:
    """Another user, to whom `folder` is closed."""
    os.chmod(folder, 0o700)
    become(NOBODY)


def homeless(folder: Path) -> None:
    """A user without a name, a home or a place for caches, to whom `folder` belongs."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, UNKNOWN, UNKNOWN)
    for name in ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        os.environ.pop(name, None)
    become(UNKNOWN)


def strict_umask(folder: Path) -> None:
    """New files are closed to others."""
    os.umask(0o027)


def little_shared_memory(folder: Path, *, size: str) -> None:
    """/dev/shm has room for `size` only."""
    own_mounts()
    _mount("tmpfs", Path("/dev/shm"), "tmpfs", options=f"size={size}")


def few_descriptors(folder: Path, *, number: int) -> None:
    """No more than `number` files may be open."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))


def no_room_for_temporary_files(folder: Path) -> None:
    """The folder of temporary files is full."""
    place = folder.with_name("tmp")
    place.mkdir()
    full(place)
    os.environ["TMPDIR"] = tempfile.tempdir = str(place)


def full_terminal(folder: Path) -> None:
    """What is printed goes to a file on a full disk."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def nothing(folder: Path) -> None:
    """All is well."""


def run_with(
    arguments: list[str], fault: Fault, folder: str, stderr: str, seen: str | None = None
) -> int:
    """Be the console under a fault of `folder`, with stderr in a file of its own.

    Cells of an ablation and trials of a plan run in this process, which spares their starts.
    Programs beside `folder`, in PROGRAMS, stand for those of a cluster.
    Afterwards a copy of `folder` as this process sees it lies in `seen`.
    """
    descriptor = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    patch = pytest.MonkeyPatch()
    ablation_in_process.use(patch)
    patch.setattr(roofline, "SIDE", 128)  # products that take a second tell nothing here
    trials.call_alone = _call_here
    place = Path(_spelt_here(folder))
    stand_ins = place.parent / PROGRAMS
    os.environ["PATH"] = f"{stand_ins}:{os.environ['PATH']}"
    if arguments[0] == "install-minkowski":
        minkowski_stand_ins.use(patch)
    fault(place)
    status = main([_spelt_here(word) for word in arguments])
    if seen is not None and place.is_dir():
        shutil.copytree(place, _spelt_here(seen), ignore=shutil.ignore_patterns("filler"))
    return status


def write_programs(folder: Path) -> None:
    """Write stand-ins for the programs that queue a job, which every user may run."""
    folder.mkdir()
    for name, said in (("sbatch", "Submitted batch job 12"), ("squeue", ""), ("sacct", "")):
        program = folder / name
        program.write_text(f"#!/bin/sh\necho {said}\n")
        program.chmod(0o755)


def _spelt_here(name: str) -> str:
    """Return a name as Python reads it from this process's command line."""
    return os.fsdecode(name.encode())


def _call_here(function: Callable[[Any], Any], request: Any) -> Any:
    """Do what a new process would do, and fail as it would."""
    try:
        return function(request)
    except Exception as error:
        raise ChildProcessError(1, f"{type(error).__name__}: {error}") from error
