"""Curation: duplicates, odd pictures and the order of labelling, on features with known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fcmae.evaluation import neighbours as nearest
from fcmae.evaluation.curation import (
    labelling_order,
    map_positions,
    near_duplicate_groups,
    odd_pictures,
    oddness,
    pairs_at,
)
from fcmae.evaluation.neighbours import Neighbours, nearest_neighbours, whitened


def clusters(per_cluster: int = 30, width: int = 16, seed: int = 0) -> torch.Tensor:
    """Three tight clusters far from each other."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, width, generator=rng).repeat_interleave(per_cluster, 0)
    return centres + 0.3 * torch.randn(3 * per_cluster, width, generator=rng)


def centred(features: torch.Tensor) -> torch.Tensor:
    return F.normalize(features - features.mean(dim=0), dim=1)


def test_whitened_features_have_the_same_spread_in_every_direction() -> None:
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(500, 6, generator=rng) * torch.tensor([9.0, 5, 3, 2, 1, 0.9]) + 7
    white = whitened(features).double()
    covariance = white.T @ white / 500
    torch.testing.assert_close(covariance, torch.eye(6).double(), atol=0.12, rtol=0)


def test_neighbours_are_those_of_all_pairs_and_never_oneself() -> None:
    features = centred(clusters())
    found = nearest_neighbours(features, 5)
    cosines = (features @ features.T).fill_diagonal_(-2)
    expected = cosines.topk(5, dim=1)
    assert np.array_equal(found.places, expected.indices.numpy())
    np.testing.assert_allclose(found.similarity, expected.values, rtol=1e-5)
    assert found.is_exact


def test_few_pictures_have_all_others_as_neighbours() -> None:
    assert nearest_neighbours(centred(clusters()[:3]), 20).places.shape == (3, 2)


def test_many_pictures_are_compared_within_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(3000, 32, generator=rng)
    copies = features[:100] + 0.05 * torch.randn(100, 32, generator=rng)
    features = centred(torch.cat([features, copies]))
    exact = nearest_neighbours(features, 3)
    monkeypatch.setattr(nearest, "EXACT_BELOW", 1000)
    found = nearest_neighbours(features, 3)
    assert not found.is_exact
    assert (found.places != np.arange(3100)[:, None]).all()
    assert (found.places[3000:, 0] == np.arange(100)).mean() > 0.97
    assert (found.places[:, 0] == exact.places[:, 0]).mean() > 0.8


def test_groups_hold_what_is_joined_over_others() -> None:
    # 0 - 1 - 2 in a chain, 3 alone, 4 and 5 known to be equal.
    similarity = np.array([[0.99], [0.97], [0.97], [0.1], [0.5], [0.5]], np.float32)
    index = np.array([[1], [2], [1], [0], [0], [0]])
    found = Neighbours(similarity, index, True)
    assert near_duplicate_groups(found, 0.96, [[4, 5]]) == [[0, 1, 2], [4, 5]]
    assert near_duplicate_groups(found, 0.98) == [[0, 1]]
    assert near_duplicate_groups(found, 1.0) == []


def test_a_picture_far_from_all_is_odd_and_so_are_two_copies_of_it() -> None:
    features = clusters()
    lonely = -3 * features[:30].mean(dim=0)
    everything = torch.cat([features, lonely[None], lonely[None]])
    scores = oddness(whitened(everything))
    assert sorted(odd_pictures(scores)[:2].tolist()) == [90, 91]
    assert len(odd_pictures(scores)) < 8


def test_pictures_that_are_all_alike_have_no_odd_ones() -> None:
    assert not len(odd_pictures(np.full(50, 0.2)))


def test_labelling_visits_every_cluster_before_it_comes_back() -> None:
    features = centred(clusters())
    order = labelling_order(features, 3)
    assert sorted(index // 30 for index in order) == [0, 1, 2]
    assert len(set(labelling_order(features, 1000))) == 90
    assert labelling_order(features, 5, leave_out=range(90)) == []
    assert not set(labelling_order(features, 60, leave_out=range(30))) & set(range(30))


def test_pairs_around_the_threshold_come_once_and_from_both_sides() -> None:
    found = nearest_neighbours(centred(clusters()), 5)
    middle = float(np.median(found.similarity[:, 0]))
    pairs = pairs_at(found, middle, 10)
    assert len({frozenset(pair[:2]) for pair in pairs}) == len(pairs) == 10
    cosines = [cosine for _, _, cosine in pairs]
    assert cosines == sorted(cosines, reverse=True)
    assert cosines[0] >= middle >= cosines[-1]


def test_the_map_has_a_point_for_every_picture() -> None:
    positions = map_positions(centred(clusters()))
    assert positions.shape == (90, 2)
    means = [positions[start : start + 30].mean(axis=0) for start in (0, 30, 60)]
    spread = max(positions[start : start + 30].std() for start in (0, 30, 60))
    assert min(np.linalg.norm(means[a] - means[b]) for a, b in ((0, 1), (1, 2), (0, 2))) > spread
