"""The labels that folders give: one folder per class, or parts of a set with such folders.

The one reading of labelled trees; every command takes its labels, its parts and its reasons.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from fcmae.data.path_list import Labels, PathList

Part = Literal["train", "validation", "test"]
# Folders with these names, in any case, are parts of a set, not classes.
PART_NAMES: dict[str, Part] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
MOST_NAMES = 5  # of classes or folders, in a sentence


@dataclass(frozen=True)
class Tree:
    """What the folders directly below one root say.

    Attributes:
        classes: their names, sorted by bytes; None without labels.
        labels: class number of each image, -1 outside of all classes; None without labels.
        parts: {"train", "validation", "test": the folder's name}, where the set is cut in parts.
        part_of: number of each image's part in the order of `parts`, -1 outside; None if not cut.
        why_unlabelled: why there are no labels, as the end of a sentence that begins with the
            path; "" with labels.
    """

    classes: tuple[str, ...] | None = None
    labels: Labels | None = None
    parts: dict[Part, str] = field(default_factory=dict)
    part_of: np.ndarray | None = None
    why_unlabelled: str = ""

    def select(self, indices: np.ndarray) -> Tree:
        """Return the tree of the images at `indices`, in that order."""
        return replace(
            self,
            labels=None if self.labels is None else Labels(self.labels.array[indices]),
            part_of=None if self.part_of is None else self.part_of[indices],
        )


def read_tree(root: str, paths: PathList) -> Tree:
    """Return classes and parts of the images below `root`; see `read_names`."""
    skip = len(os.path.join(os.fsencode(root), b""))
    return read_names((path[skip:] for path in paths.raw()), len(paths))


def read_names(names: Iterable[bytes], count: int) -> Tree:
    """Return classes and parts of images by their paths below one root: the names of its folders.

    A folder is cut in parts when two folders directly below it, or one that holds class folders,
    have names of parts (train, val, test, ... in any case); classes are the folders below those,
    and other folders beside them (docs, ...) are none. Otherwise every folder directly below
    `root` is a class, when there are two or more and no image lies beside them.
    """
    below = _Below(names, count)
    parts = _parts(below)
    if parts is None:
        named = ", ".join(_shown(sorted(below.firsts, key=str.lower)))
        return Tree(why_unlabelled=f"holds several folders for one part of the set ({named})")
    return _parted(below, parts) if parts else _flat(below)


class _Below:
    """The first two folders of every path below a root.

    Attributes:
        first, second: their numbers per image; -1 where the image lies above.
        firsts, seconds: their names.
        inside: numbers of the second folders in each first one.
    """

    def __init__(self, paths: Iterable[bytes], count: int) -> None:
        known: tuple[dict[bytes, int], dict[bytes, int]] = ({}, {})
        # Neighbours lie in one folder, mostly: the numbers of a folder, and how many follow it.
        runs: list[tuple[int, int]] = []
        lengths: list[int] = []
        self.stray: list[bytes] = []
        self.inside: dict[int, set[int]] = {}
        last: bytes | None = None
        for path in paths:
            folder = path[: path.rfind(b"/") + 1]
            if folder == last:
                lengths[-1] += 1
            else:
                names = folder.split(b"/", 2)[:-1]
                first, second = (
                    table.setdefault(name, len(table)) if name is not None else -1
                    for table, name in zip(known, (*names, None, None), strict=False)
                )
                runs.append((first, second))
                if second >= 0:
                    self.inside.setdefault(first, set()).add(second)
                lengths.append(1)
                last = folder
            if not folder and len(self.stray) < MOST_NAMES:
                self.stray.append(path)
        assert sum(lengths) == count
        columns = np.repeat(np.array(runs, np.int32).reshape(-1, 2), lengths, axis=0).T
        self.first, self.second = columns
        self.firsts, self.seconds = (list(map(os.fsdecode, table)) for table in known)
        self.num_stray = int((self.first < 0).sum())


def _parts(below: _Below) -> dict[Part, str] | None:
    """Return the folders that are parts of a set; {} if it is not cut, None if it is unclear."""
    found = [
        (PART_NAMES[name.lower()], name) for name in below.firsts if name.lower() in PART_NAMES
    ]
    parts = dict(sorted(found, key=lambda pair: list(PART_NAMES.values()).index(pair[0])))
    if len(parts) < len(found):
        return None
    if len(parts) >= 2 and "train" in parts:
        return parts
    if parts and len(parts) == len(below.firsts):  # val/ and test/, or one of the parts alone
        return parts
    is_cut = any(len(_seconds_in(below, name)) >= 2 for name in parts.values())
    others = [name for name in below.firsts if name not in parts.values()]
    has_classes_beside = any(_seconds_in(below, name) for name in others)
    return parts if is_cut and not has_classes_beside else {}


def _seconds_in(below: _Below, first: str) -> set[int]:
    return below.inside.get(below.firsts.index(first), set())


def _flat(below: _Below) -> Tree:
    names = sorted(below.firsts, key=os.fsencode)
    if not names:
        return Tree(why_unlabelled="has its images directly in it, none in a folder per class")
    if below.num_stray:
        first = os.path.basename(os.fsdecode(below.stray[0]))
        return Tree(
            why_unlabelled=f"has {below.num_stray} image{'s' * (below.num_stray != 1)} beside its "
            f"{len(names)} folders (the first is {first!r}), so that these are not taken for "
            "classes; move them into a folder or leave them out with data.exclude"
        )
    if len(names) < 2:
        return Tree(
            why_unlabelled=f"has all its images in one folder, {names[0]!r}; two classes or more "
            "are needed"
        )
    return Tree(tuple(names), _renumbered(below.first, below.firsts, names))


def _parted(below: _Below, parts: dict[Part, str]) -> Tree:
    """Return the labels of a set that is cut in parts, by the folders below these.

    A part for tests whose images lie in no class folders has none; the others need them.
    """
    part_of = np.full(len(below.first), -1, np.int8)
    for place, name in enumerate(parts.values()):
        part_of[below.first == below.firsts.index(name)] = place
    cut = Tree(parts=parts, part_of=part_of)
    named = {part: _class_names(below, name) for part, name in parts.items()}
    if len(named) > 1 and not named.get("test", ("",)):
        del named["test"]
    for part in named:
        is_stray = (below.first == below.firsts.index(parts[part])) & (below.second < 0)
        if is_stray.any():
            many = int(is_stray.sum())
            return _unlabelled(
                cut, f"has {many} image{'s' * (many != 1)} in {parts[part]}/ outside of any class"
            )
    first, *others = named
    if others and set(named[first]) != set(named[others[0]]):
        alone = sorted(set(named[first]) ^ set(named[others[0]]), key=os.fsencode)
        return _unlabelled(
            cut,
            f"is cut in parts, and {parts[first]}/ and {parts[others[0]]}/ must hold the same "
            f"classes; only one of them has {', '.join(_shown(alone))}",
        )
    classes = named[first]
    if len(classes) < 2:
        return _unlabelled(
            cut, f"has one class alone, {classes[0]!r}, in {parts[first]}/; two are the least"
        )
    second = np.where(part_of >= 0, below.second, -1)
    return Tree(classes, _renumbered(second, below.seconds, list(classes)), parts, part_of)


def _unlabelled(tree: Tree, why: str) -> Tree:
    return Tree(parts=tree.parts, part_of=tree.part_of, why_unlabelled=why)


def _class_names(below: _Below, part: str) -> tuple[str, ...]:
    names = (below.seconds[number] for number in _seconds_in(below, part))
    return tuple(sorted(names, key=os.fsencode))


def _renumbered(numbers: np.ndarray, names: list[str], order: Sequence[str]) -> Labels:
    """Return the numbers of `names` as places in `order`; -1 stays."""
    place = {name: index for index, name in enumerate(order)}
    table = np.array([*(place.get(name, -1) for name in names), -1], np.int32)
    return Labels(table[numbers])


def _shown(names: Sequence[str]) -> list[str]:
    return [*names[:MOST_NAMES], *(["..."] if len(names) > MOST_NAMES else [])]


def suspicious(classes: Sequence[str], counts: Counter[str]) -> list[str]:
    """Return sentences about class folders that may be none, for a person to look at."""
    odd = {"docs", "doc", "misc", "other", "others", "tmp", "temp", "old", "backup", "raw"}
    odd |= {"masks", "mask", "labels", "annotations", "thumbnails", "thumbs", "images", "unsorted"}
    sentences = []
    for name in classes:
        if name.lower() in PART_NAMES:
            sentences.append(f"{name!r} is the name of a part of a set, not of a class")
        elif name.lower() in odd:
            sentences.append(f"{name!r} does not sound like a class")
        if counts[name] < 2:
            sentences.append(f"{name!r} holds {counts[name]} image, too few to train and to score")
    lowered = Counter(name.lower() for name in classes)
    sentences += [
        f"{', '.join(n for n in classes if n.lower() == name)} differ in capitals only"
        for name, count in lowered.items()
        if count > 1
    ]
    return sentences
