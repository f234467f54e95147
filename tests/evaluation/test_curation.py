"""Curation: duplicates, odd pictures and the order of labelling, on features with known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fcmae.evaluation import neighbours as nearest
from fcmae.evaluation.copies import Pairs
from fcmae.evaluation.curation import (
    labelling_order,
    map_positions,
    near_duplicate_groups,
    oddness,
    outlying,
    pairs_at,
)
from fcmae.evaluation.neighbours import (
    Index,
    Neighbours,
    Whitening,
    centred,
    nearest_neighbours,
)


def clusters(per_cluster: int = 30, width: int = 16, seed: int = 0) -> torch.Tensor:
    """Three tight clusters far from each other."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, width, generator=rng).repeat_interleave(per_cluster, 0)
    return centres + 0.3 * torch.randn(3 * per_cluster, width, generator=rng)


def test_whitened_features_have_the_same_spread_in_every_direction() -> None:
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(20_000, 6, generator=rng) * torch.tensor([9.0, 5, 3, 2, 1, 0.9]) + 7
    white = Whitening.of(features)(features).double()
    covariance = white.T @ white / 20_000
    torch.testing.assert_close(covariance, torch.eye(6).double(), atol=0.12, rtol=0)


def test_neighbours_are_those_of_all_pairs_and_never_oneself() -> None:
    features = centred(clusters())
    found = nearest_neighbours(features, 5)
    cosines = (features @ features.T).fill_diagonal_(-2)
    expected = cosines.topk(5, dim=1)
    assert np.array_equal(found.places, expected.indices.numpy())
    np.testing.assert_allclose(found.similarity, expected.values, atol=1e-5)
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


def test_a_view_of_a_picture_is_compared_with_all_other_pictures() -> None:
    features = centred(clusters())
    views = centred(clusters(seed=1))
    found = Index(features).nearest(views, 4)
    cosines = (views @ features.T).fill_diagonal_(-2)
    assert np.array_equal(found.places, cosines.topk(4, dim=1).indices.numpy())


def test_views_are_whitened_as_the_pictures_are() -> None:
    features, views = clusters(), clusters(seed=1)
    white = Whitening.of(features)
    both = torch.cat([views, features])
    torch.testing.assert_close(white(both)[:90], white(views), rtol=1e-5, atol=1e-5)


def test_copies_among_few_pictures_are_alike_and_all_else_is_not() -> None:
    """Where there are fewer pictures than features, plain whitening parts copies, too."""
    rng = torch.Generator().manual_seed(0)
    spread = torch.logspace(0, -2, 200)
    features = torch.randn(40, 200, generator=rng) * spread
    copies = features[:10] + 0.1 * torch.randn(10, 200, generator=rng) * spread
    both = torch.cat([features, copies])
    white = centred(Whitening.of(both)(both))
    cosines = (white @ white.T).fill_diagonal_(0)
    assert float(cosines[torch.arange(10), torch.arange(40, 50)].min()) > 0.8
    assert float(cosines[:40, :40].max()) < 0.6


def test_groups_hold_what_is_joined_over_others() -> None:
    # 0 - 1 - 2 in a chain, 3 alone, 4 and 5 known to be equal.
    pairs = np.array([[0, 1], [1, 2]])
    assert near_duplicate_groups(pairs, 6, [[4, 5]]) == [[0, 1, 2], [4, 5]]
    assert near_duplicate_groups(pairs[:1], 6) == [[0, 1]]
    assert near_duplicate_groups(pairs[:0], 6) == []


def test_a_picture_far_from_all_is_odd_and_so_are_two_copies_of_it() -> None:
    features = clusters()
    lonely = -3 * features[:30].mean(dim=0)
    everything = torch.cat([features, lonely[None], lonely[None]])
    scores = oddness(nearest_neighbours(centred(everything), 10))
    assert sorted(outlying(scores)[:2].tolist()) == [90, 91]
    assert len(outlying(scores)) < 8


def test_oddness_is_the_distance_to_the_last_neighbour() -> None:
    near = np.array([[0.9, 0.75], [0.5, -np.inf]])
    found = Neighbours(near, np.zeros((2, 2), np.int64), False)
    np.testing.assert_allclose(oddness(found), [np.sqrt(0.5), 1.0])


def test_distances_are_those_of_features_of_any_length() -> None:
    features = clusters()
    found = nearest_neighbours(features, 5)
    distances = torch.cdist(features, features).fill_diagonal_(torch.inf)
    expected = distances.topk(5, largest=False)
    assert np.array_equal(found.places, expected.indices.numpy())
    np.testing.assert_allclose(oddness(found), expected.values[:, -1], rtol=1e-3)


def test_pictures_that_are_all_alike_have_no_odd_ones() -> None:
    assert not len(outlying(np.full(50, 0.2)))


def test_a_score_that_is_not_known_is_not_outlying() -> None:
    scores = np.full(50, 0.2)
    scores[[3, 7]] = np.nan, 9.0
    assert outlying(scores).tolist() == [7]
    assert not len(outlying(np.full(3, np.nan)))


def test_labelling_visits_every_cluster_before_it_comes_back() -> None:
    features = centred(clusters())
    order = labelling_order(features, 3)
    assert sorted(index // 30 for index in order) == [0, 1, 2]
    assert len(set(labelling_order(features, 1000))) == 90
    assert labelling_order(features, 5, leave_out=range(90)) == []
    assert not set(labelling_order(features, 60, leave_out=range(30))) & set(range(30))


def test_pairs_around_the_threshold_come_from_both_sides_the_most_similar_first() -> None:
    correlation = np.array([0.2, 0.9, np.nan, 0.7, 0.5, 0.85, 0.1], np.float32)
    places = np.stack([np.arange(7), np.arange(7) + 1], axis=1)
    pairs = Pairs(places, correlation + 0.05, correlation)
    found = pairs_at(pairs, pairs.correlation, 0.6, 4)
    np.testing.assert_allclose(found.correlation, [0.85, 0.7, 0.5, 0.2])
    assert found.places[:, 0].tolist() == [5, 3, 4, 0]
    np.testing.assert_allclose(found.cosine, [0.9, 0.75, 0.55, 0.25])


def test_the_map_has_a_point_for_every_picture() -> None:
    positions = map_positions(centred(clusters()))
    assert positions.shape == (90, 2)
    means = [positions[start : start + 30].mean(axis=0) for start in (0, 30, 60)]
    spread = max(positions[start : start + 30].std() for start in (0, 30, 60))
    assert min(np.linalg.norm(means[a] - means[b]) for a, b in ((0, 1), (1, 2), (0, 2))) > spread
