"""Walks folders of any size: which files are images, in a fixed order, every other one counted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from fcmae.data.accounting import Accounting
from fcmae.data.kinds import (
    HIDDEN,
    PICTURE_ENDINGS,
    PICTURE_EXTENSIONS,
    extension_of,
    is_picture,
    kind_of,
)
from fcmae.data.readers import is_store
from fcmae.runs.terminal import progress_bar

Visited = set[tuple[int, int]]


@dataclass
class _Folder:
    """What lies directly in a folder.

    Attributes:
        path: of the folder.
        names: of its images, sorted, with a zero byte behind each: small in memory.
        folders: (name, folder) of those in it.
        is_store: it is one file in fact, and what lies in it is nobody's business.
    """

    path: bytes
    names: bytes = b""
    folders: list[tuple[bytes, _Folder]] = field(default_factory=list)
    is_store: bool = False


def walk(folder: str, visited: Visited, accounting: Accounting) -> Iterator[bytes]:
    """Yield the images below a folder, sorted by the bytes of their paths; note all else.

    Links are followed; a folder that is in `visited`, which grows, is not entered, so loops end.
    """
    yield from _in_order(_scan(folder, visited, accounting))


def _scan(folder: str, visited: Visited, accounting: Accounting) -> _Folder:
    """Return the folder with all below it; folders are entered in the order of their names."""
    with progress_bar((), unit="file", total=0, title="looking for images", is_brief=True) as bar:
        return _scan_all(folder, visited, accounting, bar.update)


def _scan_all(
    folder: str, visited: Visited, accounting: Accounting, count: Callable[[int], object]
) -> _Folder:
    root = _Folder(os.fsencode(folder))
    waiting = [root]
    while waiting:
        node = waiting.pop()
        path = os.fsdecode(node.path)
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(node.path) as scan:
                entries = list(scan)
        except OSError as error:
            accounting.folders.append((path, f"the folder cannot be read ({error.strerror})"))
            continue
        count(len(entries))
        names: list[bytes] = []
        below: list[bytes] = []
        if is_store(path, [entry.name for entry in entries]):
            node.is_store = True
            continue
        for entry in entries:
            found = _look_at(entry, accounting)
            if found == "folder":
                below.append(entry.name)
            elif found == "image":
                names.append(entry.name)
        names.sort()
        node.names = b"".join(name + b"\0" for name in names)
        node.folders = [(name, _Folder(os.path.join(node.path, name))) for name in sorted(below)]
        waiting += [child for _, child in reversed(node.folders)]
    return root


def _look_at(
    entry: os.DirEntry[bytes], accounting: Accounting
) -> Literal["folder", "image"] | None:
    """Return what an entry is to be used as; count what is not."""
    if entry.name.endswith(PICTURE_ENDINGS) and not entry.name.startswith(b"."):
        with contextlib.suppress(OSError):  # a link to itself
            if entry.is_file():
                return "image"
    name, path = os.fsdecode(entry.name), os.fsdecode(entry.path)
    try:
        if name.startswith("."):
            is_folder = entry.is_dir(follow_symlinks=False)
            accounting.no_images[HIDDEN] += _count_below(path) if is_folder else 1
            return None
        if entry.is_dir():
            return "folder"
        is_file = entry.is_file()
    except OSError as error:  # a link to itself
        accounting.problems.append((path, f"cannot be followed ({error.strerror})"))
        return None
    if is_file:
        return note_file(path, accounting)
    if extension_of(name) in PICTURE_EXTENSIONS:
        accounting.problems.append((path, why_no_file(path)))
    else:
        accounting.no_images[kind_of(name)] += 1
    return None


def note_file(path: str, accounting: Accounting) -> Literal["image"] | None:
    """Return whether a regular file is an image; count it if it is none."""
    try:
        if is_picture(path):
            return "image"
    except OSError as error:
        accounting.problems.append((path, f"cannot be read ({error.strerror})"))
    else:
        accounting.no_images[kind_of(path)] += 1
    return None


def why_no_file(path: str) -> str:
    """Return the reason why a path is no regular file."""
    if os.path.exists(path):
        return "is not a regular file"
    return "is a link to nothing" if os.path.islink(path) else "does not exist"


def _count_below(folder: str) -> int:
    """Return how many files lie below a hidden folder."""
    return sum(len(files) for _, _, files in os.walk(folder))


def _in_order(root: _Folder) -> Iterator[bytes]:
    """Yield the paths of all images, sorted by their bytes.

    A folder stands where its name with a slash behind it does among the names of files.
    """
    waiting: list[_Folder | bytes] = [root]
    while waiting:
        item = waiting.pop()
        if isinstance(item, bytes):
            yield item
            continue
        if item.is_store:
            yield item.path.rstrip(b"/") or item.path
            continue
        prefix = os.path.join(item.path, b"")
        names = item.names.split(b"\0")[:-1]
        if not item.folders:
            yield from (prefix + name for name in names)
            continue
        keyed: list[tuple[bytes, _Folder | bytes]] = [(name, prefix + name) for name in names]
        keyed += [(name + b"/", child) for name, child in item.folders]
        keyed.sort(key=lambda pair: pair[0], reverse=True)
        waiting += [entry for _, entry in keyed]
