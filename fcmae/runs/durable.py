"""How every file leaves a run: beside its place, forced to disk, renamed; complete or absent.

Who has something to write gives a function that fills the file `partial`, whose name it is given.
A failing disk is an OSError, whatever library wrote.
"""

import contextlib
import errno
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from fcmae.errors import EXPECTED_ERRORS

Result = TypeVar("Result")

PARTIAL = ".partial-"  # how the names of files that are being written begin
# What a network file system gets over in a moment; a full disk or a missing right stays.
TRANSIENT = frozenset({errno.EAGAIN, errno.EINTR, errno.EIO, errno.ESTALE, errno.ETIMEDOUT})
TRIES = 3
PAUSE_SECONDS = 0.5
# What torch's own writer says instead of the reason, which it does not know.
_TORCH_WRITER = re.compile(r"PytorchStreamWriter|unexpected pos|basic_ios|iostream error")


def sync(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Replace `path` by what `write(partial)` writes: readers see the old file or the new.

    The partial file keeps the suffix, which many writers choose their format by; it has the mode
    that the umask gives to new files, which some writers do not. It is removed when writing fails,
    and the error goes on. What may pass in a moment is tried again.

    Raises:
        OSError: the file cannot be written.
    """
    for tries_left in range(TRIES - 1, -1, -1):
        try:
            _write_once(path, write)
        except OSError as error:
            if error.errno not in TRANSIENT or not tries_left:
                raise
            time.sleep(PAUSE_SECONDS)
        else:
            return


def write_text(path: Path, text: str) -> None:
    """Replace `path` by UTF-8 `text`; undecodable file names inside survive."""
    write_bytes(path, text.encode(errors="surrogateescape"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`."""
    write_atomically(path, lambda partial: partial.write_bytes(content))


def save_torch(content: Any, path: Path) -> None:
    """Write what torch.load reads; called with the partial file of `write_atomically`.

    Through Python's own file, which says when a disk is full: torch's does not in every version.
    """
    import torch

    with path.open("wb") as file:
        torch.save(content, file)


def write_files(folder: Path, write: Callable[[Path], Result]) -> Result:
    """Move the files that `write(partial)` puts into the folder `partial` to `folder`.

    Each takes its place complete, after all of them are; other files in `folder`, which is
    created, are left alone. Nothing changes when writing fails, and the error goes on.

    Returns:
        What `write` returns.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=folder) as name:
        partial = Path(name)
        mode = _mode_of_new_file(partial / "mode")
        (partial / "mode").unlink()
        with disk_errors(folder):
            result = write(partial)
        files = sorted(partial.iterdir())
        for file in files:
            os.chmod(file, mode)
            sync(file)
        for file in files:
            os.replace(file, folder / file.name)
        sync(folder)
    return result


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise as OSError what safetensors, torch and others raise when a disk fails."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        found = _disk_error(error, path)
        if found is None:
            raise
        raise found from error


def _write_once(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")
    try:
        mode = _mode_of_new_file(partial)
        with disk_errors(path):
            write(partial)
        os.chmod(partial, mode)
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def _mode_of_new_file(path: Path) -> int:
    """Create an empty file and return its mode, in which umask and the folder's rules have a say.

    The umask cannot be asked for without changing it, which other threads would see.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        return os.fstat(descriptor).st_mode & 0o777
    finally:
        os.close(descriptor)


def _disk_error(error: BaseException, path: Path) -> OSError | None:
    """Return the error of the disk that another error hides; None when it is about other things."""
    if isinstance(error, EXPECTED_ERRORS):
        return None  # it has its own sentence
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause
        cause = cause.__cause__ or cause.__context__
    number = re.search(r"(?:os error |Os \{ code: )(\d+)", str(error))  # Rust's ways to say it
    if number is not None:
        code = int(number.group(1))
        return OSError(code, os.strerror(code), str(path))
    if isinstance(error, RuntimeError) and _TORCH_WRITER.search(str(error)):
        return OSError(errno.EIO, "the disk took a part of it only", str(path))
    return None
