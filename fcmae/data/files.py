"""Find images in folders and lists of paths. Reads names only; decoding.py reads contents."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence

from fcmae.errors import ConfigError

PICTURE_EXTENSIONS = (
    *(".bmp", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"),
    *(".pbm", ".pgm", ".pnm", ".ppm", ".npy"),
)
LIST_EXTENSION = ".txt"
# First-level folders with these names are parts of a data set, not classes.
SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})

Problem = tuple[str, str]  # path and reason


@dataclasses.dataclass(frozen=True)
class ImageList:
    """Images in a fixed order, with what is known about them.

    Attributes:
        paths: absolute or as the user wrote them; undecodable names carry surrogate escapes.
        labels: index into `classes` per image, or None when the images have no labels.
        classes: names of the classes, sorted, or None.
        root: the one folder they were found in, or None.
        problems: (path, reason) of folders and entries that could not be read.
    """

    paths: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None
    root: str | None = None
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, indices: Iterable[int]) -> ImageList:
        """Return the images at `indices`, in that order, with the same classes."""
        indices = list(indices)
        labels = None if self.labels is None else tuple(self.labels[i] for i in indices)
        return dataclasses.replace(self, paths=tuple(self.paths[i] for i in indices), labels=labels)


def find_images(paths: str | Sequence[str], where: str = "data.path") -> ImageList:
    """Return every image under `paths`: folders (searched to any depth), image files, text files.

    A text file (.txt) names one image or folder per line, relative to its own folder; empty lines
    and lines that begin with '#' are skipped. Images of a folder are sorted by the bytes of their
    path; paths and lines keep their order; an image found twice counts once. Names that begin
    with a dot are skipped. Links are followed, each folder is entered once, so loops end.

    Images have labels when `paths` is one folder, every image lies in one of its subfolders and
    at least two of these hold images: the subfolder is the class. Names of splits (train, val,
    test, ...) are no classes.

    Args:
        paths: what the user wrote.
        where: the setting or argument it was written in, for messages.

    Raises:
        ConfigError: a path does not exist or is of no known kind, or no image was found.
    """
    given = [os.path.expanduser(path) for path in ([paths] if isinstance(paths, str) else paths)]
    if not given:
        raise ConfigError(f"{where}: no path was given; name a folder with images.")
    problems: list[Problem] = []
    found: dict[str, None] = {}  # an ordered set
    visited: set[tuple[int, int]] = set()
    for path in given:
        found.update(dict.fromkeys(_images_at(path, where, visited, problems)))
    if not found:
        raise ConfigError(_nothing_found(given, where, problems))
    root = given[0] if len(given) == 1 and os.path.isdir(given[0]) else None
    classes, labels = _class_folders(root, list(found)) if root is not None else (None, None)
    return ImageList(tuple(found), labels, classes, root, tuple(problems))


def _images_at(
    path: str, where: str, visited: set[tuple[int, int]], problems: list[Problem]
) -> Iterator[str]:
    """Yield the images that one path of the user stands for."""
    if os.path.isdir(path):
        yield from sorted(_walk(path, visited, problems), key=os.fsencode)
    elif not os.path.lexists(path):
        raise ConfigError(
            f"{where}: {path!r} does not exist (looked for it from {os.getcwd()}); "
            "name a folder with images, an image, or a text file of paths."
        )
    elif _extension(path) == LIST_EXTENSION:
        yield from _listed(path, where, visited, problems)
    elif _extension(path) in PICTURE_EXTENSIONS and os.path.isfile(path):
        yield path
    else:
        raise ConfigError(
            f"{where}: {path!r} is neither a folder, an image "
            f"({' '.join(PICTURE_EXTENSIONS)}) nor a text file of paths ({LIST_EXTENSION})."
        )


def _walk(folder: str, visited: set[tuple[int, int]], problems: list[Problem]) -> Iterator[str]:
    """Yield the images below `folder` in any order."""
    waiting = [folder]
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: os.fsencode(entry.name), reverse=True)
        except OSError as error:
            problems.append((folder, f"the folder cannot be read ({error.strerror})"))
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir():
                    waiting.append(entry.path)
                elif _extension(entry.name) in PICTURE_EXTENSIONS:
                    if entry.is_file():
                        yield entry.path
                    else:
                        problems.append((entry.path, _why_no_file(entry.path)))
            except OSError as error:  # a link to itself
                problems.append((entry.path, f"cannot be followed ({error.strerror})"))


def _listed(
    list_path: str, where: str, visited: set[tuple[int, int]], problems: list[Problem]
) -> Iterator[str]:
    """Yield the images that a text file names, in its order."""
    try:
        with open(list_path, "rb") as file:
            lines = file.read().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise ConfigError(f"{where}: {list_path!r} cannot be read ({error.strerror}).") from error
    folder = os.path.dirname(list_path)
    for number, line in enumerate(lines, start=1):
        name = os.fsdecode(line.strip())
        if not name or name.startswith("#"):
            continue
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            yield from sorted(_walk(path, visited, problems), key=os.fsencode)
        elif os.path.isfile(path):  # whatever its extension: its name was written on purpose
            yield path
        else:
            problems.append((path, f"{_why_no_file(path)} (line {number} of {list_path})"))


def _class_folders(
    root: str, paths: list[str]
) -> tuple[tuple[str, ...] | None, tuple[int, ...] | None]:
    """Return classes and labels by the folder directly below `root`, (None, None) if none."""
    below = [os.path.relpath(path, root).split(os.sep) for path in paths]
    if any(len(parts) < 2 for parts in below):
        return None, None
    classes = tuple(sorted({parts[0] for parts in below}, key=os.fsencode))
    if len(classes) < 2 or all(name.lower() in SPLIT_NAMES for name in classes):
        return None, None
    number = {name: label for label, name in enumerate(classes)}
    return classes, tuple(number[parts[0]] for parts in below)


def _nothing_found(given: list[str], where: str, problems: list[Problem]) -> str:
    message = (
        f"{where}: no images in {', '.join(map(repr, given))}; files with these extensions are "
        f"recognised: {' '.join(PICTURE_EXTENSIONS)}."
    )
    if problems:
        path, reason = problems[0]
        message += f" {len(problems)} could not be read, the first is {path!r}: {reason}."
    others = collections.Counter(
        _extension(name) or name
        for path in given
        if os.path.isdir(path)
        for _, _, names in os.walk(path)
        for name in names
    )
    if others:
        common = ", ".join(f"{count} {kind}" for kind, count in others.most_common(3))
        message += f" Files found there: {common}."
    return message


def _why_no_file(path: str) -> str:
    if os.path.exists(path):
        return "is not a regular file"
    return "is a link to nothing" if os.path.islink(path) else "does not exist"


def _extension(path: str) -> str:
    return os.path.splitext(path)[1].lower()
