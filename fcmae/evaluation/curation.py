"""What features say about a folder: near duplicates, odd pictures, and which to label first."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.decomposition import PCA
from torch import Tensor

from fcmae.evaluation.neighbours import Neighbours

# Robust deviations above the median from which a picture is called odd; of a normal distribution
# 1 in 4,300 lies there.
OUTLYING_DEVIATIONS = 3.5
_NORMAL = 1.4826  # standard deviation of a normal distribution over its median deviation


def near_duplicate_groups(
    neighbours: Neighbours, threshold: float, equal: Sequence[Sequence[int]] = ()
) -> list[list[int]]:
    """Return groups of pictures that are near duplicates, each in the order of the pictures.

    Two pictures are joined when one is among the nearest others of the other and their cosine is
    at least `threshold`; a group is what is joined, over others or directly.

    Args:
        neighbours: of all N pictures.
        threshold: cosine of whitened features.
        equal: groups of indices that are known to be the same.
    """
    rows, columns = np.nonzero(neighbours.similarity >= threshold)
    first, second = [rows], [neighbours.places[rows, columns]]
    for group in equal:
        first.append(np.full(len(group) - 1, group[0]))
        second.append(np.asarray(group[1:], dtype=np.int64))
    number = len(neighbours.places)
    pairs = np.concatenate(first), np.concatenate(second)
    graph = coo_matrix((np.ones(len(pairs[0]), bool), pairs), shape=(number, number))
    _, label = connected_components(graph, directed=False)
    order = np.argsort(label, kind="stable")
    starts = np.flatnonzero(np.diff(label[order], prepend=-1))
    groups = np.split(order, starts[1:])
    return sorted(group.tolist() for group in groups if len(group) > 1)


def oddness(features: Tensor) -> np.ndarray:
    """Return how far each picture is from the middle of all: length of whitened features, [N].

    Source: the Mahalanobis distance of Lee et al. 2018 (arXiv 1807.03888), without classes.
    """
    return features.norm(dim=1).numpy()


def odd_pictures(scores: np.ndarray) -> np.ndarray:
    """Return the indices of outlying scores, the oddest first.

    Outlying is more than OUTLYING_DEVIATIONS robust deviations above the median.
    """
    median = np.median(scores)
    deviation = _NORMAL * np.median(np.abs(scores - median))
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


def pairs_at(neighbours: Neighbours, threshold: float, count: int) -> list[tuple[int, int, float]]:
    """Return (picture, its nearest, cosine) of the pairs closest to a threshold, half on each side.

    The most similar first; what a person looks at to move the threshold.
    """
    nearest = neighbours.similarity[:, 0]
    rows = np.arange(len(nearest))
    # A pair of which each is the other's nearest is shown once.
    is_mutual = neighbours.places[neighbours.places[:, 0], 0] == rows
    rows = rows[~(is_mutual & (neighbours.places[:, 0] < rows))]
    rows = rows[np.argsort(-nearest[rows], kind="stable")]
    cut = int(np.searchsorted(-nearest[rows], -threshold, side="right"))
    shown = rows[max(0, cut - count // 2) : cut + count - count // 2]
    return [(int(row), int(neighbours.places[row, 0]), float(nearest[row])) for row in shown]
