"""The images of a run, recorded when it starts: a continued run has the same, wherever they lie.

A file of JSON lines: {"roots", "classes"}, then [root, name] or [root, name, label] per image, its
name below that root. Version 0.1.0 wrote the path of each image alone.
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fcmae.data.image_list import ImageList
from fcmae.data.path_list import Labels, PathList
from fcmae.data.readers import split_item
from fcmae.errors import CheckpointError, DataError, DiskError
from fcmae.runs.durable import write_atomically

NOWHERE = -1  # number of no root: the name is a whole path


class Record(NamedTuple):
    """What a file records.

    Attributes:
        roots: folders, absolute; as the settings of then had them where version 0.1.0 wrote it.
        root_of: number of each image's root, or NOWHERE.
        names: of the images below their roots.
        labels: class of each image; None without labels.
        classes: their names, or None.
    """

    roots: tuple[str, ...]
    root_of: list[int]
    names: PathList
    labels: Labels | None = None
    classes: tuple[str, ...] | None = None

    def paths_below(self, roots: Sequence[str]) -> PathList:
        """Return where the images are if the roots are these now."""
        return PathList(
            name if number == NOWHERE or number >= len(roots) else os.path.join(roots[number], name)
            for number, name in zip(self.root_of, self.names, strict=True)
        )


class Recalled(NamedTuple):
    """The images of a run where they are now, and what to say of them, or ""."""

    images: ImageList
    told: str


def fix_images(
    file: Path,
    images: ImageList,
    *,
    is_continued: bool,
    report: Callable[[str], None],
    max_gone: float = 1.0,
) -> ImageList:
    """Record the images of a new run in `file`, or return those that a continued run began with.

    The order of samples is a permutation of the list, so that a file that came or went would
    change everything after it. `report` says what changed, once: not of images that `recall` has
    taken from the file. See `recall`.

    Raises:
        CheckpointError, DataError, DiskError: as `recall`.
        OSError: the list of a new run cannot be written.
    """
    if not is_continued:
        write_atomically(file, lambda partial: _write(partial, images))
        return images
    if images.recorded_in == file:
        return images
    recalled = recall(file, images, max_gone=max_gone)
    if recalled.told:
        report(recalled.told)
    return recalled.images


def recall(
    file: Path,
    found: ImageList,
    *,
    max_gone: float = 1.0,
    old_roots: Sequence[str] = (),
    others: Iterable[str] | None = (),
    what: str = "images",
) -> Recalled:
    """Return the images that a run began with, in their order, with the labels of then.

    They are looked for below what `found` was found in now, by their names, then where they were.
    Files that are gone keep their place and count as undecodable; new ones wait for another run.

    Args:
        file: what `fix_images` wrote.
        found: the images that the settings name now.
        max_gone: share of the images that may be gone.
        old_roots: what the settings named when version 0.1.0 wrote the file.
        others: of `found`, those that the run uses otherwise, which are not new; None: new ones
            cannot be told from those that were never chosen.
        what: the images in words.

    Raises:
        CheckpointError: the list is missing or damaged.
        DataError: a larger share of the images is gone.
        DiskError: the list cannot be read now.
    """
    record = read_record(file, old_roots)
    paths, gone = _locate(record, found)
    labels, classes = record.labels, record.classes
    if labels is None and found.labels is not None:
        labels, classes = _labels_of(record, paths, found), found.classes
    images = dataclasses.replace(
        found,
        paths=paths,
        labels=labels,
        classes=classes,
        parts={},
        part_of=None,
        recorded_in=file,
    )
    if paths == found.paths and record.labels in (None, found.labels):
        images = dataclasses.replace(images, parts=found.parts, part_of=found.part_of)
    return Recalled(images, _sentence(record, images, gone, found, max_gone, others, what))


def read_record(file: Path, old_roots: Sequence[str] = ()) -> Record:
    """Return what a file records; see `recall` for the arguments and errors."""
    try:
        with file.open(encoding="ascii") as lines:
            return _parse(map(json.loads, lines), tuple(old_roots))
    except (FileNotFoundError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{file}: the run's list of images cannot be read ({error}), and without it "
            "the order of images is lost; restore the file, or start again in another run.dir."
        ) from error
    except OSError as error:
        raise DiskError(
            f"{file}: cannot be read now ({error.strerror}); nothing is lost, start the same "
            "command again when the disk answers."
        ) from error


def read_paths(file: Path) -> PathList:
    """Return where the images that a file records lay when it was written; see `read_record`."""
    record = read_record(file)
    return record.paths_below(record.roots)


def _parse(lines: Iterator[Any], old_roots: tuple[str, ...]) -> Record:
    first = next(lines, None)
    if not isinstance(first, dict):  # version 0.1.0
        written = [] if first is None else [first, *lines]
        if not all(isinstance(path, str) for path in written):
            raise ValueError("it is no list of paths")
        pairs = list(map(_Names(old_roots), written))
        return Record(old_roots, [number for number, _ in pairs], PathList(n for _, n in pairs))
    roots = tuple(map(str, first["roots"]))
    classes = None if first["classes"] is None else tuple(map(str, first["classes"]))
    root_of: list[int] = []
    labels: list[int] = []

    def names() -> Iterator[str]:
        for number, name, *label in lines:
            if not (isinstance(name, str) and NOWHERE <= int(number) < len(roots)):
                raise ValueError("it is no list of images")
            root_of.append(int(number))
            labels.extend(map(int, label))
            yield name

    found = PathList(names())
    if len(labels) != (0 if classes is None else len(found)):
        raise ValueError("some images have no label")
    return Record(roots, root_of, found, None if classes is None else Labels(labels), classes)


def _write(partial: Path, images: ImageList) -> None:
    roots = roots_of(images)
    classes = None if images.classes is None or images.labels is None else list(images.classes)
    name_of = _Names(roots)
    ends: Iterable[str] = itertools.repeat("]\n", len(images))
    if classes is not None and images.labels is not None:
        ends = (f", {label}]\n" for label in images.labels)
    with partial.open("w", encoding="ascii") as lines:
        header = {"roots": list(map(os.path.abspath, roots)), "classes": classes}
        lines.write(json.dumps(header) + "\n")
        # As json.dumps writes them, in a third of its time: a run of a million images waits for it.
        lines.writelines(
            f"[{number}, {encode_basestring_ascii(name)}{end}"
            for (number, name), end in zip(map(name_of, images.paths), ends, strict=True)
        )


def roots_of(images: ImageList) -> tuple[str, ...]:
    """Return the folders below which the images have their names."""
    return images.roots or (() if images.root is None else (images.root,))


class _Names:
    """Tells of a path the number of the root that it lies below, the innermost, and its name there.

    Args:
        roots: folders.
    """

    def __init__(self, roots: Sequence[str]) -> None:
        prefixes = [(os.path.join(root, ""), number) for number, root in enumerate(roots)]
        self._prefixes = sorted(prefixes, key=lambda pair: len(pair[0]), reverse=True)

    def __call__(self, path: str) -> tuple[int, str]:
        for prefix, number in self._prefixes:
            if path.startswith(prefix) if prefix else not os.path.isabs(path):
                return number, path[len(prefix) :]
        return NOWHERE, path


def _locate(record: Record, found: ImageList) -> tuple[PathList, list[int]]:
    """Return where the images are now, and the indices of those that are nowhere."""
    roots = roots_of(found)
    paths = record.paths_below(roots)
    if paths == found.paths:
        return paths, []
    gone = []
    moved: dict[int, str] = {}
    for index in np.flatnonzero(~_are_among(paths, found.paths)).tolist():
        name, number = record.names[index], record.root_of[index]
        places = [paths[index]]
        if number != NOWHERE:
            places += [os.path.join(root, name) for root in (*roots, record.roots[number])]
        here = next((place for place in places if os.path.lexists(split_item(place)[0])), None)
        if here is None:
            gone.append(index)
        elif here != paths[index]:
            moved[index] = here
    if gone and len(paths) == len(found) and _below_all(paths) == _below_all(found.paths):
        assert isinstance(found.paths, PathList)
        return found.paths, []
    if moved:
        paths = PathList(moved.get(index, path) for index, path in enumerate(paths))
    return paths, gone


def _are_among(paths: PathList, others: Sequence[str]) -> np.ndarray:
    """Return which paths are among others, bool [N]."""
    lists = (paths, _plain(others))
    keys, known = (np.fromiter(map(hash, p.raw()), np.int64, len(p)) for p in lists)
    return np.isin(keys, known)


def _below_all(paths: Sequence[str]) -> list[str]:
    """Return paths below what all of them share."""
    whole = [os.path.abspath(path) for path in paths]
    shared = os.path.commonpath(whole)
    return [os.path.relpath(path, shared) for path in whole]


def _labels_of(record: Record, paths: PathList, found: ImageList) -> Labels:
    """Return labels for images of which none were recorded: by their path now, or their folder."""
    assert found.labels is not None
    assert found.classes is not None
    known = dict(zip(found.paths, found.labels, strict=True))
    number = {name: index for index, name in enumerate(found.classes)}

    def label(path: str, name: str) -> int:
        if path in known:
            return known[path]
        folders = name.split("/")[:-1]
        return next((number[folder] for folder in folders if folder in number), -1)

    return Labels(label(*pair) for pair in zip(paths, record.names, strict=True))


def _sentence(
    record: Record,
    images: ImageList,
    gone: list[int],
    found: ImageList,
    max_gone: float,
    others: Iterable[str] | None,
    what: str,
) -> str:
    """Say what has changed since the start; raise DataError when too much has."""
    count, said = len(images), []
    if gone:
        first = (
            f"{len(gone)} of the run's {count} {what} are gone (the first is "
            f"{images.paths[gone[0]]!r})"
        )
        if len(gone) > max_gone * count:
            raise DataError(
                f"data.path: {first}, which is more than data.max_skipped_share {max_gone:.1%}; "
                "put them back, name the folder where they are now, or raise that share."
            )
        limit = f"; more than data.max_skipped_share {max_gone:.1%} stop it" if max_gone < 1 else ""
        said.append(f"{first}: the run goes on without them{limit}.")
    elif _have_moved(record, images):
        said.append(f"the {what} have moved; the run goes on with them where they are now.")
    if others is not None:
        assert isinstance(images.paths, PathList)
        used = images.paths + others
        if new := int((~_are_among(_plain(found.paths), used)).sum()):
            said.append(f"{new} new {what} wait for another run.")
    return " ".join(said)


def _plain(paths: Sequence[str]) -> PathList:
    return paths if isinstance(paths, PathList) else PathList(paths)


def _have_moved(record: Record, images: ImageList) -> bool:
    """Whether the first image lies elsewhere than it did."""
    if not len(images) or (record.root_of[0] == NOWHERE and images.paths[0] == record.names[0]):
        return False
    before = record.paths_below(record.roots)[0]
    return os.path.abspath(before) != os.path.abspath(images.paths[0])
