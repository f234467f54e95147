"""The images of a run, fixed when it starts: a continued run sees the same list."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from fcmae.data.image_list import ImageList
from fcmae.data.path_list import PathList
from fcmae.data.readers import split_item
from fcmae.errors import CheckpointError
from fcmae.runs.durable import write_atomically


def fix_images(
    file: Path, images: ImageList, *, is_continued: bool, report: Callable[[str], None]
) -> ImageList:
    """Record the images of a new run in `file`, or return those that a continued run began with.

    The order of samples is a permutation of the list, so that a file that came or went would
    change everything after it. Files that are gone count as undecodable; new ones wait for
    another run. `report` says so.

    Raises:
        CheckpointError: the list of a continued run is missing or damaged.
        OSError: the list of a new run cannot be written.
    """
    if not is_continued:
        write_atomically(file, lambda partial: _write(partial, images.paths))
        return images
    recorded = read_paths(file)
    if recorded == images.paths:
        return images
    if len(recorded) == len(images.paths) and _names(recorded) == _names(images.paths):
        report("the images have moved; the run goes on with them where they are now.")
        return images
    known = dict(zip(images.paths, images.labels or (), strict=False))
    gone = sum(
        not os.path.lexists(split_item(path)[0]) for path in set(recorded) - set(images.paths)
    )
    report(
        f"the images are not those that the run began with ({gone} of its {len(recorded)} are "
        f"gone); it goes on with its own list, {file}."
    )
    labels = None if images.labels is None else tuple(known.get(path, -1) for path in recorded)
    return dataclasses.replace(images, paths=recorded, labels=labels, parts={}, part_of=None)


def _write(partial: Path, paths: Sequence[str]) -> None:
    with partial.open("w", encoding="ascii") as lines:
        lines.writelines(json.dumps(path) + "\n" for path in paths)


def read_paths(file: Path) -> PathList:
    """Return the paths that `fix_images` recorded; raises CheckpointError if it is damaged."""
    try:
        with file.open(encoding="ascii") as lines:
            return PathList(_one(line) for line in lines)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file}: the run's list of images cannot be read ({error}), and without it "
            "the order of images is lost; restore the file, or start again in another run.dir."
        ) from error


def _one(line: str) -> str:
    path = json.loads(line)
    if not isinstance(path, str):
        raise ValueError("it is no list of paths")
    return path


def _names(paths: Sequence[str]) -> list[str]:
    """Paths below what all of them share."""
    shared = os.path.commonpath([os.path.abspath(path) for path in paths])
    return [os.path.relpath(os.path.abspath(path), shared) for path in paths]
