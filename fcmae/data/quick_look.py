"""A quick look at some pictures of a list, each decoded once: what rules ask before a training.

No network and no label. Nothing is drawn at random.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fcmae.data.decoding import Decoded, UndecodableImageError, decode, to_float
from fcmae.data.image_list import ImageList
from fcmae.data.reading import Reading
from fcmae.data.symmetry import FEWEST_PICTURES, Symmetry, measure_symmetry

MOST_PICTURES = 192  # a few seconds of decoding at most
MOST_BY_CLASS = 384
SIDE_PX = 48  # of what is compared
LEAST_KNOWN = 0.25  # of a picture, for it to be compared


class QuickLook:
    """Pictures spread evenly over a list, which are read when something is asked of them.

    Files that cannot be decoded are passed over.

    Args:
        images: all of them.
        reading: how they are read.
        by_class: ask, too, whether copies are taken for another class: a set of arrows to the left
            and arrows to the right is its own mirror image, and its classes are not.
    """

    def __init__(self, images: ImageList, reading: Reading, *, by_class: bool = False) -> None:
        self._images = images
        self._reading = reading
        self._by_class = by_class

    @functools.cached_property
    def symmetry(self) -> Symmetry:
        """How far they differ from their changed copies; what is mostly holes is left out."""
        seen = [picture for picture in self._pictures if picture.square is not None]
        if len(seen) < FEWEST_PICTURES:
            return Symmetry({}, len(seen))
        squares = [picture.square for picture in seen if picture.square is not None]
        return measure_symmetry(torch.stack(squares), np.array([one.label for one in seen]))

    @functools.cached_property
    def median_side(self) -> float | None:
        """The median of their shorter sides, px, as they are read; None if none could be."""
        sides = [picture.shorter_side for picture in self._pictures]
        return float(np.median(sides)) if sides else None

    @functools.cached_property
    def _pictures(self) -> list[_Picture]:
        images = self._images
        count = min(len(images), MOST_BY_CLASS if self._by_class else MOST_PICTURES)
        found = []
        for index in np.linspace(0, len(images) - 1, count).round().astype(int).tolist():
            try:
                picture = decode(images.paths[index], self._reading)
            except UndecodableImageError:
                continue
            label = -1
            if self._by_class and images.labels is not None:
                label = images.labels[index]
            found.append(_Picture(min(picture.image.shape[-2:]), _square(picture), label))
        return found


class _Picture(NamedTuple):
    """What is kept of one: its shorter side in px, its middle, its class or -1."""

    shorter_side: int
    square: Tensor | None
    label: int


def _square(picture: Decoded) -> Tensor | None:
    """Return the middle of a picture as grey [S, S], of mean 0 and deviation 1.

    NaN where it has no data; None where most of it has none.
    """
    grey = _small(to_float(picture.image).mean(dim=0))
    if picture.valid is None:
        return (grey - grey.mean()) / grey.std().clamp_min(1e-6)
    share = _small(picture.valid[0].float())  # pixels without data are 0
    known = share > 0.5
    if known.float().mean() < LEAST_KNOWN:
        return None
    grey = grey / share
    values = grey[known]
    normal = (grey - values.mean()) / values.std().clamp_min(1e-6)
    return normal.masked_fill(~known, torch.nan)


def _small(plane: Tensor) -> Tensor:
    """Return the middle square of [H, W] scaled to [S, S]."""
    side = min(plane.shape)
    top, left = (plane.shape[0] - side) // 2, (plane.shape[1] - side) // 2
    square = plane[top : top + side, left : left + side]
    return functional.interpolate(
        square[None, None], size=(SIDE_PX, SIDE_PX), mode="bilinear", antialias=True
    )[0, 0]
