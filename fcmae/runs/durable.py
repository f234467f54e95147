"""Files that are complete or absent: written beside, forced to disk, renamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

PARTIAL = ".partial-"  # how the names of files that are being written begin


def sync(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Replace `path` by what `write(partial_path)` writes: readers see the old file or the new.

    The partial file keeps the suffix, which many writers choose their format by. It is removed
    when writing fails, and the error goes on.
    """
    partial = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")
    try:
        write(partial)
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace `path` by UTF-8 `text`; undecodable file names inside survive."""
    write_atomically(
        path, lambda partial: partial.write_bytes(text.encode(errors="surrogateescape"))
    )
