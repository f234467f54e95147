"""Files that hold many images: each of these becomes an entry of the list, FILE::NUMBER.

Arrays (.npy, .npz, HDF5, Zarr), DICOMs of several frames, data sets saved by Hugging Face. What the
shape of an array means is decided in `readers.layout`; other pictures are never opened here.
"""

from __future__ import annotations

import array
import os
from dataclasses import dataclass

import numpy as np

from fcmae.data.accounting import Accounting
from fcmae.data.kinds import MANY_IMAGES_EXTENSIONS, PICTURE_ENDINGS
from fcmae.data.path_list import PathList
from fcmae.data.readers import SEPARATOR, Wanted, items, split_item
from fcmae.data.shards import split_member
from fcmae.runs.terminal import progress_bar

_ONE_IMAGE = tuple(
    ending
    for ending in PICTURE_ENDINGS
    if os.fsdecode(ending).lower() not in MANY_IMAGES_EXTENSIONS
)
SHOW_PROGRESS_FROM = 5000  # files that are looked into


@dataclass(frozen=True)
class Spread:
    """A list of images and the files that they lie in.

    Attributes:
        paths: of the images.
        file_of: number of each image's file in the list that was spread.
    """

    paths: PathList
    file_of: np.ndarray

    def select(self, kept: np.ndarray) -> Spread:
        """Return some of the images, by index."""
        return Spread(self.paths.select(kept), self.file_of[kept])


def spread(files: PathList, wanted: Wanted, accounting: Accounting) -> Spread | None:
    """Return the images of all files, those of a file in its place; None if each holds one.

    A file that cannot be read stays as it is: who reads it says why. `accounting` counts.
    """
    looked_into = [place for place, path in enumerate(files.raw()) if not path.endswith(_ONE_IMAGE)]
    if not looked_into:
        return None
    found: dict[int, list[str]] = {}
    num_single = 0
    for place in progress_bar(
        looked_into,
        unit="file",
        total=len(looked_into),
        title="images in files",
        is_shown=len(looked_into) >= SHOW_PROGRESS_FROM,
    ):
        names = _images_in(files[place], wanted)
        if len(names) > 1:
            found[place] = names
        elif names:
            num_single += 1
    if not found:
        return None
    count = sum(map(len, found.values()))
    accounting.stacks += len(found)
    accounting.in_stacks += count
    accounting.notes.append(_note(files, found, count, num_single))
    return _spread(files, found)


def _images_in(path: str, wanted: Wanted) -> list[str]:
    """Return the images of a file by name; [] where one is named already or it is damaged."""
    if SEPARATOR in path and (split_member(path) is not None or split_item(path)[1]):
        return []
    try:
        return items(path, wanted)
    except Exception:  # damaged, of another shape, a missing package: told when it is read
        return []


def _note(files: PathList, found: dict[int, list[str]], count: int, num_single: int) -> str:
    first = next(iter(found))
    more = f" and {len(found) - 1:,} others" if len(found) > 1 else ""
    holds = "holds" if len(found) == 1 else "hold"
    single = f"; {num_single:,} files of such kinds are one image each" if num_single else ""
    return (
        f"{files[first]!r}{more} {holds} {count:,} images, by the shapes of their arrays and the "
        f"numbers of their frames or rows: each counts as one image, from {found[first][0]!r} "
        f"on{single}."
    )


def _spread(files: PathList, found: dict[int, list[str]]) -> Spread:
    blob, starts, file_of = bytearray(), array.array("q", [0]), array.array("q")
    for place, path in enumerate(files.raw()):
        names = found.get(place)
        for name in (path,) if names is None else map(os.fsencode, names):
            blob += name
            starts.append(len(blob))
            file_of.append(place)
    return Spread(PathList.of_bytes(blob, starts), np.frombuffer(file_of, np.int64))
