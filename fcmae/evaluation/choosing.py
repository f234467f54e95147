"""Which labelled images are scored: two at least of every class, and no more classes than labels.

A score needs an image of each class on either side of every draw. What that leaves out is told
before anything is computed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from fcmae.randomness import sample_seed

FEWEST_OF_A_CLASS = 2  # one to learn from and one to test
LABELS_OF_A_CLASS = 2  # where classes are drawn since they are more than the labels
IMAGES_OF_A_CLASS = 4


class Chosen(NamedTuple):
    """Indices of the images that are scored, ascending; none when no score is possible.

    `told` says in sentences what was left out or why there is no score, "" when it is all.
    """

    indices: np.ndarray
    told: str


def choose_scored(
    labels: Sequence[int], *, wanted: int, seed: int, max_images: int | None = None
) -> Chosen:
    """Return which images to score.

    Classes with one labelled image are left out. When the others are more than the labels of a
    draw, or than half of the images, some of them are drawn, enough of each to learn from. No
    class is lost when images are drawn.

    Args:
        labels: class of each image, -1 for none.
        wanted: labels of each draw.
        seed: decides what is drawn.
        max_images: largest number of images; None takes all of the classes.
    """
    numbers = np.asarray(labels, np.int64)
    classes, sizes = np.unique(numbers[numbers >= 0], return_counts=True)
    usable = classes[sizes >= FEWEST_OF_A_CLASS]
    told = []
    if alone := len(classes) - len(usable):
        told.append(
            f"{alone:,} of {len(classes):,} classes have one labelled image each and are left out."
        )
    if len(usable) < 2:
        told.append(
            f"{len(usable)} classes have two labelled images or more, and a score needs two such "
            "classes."
        )
        return Chosen(np.empty(0, np.int64), " ".join(told))
    most = wanted if max_images is None else min(wanted, max_images // FEWEST_OF_A_CLASS)
    if len(usable) > most:
        few = wanted // LABELS_OF_A_CLASS
        few = few if max_images is None else min(few, max_images // IMAGES_OF_A_CLASS)
        few = max(2, few)
        images = "" if max_images is None else f" and {max_images:,} images"
        told.append(
            f"{few:,} of the {len(usable):,} classes are scored, drawn by the seed, since "
            f"{wanted:,} labels{images} are too few for all."
        )
        rng = torch.Generator().manual_seed(sample_seed(seed, "scored classes"))
        usable = usable[torch.randperm(len(usable), generator=rng)[:few].numpy()]
    candidates = np.flatnonzero(np.isin(numbers, usable))
    if max_images is None or len(candidates) <= max_images:
        return Chosen(candidates, " ".join(told))
    rng = torch.Generator().manual_seed(sample_seed(seed, "scored"))
    order = candidates[torch.randperm(len(candidates), generator=rng).numpy()]
    is_first = _are_first(numbers[order], FEWEST_OF_A_CLASS)
    rest = order[~is_first][: max_images - int(is_first.sum())]
    return Chosen(np.sort(np.concatenate([order[is_first], rest])), " ".join(told))


def _are_first(classes: np.ndarray, count: int) -> np.ndarray:
    """Return where a class occurs for the first `count` times, bool [N]."""
    by_class = np.argsort(classes, kind="stable")
    _, starts, sizes = np.unique(classes[by_class], return_index=True, return_counts=True)
    occurrence = np.arange(len(classes)) - np.repeat(starts, sizes)
    is_first = np.zeros(len(classes), bool)
    is_first[by_class[occurrence < count]] = True
    return is_first
