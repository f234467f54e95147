"""Nearest neighbours of every feature among all the others: exactly, or of a million by faiss."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fcmae.runs.terminal import progress_bar

EXACT_BELOW = 50_000  # features: from there on comparing each with all takes minutes
BLOCK = 1024  # features at a time
FLOOR = 1e-3  # of the largest variance
# Of faiss: cells per root of the number of features, how many features train each of them, and
# how many of them are searched. Near neighbours share a cell; the farther, the more are missed.
CELLS, TRAINING, SEARCHED = 4.0, 40, 24


class Neighbours(NamedTuple):
    """The nearest others of N features, the nearest first.

    Attributes:
        similarity: float32 [N, K], cosines.
        places: int64 [N, K], indices of them.
        is_exact: whether every feature was compared with all.
    """

    similarity: np.ndarray
    places: np.ndarray
    is_exact: bool


def whitened(vectors: Tensor) -> Tensor:
    """Return features in which no direction counts more than another: [N, D] -> float32 [N, D].

    Relative to their mean, along their principal directions, each divided by its deviation; those
    with less than FLOOR of the largest variance are noise and count less. Pooled features have a
    few directions that outweigh all others, in which most pictures look alike.
    """
    centred = vectors.double() - vectors.double().mean(dim=0)
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
    variances = variances.clamp_min(0)
    scales = (variances + FLOOR * variances.max()).sqrt().clamp_min(1e-30)
    return (centred @ directions / scales).float()


def nearest_neighbours(features: Tensor, count: int) -> Neighbours:
    """Return the `count` nearest others of each feature, all others when there are fewer.

    From EXACT_BELOW features on they are sought by faiss in the nearest cells of a clustering,
    where it is installed; of features that are far from everything a neighbour may be missed.

    Args:
        features: of length 1, [N, D] with N of 2 or more.
        count: K.
    """
    count = min(count, len(features) - 1)
    if len(features) >= EXACT_BELOW:
        try:
            import faiss
        except ImportError:
            pass
        else:
            return _by_cells(faiss, features.numpy(), count)
    similarity, index = [], []
    for start in _blocks(len(features), BLOCK):
        block = features[start : start + BLOCK]
        cosines = block @ features.T
        rows = torch.arange(len(block))
        cosines[rows, rows + start] = -torch.inf  # itself
        nearest = cosines.topk(count, dim=1)
        similarity.append(nearest.values.numpy())
        index.append(nearest.indices.numpy())
    return Neighbours(np.concatenate(similarity), np.concatenate(index), True)


def _by_cells(faiss: Any, features: np.ndarray, count: int) -> Neighbours:
    """Search the cells of an inverted file; see `nearest_neighbours`."""
    number, width = features.shape
    cells = int(CELLS * number**0.5)
    coarse = faiss.IndexFlatIP(width)
    found = faiss.IndexIVFFlat(coarse, width, cells, faiss.METRIC_INNER_PRODUCT)
    found.nprobe = SEARCHED
    step = max(1, number // (cells * TRAINING))
    found.train(np.ascontiguousarray(features[::step]))
    found.add(features)
    similarity = np.full((number, count), -1, np.float32)
    index = np.zeros((number, count), np.int64)
    size = 16 * BLOCK
    for start in _blocks(number, size):
        part = features[start : start + size]
        values, places = found.search(part, count + 1)
        own = places == np.arange(start, start + len(part))[:, None]
        own[~own.any(axis=1), -1] = True  # among equal ones it may not be the nearest
        similarity[start : start + len(part)] = values[~own].reshape(len(part), count)
        index[start : start + len(part)] = places[~own].reshape(len(part), count)
    is_missing = index < 0  # fewer than `count` in the cells that were searched
    similarity[is_missing], index[is_missing] = -1, 0
    return Neighbours(similarity, index, False)


def _blocks(number: int, size: int) -> Iterable[int]:
    """Return where each block of features begins, with a bar."""
    starts = range(0, number, size)
    return progress_bar(starts, unit="block", total=len(starts), title="comparing")
