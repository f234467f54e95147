"""Nearest neighbours of every feature among all the others: exactly, or of a million by faiss.

By Euclidean distance d, given as the similarity 1 - d * d / 2: the cosine where lengths are 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor

from fcmae.runs.terminal import progress_bar

EXACT_BELOW = 50_000  # features: from there on comparing each with all takes minutes
BLOCK = 1024  # features at a time
FLOOR = 1e-3  # of the largest variance
SHRUNK_BY = 20_000  # features that say how much is known of the variances
# Of faiss: cells per root of the number of features, how many features train each of them, and
# how many of them are searched. Near neighbours share a cell; the farther, the more are missed.
CELLS, TRAINING, SEARCHED = 4.0, 40, 24
ADDED = 100_000  # features that are sorted into their cells at a time


class Neighbours(NamedTuple):
    """The nearest others of N features, the nearest first.

    Attributes:
        similarity: float32 [N, K], 1 - d * d / 2 of their distances d; cosines of unit vectors.
        places: int64 [N, K], indices of them.
        is_exact: whether every feature was compared with all.
    """

    similarity: np.ndarray
    places: np.ndarray
    is_exact: bool


class Whitening(NamedTuple):
    """What makes features in which no direction counts more than another.

    Pooled features have a few directions that outweigh all others, in which most pictures look
    alike.

    Attributes:
        mean: [D].
        turn: [D, D], onto the principal directions, each divided by its deviation; those with less
            than FLOOR of the largest variance are noise and count less. Of few features variances
            are drawn towards their mean (Ledoit and Wolf 2004): otherwise whitening would make
            copies as unlike each other as all else.
    """

    mean: Tensor
    turn: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Whitening:
        """Return that of features [N, D]."""
        mean = vectors.mean(dim=0, dtype=torch.float64)
        covariance = torch.zeros(2 * (vectors.shape[1],), dtype=torch.float64)
        for block in vectors.split(BLOCK):  # a million of them twice as large would not fit
            centred = block.double() - mean
            covariance += centred.T @ centred
        variances, directions = torch.linalg.eigh(covariance / len(vectors))
        variances = variances.clamp_min(0)
        step = -(-len(vectors) // SHRUNK_BY)
        shrinkage = float(ledoit_wolf_shrinkage(vectors[::step].numpy()))
        variances = (1 - shrinkage) * variances + shrinkage * variances.mean()
        scales = (variances + FLOOR * variances.max()).sqrt().clamp_min(1e-30)
        return cls(mean, directions / scales)

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return whitened features: [N, D] -> float32 [N, D]."""
        white = torch.empty(vectors.shape)
        for block, out in zip(vectors.split(BLOCK), white.split(BLOCK), strict=True):
            out.copy_((block.double() - self.mean) @ self.turn)
        return white


def nearest_neighbours(features: Tensor, count: int) -> Neighbours:
    """Return the `count` nearest others of each feature; see `Index`."""
    return Index(features).nearest(features, count)


class Index:
    """Features to be searched for the nearest ones.

    From EXACT_BELOW features on they are sought by faiss in the nearest cells of a clustering,
    where it is installed; of features that are far from everything a neighbour may be missed.

    Args:
        features: [N, D] with N of 2 or more.
    """

    def __init__(self, features: Tensor) -> None:
        self._features = features
        self._squares = features.square().sum(dim=1)
        self._cells: Any = None
        if len(features) >= EXACT_BELOW:
            try:
                import faiss
            except ImportError:
                return
            self._cells = _in_cells(faiss, features.numpy())

    def nearest(self, views: Tensor, count: int) -> Neighbours:
        """Return the `count` nearest others of each picture, all others when there are fewer.

        Args:
            views: what each feature's picture is sought by, [N, D].
            count: K.
        """
        count = min(count, len(self._features) - 1)
        similarity = np.full((len(views), count), -np.inf, np.float32)
        places = np.zeros((len(views), count), np.int64)
        size = BLOCK if self._cells is None else 16 * BLOCK
        for start in _blocks(len(views), size):
            part = views[start : start + size]
            search = self._all if self._cells is None else self._near
            into = slice(start, start + len(part))
            similarity[into], places[into] = search(part, start, count)
        return Neighbours(similarity, places, self._cells is None)

    def _all(self, part: Tensor, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Compare pictures from `start` on with all others."""
        similarity = part @ self._features.T - self._squares / 2
        rows = torch.arange(len(part))
        similarity[rows, rows + start] = -torch.inf  # itself
        nearest = similarity.topk(count, dim=1)
        own = part.square().sum(dim=1, keepdim=True)
        return (nearest.values + 1 - own / 2).numpy(), nearest.indices.numpy()

    def _near(self, part: Tensor, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Compare pictures from `start` on with those in the cells around them."""
        squares, places = self._cells.search(part.numpy(), count + 1)
        values = 1 - squares / 2
        own = places == np.arange(start, start + len(part))[:, None]
        own[~own.any(axis=1), -1] = True  # among equal ones it may not be the nearest
        similarity = values[~own].reshape(len(part), count)
        index = places[~own].reshape(len(part), count)
        is_missing = index < 0  # fewer than `count` in the cells that were searched
        similarity[is_missing], index[is_missing] = -np.inf, 0
        return similarity, index


def _in_cells(faiss: Any, features: np.ndarray) -> Any:
    """Return an inverted file of faiss; see `Index`."""
    number, width = features.shape
    cells = int(CELLS * number**0.5)
    found = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, cells, faiss.METRIC_L2)
    found.nprobe = SEARCHED
    step = max(1, number // (cells * TRAINING))
    starts = range(0, number, ADDED)
    with progress_bar((), unit="step", total=1 + len(starts), title="clustering") as bar:
        found.train(np.ascontiguousarray(features[::step]))
        bar.update()
        for start in starts:
            found.add(features[start : start + ADDED])
            bar.update()
    return found


def centred(vectors: Tensor) -> Tensor:
    """Return features relative to their mean, of length 1: [N, D] -> [N, D]."""
    return F.normalize(vectors - vectors.mean(dim=0), dim=1)


def _blocks(number: int, size: int) -> Iterable[int]:
    """Return where each block of features begins, with a bar."""
    starts = range(0, number, size)
    return progress_bar(starts, unit="block", total=len(starts), title="comparing")
