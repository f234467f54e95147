"""Copies of pictures, cropped, brighter or compressed: features find candidates, pixels decide.

Pictures of one kind have features alike, and a copy's differ where a crop has moved everything.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from fcmae.evaluation.features import Describer, pooled_features
from fcmae.evaluation.neighbours import Neighbours
from fcmae.runs.terminal import progress_bar

CLOSER = 0.9  # of each side that the view from nearer shows
# Of the pixels that are compared: the side of a picture, the share of it that is looked for in the
# other one, and the sizes in which it is, beside its own; 0.7 is a crop to half of the area.
SIDE_PX = 64
MIDDLE = 0.8
SCALES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
FINE_PX = 5  # structure wider than this is light, shadow, and what all pictures of a kind share
FLAT = 1e-2  # of the mean contrast: where there is less there is nothing to compare
KEPT_PICTURES = 4000  # prepared at a time: 250 kB each

Look = Callable[[int], Tensor | None]


class Pairs(NamedTuple):
    """Pictures that may be copies of each other, each pair once, the lower index first.

    Attributes:
        places: int64 [M, 2].
        cosine: float32 [M], the highest of any view.
        correlation: float32 [M], of the pixels where they fit best; NaN where nobody has looked.
    """

    places: np.ndarray
    cosine: np.ndarray
    correlation: np.ndarray


def copy_views(encoder: Any) -> dict[str, Describer]:
    """Return what describes pictures for the search of copies: `even`, and `closer` from nearer.

    In both a picture's brightness and contrast do not count. The whole of a cropped copy looks
    like its original from nearer.
    """
    return {
        "even": lambda images, _: pooled_features(encoder, evened(images)),
        "closer": lambda images, _: pooled_features(encoder, from_nearer(evened(images))),
    }


def evened(images: Tensor) -> Tensor:
    """Return images [N, C, H, W] of mean 0 and deviation 1 each, over all values of an image."""
    deviation, mean = torch.std_mean(images, dim=(1, 2, 3), keepdim=True)
    return (images - mean) / deviation.clamp_min(1e-6)


def from_nearer(images: Tensor) -> Tensor:
    """Return the middle of images [N, C, H, W], as large as they are."""
    size = [round(CLOSER * side) for side in images.shape[2:]]
    middle = v2.functional.center_crop(images, size)
    return F.interpolate(middle, size=tuple(images.shape[2:]), mode="bilinear", antialias=True)


def candidate_pairs(found: Iterable[Neighbours], threshold: float) -> Pairs:
    """Return the pairs whose cosine is `threshold` or more among the neighbours of any view."""
    places, cosines = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.float32)]
    for neighbours in found:
        rows, columns = np.nonzero(neighbours.similarity >= threshold)
        both = np.stack([rows, neighbours.places[rows, columns]], axis=1)
        places.append(np.sort(both, axis=1))
        cosines.append(neighbours.similarity[rows, columns])
    every, cosine = np.concatenate(places), np.concatenate(cosines)
    order = np.argsort(-cosine, kind="stable")
    unique, first = np.unique(every[order], axis=0, return_index=True)
    unknown = np.full(len(unique), np.nan, np.float32)
    return Pairs(unique, cosine[order][first], unknown)


def looked_at(pairs: Pairs, look: Look) -> Pairs:
    """Return the pairs with the correlation of their pixels.

    Args:
        pairs: to look at.
        look: gives the picture of an index, [C, H, W]; None where it cannot be read any more.
    """

    @functools.lru_cache(KEPT_PICTURES)
    def prepared(index: int) -> _Prepared | None:
        picture = look(index)
        return None if picture is None else _Prepared.of(picture)

    found = np.full(len(pairs.places), np.nan, np.float32)
    rows = progress_bar(
        range(len(found)), unit="pair", total=len(found), title="looking at candidates"
    )
    for row in rows:
        first, second = (prepared(int(place)) for place in pairs.places[row])
        if first is not None and second is not None:
            found[row] = max(first.within(second), second.within(first))
    return pairs._replace(correlation=found)


def correlation(first: Tensor, second: Tensor) -> float:
    """Return how well the middle of one picture [C, H, W] is found in the other, 0 to 1.

    The normalised cross-correlation of their fine structure, at the best of several places and
    sizes. Neither brightness nor contrast counts, nowhere in the picture.
    """
    one, other = _Prepared.of(first), _Prepared.of(second)
    return max(one.within(other), other.within(one))


class _Prepared(NamedTuple):
    """A picture to be found in others, and to find others in.

    Attributes:
        whole: its spectrum, [SIDE, SIDE / 2 + 1].
        middles: by scale, the spectra of its middle with mean 0 and length 1, at the corner of an
            empty picture, [S, SIDE, SIDE / 2 + 1].
        weights: by scale, 1 over the length of what lies below a middle at each place, around its
            mean; 0 where a middle would leave the picture, [S, SIDE, SIDE].
    """

    whole: Tensor
    middles: Tensor
    weights: Tensor

    @classmethod
    def of(cls, picture: Tensor) -> _Prepared:
        """Return a picture [C, H, W] prepared."""
        grey = picture.float().mean(dim=0)[None, None]
        whole = _fine(_resized(grey, SIDE_PX))
        middles = torch.zeros(len(SCALES), SIDE_PX, SIDE_PX)
        weights = torch.zeros(len(SCALES), SIDE_PX, SIDE_PX)
        for number, scale in enumerate(SCALES):
            smaller = _fine(_resized(grey, round(scale * SIDE_PX)))
            side = round(MIDDLE * smaller.shape[-1])
            middle = v2.functional.center_crop(smaller, [side, side])[0, 0]
            middle = middle - middle.mean()
            middles[number, :side, :side] = middle / middle.norm().clamp_min(1e-6)
            mean = F.avg_pool2d(whole, side, stride=1)
            square = F.avg_pool2d(whole.square(), side, stride=1)
            length = (side**2 * (square - mean.square()).clamp_min(0)).sqrt()[0, 0]
            places = SIDE_PX - side + 1
            weights[number, :places, :places] = 1 / length.clamp_min(1e-3)
        return cls(torch.fft.rfft2(whole[0, 0]), torch.fft.rfft2(middles), weights)

    def within(self, other: _Prepared) -> float:
        """Return the highest correlation of this picture's middle with a part of the other."""
        spectra = other.whole * self.middles.conj()
        found = torch.fft.irfft2(spectra, s=(SIDE_PX, SIDE_PX)) * other.weights
        return float(found.max())


def _resized(grey: Tensor, side: int) -> Tensor:
    return F.interpolate(grey, size=(side, side), mode="bilinear", antialias=True)


def _fine(grey: Tensor) -> Tensor:
    """Return structure finer than FINE_PX, of one contrast everywhere, [1, 1, H, W].

    So that what stands out in all pictures of a kind, such as their frame, counts little.
    """
    fine = grey - _smoothed(grey)
    contrast = _smoothed(fine.square()).sqrt()
    return fine / (contrast + FLAT * contrast.mean() + 1e-6)


def _smoothed(grey: Tensor) -> Tensor:
    padded = F.pad(grey, (FINE_PX // 2,) * 4, mode="reflect")
    return F.avg_pool2d(padded, FINE_PX, stride=1)
