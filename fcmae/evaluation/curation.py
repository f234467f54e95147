"""What features say about a folder: near duplicates, odd pictures, and which to label first."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.decomposition import PCA
from torch import Tensor

from fcmae.evaluation.copies import Pairs
from fcmae.evaluation.neighbours import Neighbours

# Robust deviations above the median from which a picture is called odd; of a normal distribution
# 1 in 4,300 lies there.
OUTLYING_DEVIATIONS = 3.5
_NORMAL = 1.4826  # standard deviation of a normal distribution over its median deviation


def near_duplicate_groups(
    pairs: np.ndarray, number: int, equal: Sequence[Sequence[int]] = ()
) -> list[list[int]]:
    """Return groups of pictures that are near duplicates, each in the order of the pictures.

    A group is what is joined, over others or directly.

    Args:
        pairs: pictures that are copies of each other, [M, 2].
        number: of all pictures.
        equal: groups of indices that are known to be the same.
    """
    first, second = [pairs[:, 0]], [pairs[:, 1]]
    for group in equal:
        first.append(np.full(len(group) - 1, group[0]))
        second.append(np.asarray(group[1:], dtype=np.int64))
    ends = np.concatenate(first), np.concatenate(second)
    graph = coo_matrix((np.ones(len(ends[0]), bool), ends), shape=(number, number))
    _, label = connected_components(graph, directed=False)
    order = np.argsort(label, kind="stable")
    starts = np.flatnonzero(np.diff(label[order], prepend=-1))
    groups = np.split(order, starts[1:])
    return sorted(group.tolist() for group in groups if len(group) > 1)


def oddness(neighbours: Neighbours) -> np.ndarray:
    """Return how far each picture is from its nearest ones: the distance of the K-th, [N].

    So that K copies of an odd picture stay odd. Where fewer were found, of the last that was.
    Source: Sun et al. 2022 (arXiv 2204.06507).
    """
    found = neighbours.similarity.min(axis=1, where=np.isfinite(neighbours.similarity), initial=1)
    return np.sqrt(np.maximum(2 - 2 * found, 0))


def outlying(scores: np.ndarray) -> np.ndarray:
    """Return the indices of outlying scores, the highest first; NaN is none.

    Outlying is more than OUTLYING_DEVIATIONS robust deviations above the median.
    """
    known = scores[np.isfinite(scores)]
    if not len(known):
        return np.zeros(0, np.int64)
    median = np.median(known)
    deviation = _NORMAL * np.median(np.abs(known - median))
    order = np.argsort(-scores, kind="stable")
    return order[scores[order] > median + OUTLYING_DEVIATIONS * max(deviation, 1e-6)]


def labelling_order(features: Tensor, count: int, leave_out: Sequence[int] = ()) -> list[int]:
    """Return the pictures to label first, such that every picture is near one of them.

    Each is the one that is farthest from all before it; the first is the most typical one, nearest
    to the mean. Source: k-centre greedy, Sener and Savarese 2018 (arXiv 1708.00489).

    Args:
        features: of length 1, [N, D].
        count: how many; all that are left when there are fewer.
        leave_out: indices that are not taken, such as duplicates and odd pictures.
    """
    taken = torch.ones(len(features), dtype=torch.bool)
    taken[list(leave_out)] = False
    candidates = taken.nonzero().squeeze(1)
    points = features[candidates]
    if not len(points):
        return []
    place = int((points @ points.mean(dim=0)).argmax())
    nearest = torch.full((len(points),), -torch.inf)  # cosine to the nearest that was chosen
    chosen = []
    for _ in range(min(count, len(points))):
        chosen.append(int(candidates[place]))
        nearest = torch.maximum(nearest, points @ points[place])
        nearest[place] = torch.inf
        place = int(nearest.argmin())
    return chosen


def map_positions(features: Tensor) -> np.ndarray:
    """Return a point in the plane for each picture, by principal components: [N, D] -> [N, 2]."""
    components = min(2, *features.shape)
    found = PCA(components, random_state=0).fit_transform(features.numpy())
    return np.pad(found, ((0, 0), (0, 2 - components)))


def pairs_at(pairs: Pairs, values: np.ndarray, threshold: float, count: int) -> Pairs:
    """Return the pairs closest to a threshold, half on each side of it, the most similar first.

    What a person looks at to move the threshold.

    Args:
        pairs: to choose from.
        values: what the threshold is of, one for each pair; NaN is left out.
        threshold: above which pairs are near duplicates.
        count: of pairs.
    """
    order = np.argsort(-values, kind="stable")
    order = order[np.isfinite(values[order])]
    cut = int(np.searchsorted(-values[order], -threshold, side="right"))
    shown = order[max(0, cut - count // 2) : cut + count - count // 2]
    return Pairs(*(values[shown] for values in pairs))
