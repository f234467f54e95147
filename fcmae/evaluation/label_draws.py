"""Which images are labelled and which are the test, in each draw of a score."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fcmae.data import ImageList
from fcmae.data.grouping import draw_groups, group_numbers
from fcmae.data.splits import check_groups
from fcmae.errors import DataError


def draw_labels(labels: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw `count` training images, each class in its share, and return (training, test) indices.

    Every class has at least one image on both sides, so `count` must be between the number of
    classes and that of the images less the classes, and each class must have two images.
    """
    classes, sizes = labels.unique(return_counts=True)
    exact = sizes.double() * count / len(labels)
    takes = exact.floor().long().clamp(min=1)
    while takes.sum() < count:  # largest remainder first, never a whole class
        gap = torch.where(takes < sizes - 1, exact - takes, -math.inf)
        takes[gap.argmax()] += 1
    while takes.sum() > count:  # tiny classes were given one each
        gap = torch.where(takes > 1, takes - exact, -math.inf)
        takes[gap.argmax()] -= 1
    is_train = torch.zeros(len(labels), dtype=torch.bool)
    for label, take in zip(classes, takes, strict=True):
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        is_train[members[order[:take]]] = True
    train = is_train.nonzero().flatten()
    # In random order: the linear probe cuts its folds by position.
    train = train[torch.randperm(len(train), generator=generator)]
    return train, (~is_train).nonzero().flatten()


@dataclass(frozen=True)
class Sides:
    """Which images may be on which side: groups that are never parted, a part kept for tests.

    Attributes:
        groups: number of each image's group, int64 [N]; None without groups.
        is_test: bool [N], True of the images that are the test in every draw, and the others are
            those that may be labelled; None where any may be either.
        note: how the draws are made, a sentence.
    """

    groups: np.ndarray | None = None
    is_test: Tensor | None = None
    note: str = ""

    @property
    def num_candidates(self) -> int:
        """Images that may be labelled."""
        if self.is_test is not None:
            return int((~self.is_test).sum())
        return 0 if self.groups is None else len(self.groups)

    def select(self, kept: Tensor) -> Sides:
        """Return the same of the images at the indices `kept`."""
        return Sides(
            None if self.groups is None else self.groups[kept.numpy()],
            None if self.is_test is None else self.is_test[kept],
            self.note,
        )

    def of_paths(self, before: Sequence[str], after: Sequence[str]) -> Sides:
        """Return the same of the images at the paths `after`, which are among those `before`."""
        places = {path: place for place, path in enumerate(before)}
        return self.select(torch.tensor([places[path] for path in after]))

    def draw(
        self, labels: Tensor, count: int, generator: torch.Generator, key: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return (training, test) indices, about `count` for training.

        Args:
            labels: class of each image.
            count: images to train on; whole groups come as near to it as they can.
            generator: decides which images of a part for training.
            key: (seed, draw), which decide which groups.

        Raises:
            DataError: a class has no image on one of the sides.
        """
        if self.is_test is not None:
            candidates = (~self.is_test).nonzero().flatten()
            test = self.is_test.nonzero().flatten()
            _check_classes(labels, candidates, test, least=2)
            chosen, _ = draw_labels(labels[candidates], count, generator)
            return candidates[chosen], test
        assert self.groups is not None
        share = count / len(labels)
        sets = []
        for label in labels.unique():
            is_in = (labels == label).numpy()
            sets.append((is_in, max(1, round(share * int(is_in.sum())))))
        chosen_groups = draw_groups(self.groups, sets, key[0], "labels", str(key[1]))
        is_train = torch.zeros(len(labels), dtype=torch.bool)
        is_train[torch.from_numpy(chosen_groups)] = True
        train, test = is_train.nonzero().flatten(), (~is_train).nonzero().flatten()
        _check_classes(labels, train, test, least=1)
        # In random order: the linear probe cuts its folds by position.
        return train[torch.randperm(len(train), generator=generator)], test


def sides_of(
    images: ImageList, group: str | None, *, is_asked: bool
) -> tuple[ImageList, Sides | None]:
    """Return the images that are scored, and which of them may be on which side.

    Args:
        images: with labels. Of a set that is cut in parts, labels are drawn from the one for
            training, and the test is the one for validation, or for tests where there is no such.
        group: pattern of what is never parted, or None.
        is_asked: whether it was asked for here; a pattern of another set may match nothing.

    Raises:
        ConfigError: images of one group lie in both parts, or the pattern that was asked for
            matches nothing.
    """
    tested = next((part for part in ("validation", "test") if part in images.parts), None)
    if "train" in images.parts and tested is not None:
        names = images.parts["train"], images.parts[tested]
        train, test = images.part("train"), images.part(tested)
        if group is not None and (is_asked or _matches(images, group)):
            check_groups(train, test, group)
        assert images.part_of is not None
        order = list(images.parts)
        places = [order.index("train"), order.index(tested)]
        kept = np.flatnonzero(np.isin(images.part_of, places))
        is_test = torch.from_numpy(images.part_of[kept] == places[1])
        note = f"Labels are drawn from {names[0]}/, the test is all of {names[1]}/."
        return images.select(kept), Sides(is_test=is_test, note=note)
    if group is None or not (is_asked or _matches(images, group)):
        return images, None
    note = f"Images of one group of {group!r} are never on both sides."
    return images, Sides(groups=group_numbers(images.paths, group, "--group"), note=note)


def _matches(images: ImageList, group: str) -> bool:
    return any(map(re.compile(group).search, images.paths))


def _check_classes(labels: Tensor, train: Tensor, test: Tensor, *, least: int) -> None:
    for label in labels.unique():
        counts = [int((labels[side] == label).sum()) for side in (train, test)]
        if counts[0] < least or counts[1] < 1:
            raise DataError(
                f"class number {int(label)} has {counts[0]} images to label and {counts[1]} to "
                f"test on, expected {least} and 1 or more: too few groups, or images of a part, "
                "hold it."
            )
