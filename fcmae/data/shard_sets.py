"""Sets of images that lie in one or many shards: their order, their labels, their accounting."""

import array
import heapq
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fcmae.data.accounting import Accounting
from fcmae.data.class_folders import Tree, read_names
from fcmae.data.image_list import ImageList
from fcmae.data.label_table import ordered_classes
from fcmae.data.path_list import Labels, PathList
from fcmae.data.shard_scan import DamagedShardError
from fcmae.data.shards import SEPARATOR, ShardIndex, kept_index, make_index
from fcmae.errors import ConfigError
from fcmae.runs.terminal import progress_bar


def open_shards(paths: Sequence[str], where: str, accounting: Accounting) -> list[ShardIndex]:
    """Return the indices of shards, each once; make those that are missing, and count members.

    Raises:
        ConfigError: a shard cannot be read, is truncated, damaged, or compressed as a whole.
    """
    distinct = list({os.path.realpath(path): path for path in reversed(paths)}.values())[::-1]
    kept = {path: _attempt(kept_index, path, where) for path in distinct}
    missing = [path for path, index in kept.items() if index is None]
    for path in progress_bar(
        missing, unit="shard", total=len(missing), title="index", is_shown=len(missing) > 1
    ):
        kept[path] = _attempt(make_index, path, where)
    if missing:
        accounting.notes.append(
            f"{len(missing)} of {len(distinct)} shards were new or had changed, and have been "
            "indexed."
        )
    indices = [index for index in kept.values() if index is not None]
    for index in indices:
        accounting.no_images.update(index.no_images)
        accounting.repeated += index.repeated
        accounting.problems += [
            (f"{index.path}{SEPARATOR}{name}", reason) for name, reason in index.problems
        ]
    return indices


def _attempt(work: Callable[[str], ShardIndex | None], path: str, where: str) -> ShardIndex | None:
    try:
        return work(path)
    except DamagedShardError as error:
        raise ConfigError(f"{where}: {path!r} {error}; copy it anew, or leave it out.") from error
    except OSError as error:
        raise ConfigError(f"{where}: {path!r} cannot be read ({error.strerror}).") from error


def members_in_order(indices: Sequence[ShardIndex]) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, number of the shard, place in it) of all images, sorted by name, then shard.

    So they stand in the order of the same files in one folder, however they are spread.
    """

    def of_one(number: int) -> Iterator[tuple[bytes, int, int]]:
        names = indices[number].names.raw()
        return ((name, number, place) for place, name in enumerate(names))

    return heapq.merge(*map(of_one, range(len(indices))))


def member_paths(indices: Sequence[ShardIndex]) -> Iterator[bytes]:
    """Yield SHARD::MEMBER of all images, in order."""
    prefixes = [os.fsencode(index.path + SEPARATOR) for index in indices]
    return (prefixes[number] + name for name, number, _ in members_in_order(indices))


def images_of_shards(indices: Sequence[ShardIndex], accounting: Accounting) -> ImageList:
    """Return the images of shards with their labels.

    Labels come from .cls or .json members where there are any, else from the folders inside,
    which are read as folders on a disk are.
    """
    prefixes = [os.fsencode(index.path + SEPARATOR) for index in indices]
    blob, starts = bytearray(), array.array("q", [0])
    numbers, skips = array.array("i"), array.array("i")
    classes = ordered_classes(text for index in indices for text in index.labels or ())
    has_texts = any(index.labels is not None for index in indices)
    tables = [_renumbering(index, classes) for index in indices]
    labels = [tables[i][indices[i].where["label"]] for i in range(len(indices))]
    for name, number, place in members_in_order(indices):
        blob += prefixes[number]
        blob += name
        starts.append(len(blob))
        skips.append(len(prefixes[number]))
        if has_texts:
            numbers.append(int(labels[number][place]))
    paths = PathList.of_bytes(blob, starts)
    if not has_texts:
        names = (path[skip:] for path, skip in zip(paths.raw(), skips, strict=True))
        tree = read_names(names, len(paths))
    elif len(classes) < 2:
        tree = Tree(why_unlabelled=f"has one label alone, {classes[0]!r}, in its members")
    else:
        tree = Tree(classes, Labels(np.array(numbers, np.int32)))
    return ImageList(
        paths,
        tree.labels,
        tree.classes,
        None,
        accounting.told(),
        accounting,
        tree.parts,
        tree.part_of,
        tree.why_unlabelled,
    )


def _renumbering(index: ShardIndex, classes: Sequence[str]) -> np.ndarray:
    """Return the place in `classes` of each label of a shard; the last of the array is none."""
    place = {name: number for number, name in enumerate(classes)}
    return np.array([*(place[text] for text in index.labels or ()), -1], np.int32)
