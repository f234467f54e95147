"""Whether mirrored and turned copies of pictures can be told from the pictures.

No network and no label: a linear discriminant of small thumbnails and of the directions of edges,
fitted on some of the pictures and asked about the others. What it cannot tell apart is free variety
for training; what it can, such as a sky above or a digit, may be what matters in the picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

FEWEST_PICTURES = 24  # below this nothing can be said
FOLDS = 4
THUMBNAIL_CELLS = 8  # per side, of brightness
EDGE_CELLS = 2  # per side, of directions
RIDGE = 10.0  # per feature of unit variance: more features than pictures must not fit noise
# Three of four: seven standard deviations of 192 coin tosses above chance. A mirror image that is
# told apart in two of three pictures still shows a picture that could be.
TOLD_APART = 0.75
CONFUSED = 0.25  # of what a discriminant recognises of the classes: half of them would be 0.5
LEAST_RECOGNISED = 0.1  # above chance, for that to mean anything

MIRRORED, UPSIDE_DOWN, TURNED = "mirrored", "upside down", "turned by a quarter"


@dataclass(frozen=True)
class Symmetry:
    """How often pictures are told from their changed copies, 0.5 being chance.

    Attributes:
        told_apart: {"mirrored", "upside down", "turned by a quarter": share of pictures}; empty
            when too few could be looked at.
        num_pictures: that were looked at.
        confused: {change: share of what is recognised of the classes in pictures and no more in
            their copies}; empty where classes were not asked for.
    """

    told_apart: dict[str, float]
    num_pictures: int
    confused: dict[str, float] = field(default_factory=dict)

    def is_free(self, change: str) -> bool:
        """Whether a change cannot be seen in a picture; False when nobody could look."""
        is_seen = self.told_apart.get(change, 1.0) >= TOLD_APART
        return not is_seen and self.confused.get(change, 0.0) < CONFUSED

    def sentence(self, change: str) -> str:
        """Say what was found of one change, in words for a rule."""
        if not self.told_apart:
            return f"{self.num_pictures} pictures are too few to see whether it shows"
        share = 100 * self.told_apart[change]
        if self.told_apart[change] < TOLD_APART and not self.is_free(change):
            return f"copies {change} of {self.num_pictures} pictures look like another class's"
        return (
            f"copies {change} are told from the pictures in {share:.0f} % of {self.num_pictures} "
            f"(chance 50, seen from {100 * TOLD_APART:.0f} on)"
        )


def measure_symmetry(pictures: Tensor, labels: np.ndarray | None = None) -> Symmetry:
    """Return how far square grey pictures [N, S, S] differ from their changed copies.

    What has no data in a picture, or in its copy, is not compared: the shape of holes says nothing.

    Args:
        pictures: [N, S, S], NaN where they have no data.
        labels: [N] of their classes, below 0 for none; None asks for no classes.
    """
    original = _features(pictures)
    changed = {
        name: _features(copies)
        for name, copies in (
            (MIRRORED, pictures.flip(2)),
            (UPSIDE_DOWN, pictures.flip(1)),
            (TURNED, torch.rot90(pictures, 1, (1, 2))),
        )
    }
    shares = {name: _told_apart(original, copies) for name, copies in changed.items()}
    confused = {}
    if labels is not None and len(set(labels[labels >= 0].tolist())) > 1:
        known = labels >= 0
        confused = {
            name: _confused(original[known], copies[known], labels[known])
            for name, copies in changed.items()
        }
    return Symmetry(shares, len(pictures), confused)


def _features(pictures: Tensor) -> np.ndarray:
    """Return thumbnails and pooled products of gradients of pictures [N, S, S], [N, D].

    NaN where a cell holds no data.
    """
    whole = pictures[:, None]
    thumbnails = _pooled(whole, THUMBNAIL_CELLS).flatten(1)
    # Central differences, so that a mirrored picture has exactly mirrored gradients.
    across = (whole[..., 1:-1, 2:] - whole[..., 1:-1, :-2]) / 2
    down = (whole[..., 2:, 1:-1] - whole[..., :-2, 1:-1]) / 2
    products = torch.cat([across * across, down * down, across * down], dim=1)
    energy = (across * across + down * down).nanmean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-9)
    edges = _pooled(products / energy, EDGE_CELLS).flatten(1)
    return torch.cat([thumbnails, edges], dim=1).double().numpy()


def _pooled(planes: Tensor, cells: int) -> Tensor:
    """Return the mean of what is no NaN in each cell: [N, C, H, W] -> [N, C, cells, cells]."""
    known = ~planes.isnan()
    sums = functional.adaptive_avg_pool2d(planes.masked_fill(~known, 0), cells)
    share = functional.adaptive_avg_pool2d(known.to(planes.dtype), cells)
    return sums / share  # 0 / 0 is NaN


def _standard(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation of each feature, 0 and 1 where they say nothing."""
    known = ~np.isnan(rows)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, rows, 0).sum(axis=0) / count
    spread = np.sqrt((np.where(known, rows - mean, 0) ** 2).sum(axis=0) / count)
    return mean, np.where(spread > 1e-9, spread, 1.0)


def _told_apart(originals: np.ndarray, copies: np.ndarray) -> float:
    """Return the share of pictures that a discriminant of the others tells from their copy."""
    _, scale = _standard(np.concatenate([originals, copies]))
    differences = np.nan_to_num((originals - copies) / scale)
    fold = np.arange(len(differences)) % FOLDS
    right = 0.0
    for held_out in range(FOLDS):
        known, asked = differences[fold != held_out], differences[fold == held_out]
        ridge = RIDGE * len(known) / known.shape[1] * np.eye(known.shape[1])
        direction = np.linalg.solve(known.T @ known + ridge, known.sum(axis=0))
        margin = asked @ direction
        right += float((margin > 0).sum() + 0.5 * (margin == 0).sum())
    return right / len(differences)


def _confused(originals: np.ndarray, copies: np.ndarray, labels: np.ndarray) -> float:
    """Return which share of a discriminant's accuracy above chance the copies lose, 0 to 1 or so.

    The discriminant is fitted on some pictures as they are, and asked about the others.
    """
    names, classes = np.unique(labels, return_inverse=True)
    mean, scale = _standard(originals)
    known_as, asked_as = (np.nan_to_num((rows - mean) / scale) for rows in (originals, copies))
    targets = np.eye(len(names))[classes]
    right = np.zeros(2)
    # Pictures of one class lie side by side in a list, hence folds by number, not by part.
    fold = np.arange(len(classes)) % FOLDS
    for held_out in range(FOLDS):
        is_known = fold != held_out
        known, wanted = known_as[is_known], targets[is_known] - targets[is_known].mean(axis=0)
        ridge = RIDGE * len(known) / known.shape[1] * np.eye(known.shape[1])
        weights = np.linalg.solve(known.T @ known + ridge, known.T @ wanted)
        for number, features in enumerate((known_as, asked_as)):
            found = (features[~is_known] @ weights).argmax(axis=1)
            right[number] += (found == classes[~is_known]).sum()
    as_is, changed = right / len(classes)
    chance = float(targets.mean(axis=0).max())
    if as_is - chance < LEAST_RECOGNISED:
        return 0.0
    return float((as_is - changed) / (as_is - chance))
