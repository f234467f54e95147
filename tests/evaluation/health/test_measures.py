"""Measures of features against values computed by hand, and by loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fcmae.evaluation.health.measures import ChannelRanges, channel_diversity, rank_me


def test_rank_of_orthonormal_vectors_is_their_number() -> None:
    assert rank_me(torch.eye(5, 7)) == pytest.approx(5)


def test_rank_of_the_same_vector_for_every_image_is_one() -> None:
    assert rank_me(torch.tensor([[0.3, -2.0, 5.0]]).expand(6, 3)) == pytest.approx(1)
    assert rank_me(torch.zeros(6, 3)) == 1


def test_rank_of_two_unequal_directions_is_the_exponential_of_their_entropy() -> None:
    vectors = torch.diag(torch.tensor([3.0, 1.0]))  # shares 3/4 and 1/4
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert rank_me(vectors) == pytest.approx(math.exp(entropy))


def test_rank_does_not_depend_on_scale_or_order() -> None:
    vectors = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    shuffled = 1000 * vectors[torch.tensor([3, 0, 5, 1, 4, 2])]
    assert rank_me(shuffled) == pytest.approx(rank_me(vectors))


def test_rank_of_features_that_are_not_finite_is_no_number() -> None:
    assert math.isnan(rank_me(torch.tensor([[1.0, math.inf], [0.0, 1.0]])))


def diversity_by_loops(maps: Tensor) -> float:
    """(1 - cosine) / 2 over all pairs of channels of every image, one by one."""
    distances = []
    for image in maps.double():
        channels = [image[..., channel].flatten() for channel in range(image.shape[-1])]
        for one in channels:
            for other in channels:
                cosine = one @ other / (one.norm() * other.norm())
                distances.append((1 - cosine) / 2)
    return float(torch.stack(distances).mean())


def test_diversity_equals_the_mean_over_all_pairs_by_loops() -> None:
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(2))
    assert channel_diversity(maps) == pytest.approx(diversity_by_loops(maps), abs=1e-12)


def test_diversity_of_a_constant_encoder_is_zero() -> None:
    assert channel_diversity(torch.full((2, 3, 4, 5), 0.7)) == pytest.approx(0, abs=1e-12)


def test_diversity_of_channels_that_differ_in_scale_alone_is_zero() -> None:
    one = torch.rand(2, 3, 4, 1, generator=torch.Generator().manual_seed(3))
    assert channel_diversity(one * torch.tensor([0.1, 1.0, 9.0])) == pytest.approx(0, abs=1e-12)


def test_diversity_of_orthogonal_channels_is_a_half_less_the_pairs_with_themselves() -> None:
    maps = torch.eye(6).view(1, 2, 3, 6)  # each channel is on at one position of its own
    assert channel_diversity(maps) == pytest.approx((1 - 1 / 6) / 2)


def test_diversity_of_two_opposite_channels_is_a_half() -> None:
    one = torch.rand(1, 3, 4, 1, generator=torch.Generator().manual_seed(4))
    # pairs: (+ +) 0, (- -) 0, (+ -) 1, (- +) 1
    assert channel_diversity(torch.cat([one, -one], dim=3)) == pytest.approx(0.5)


def test_a_channel_that_is_zero_everywhere_counts_as_equal_to_every_other() -> None:
    maps = torch.zeros(1, 1, 2, 3)
    maps[0, 0, 0, 0] = maps[0, 0, 1, 1] = 1.0  # orthogonal; the third is zero
    # of 9 pairs the two of the orthogonal channels have distance 1/2
    assert channel_diversity(maps) == pytest.approx(2 * 0.5 / 9)
    assert channel_diversity(torch.zeros(2, 3, 4, 5)) == 0


def test_diversity_is_averaged_over_images_and_not_pooled() -> None:
    same = torch.ones(1, 1, 2, 2)
    orthogonal = torch.eye(2).view(1, 1, 2, 2)
    assert channel_diversity(torch.cat([same, orthogonal])) == pytest.approx((0 + 0.25) / 2)


def ranges_of(*rows: list[float]) -> ChannelRanges:
    ranges = ChannelRanges()
    ranges.update(torch.tensor(rows).view(1, 1, len(rows), -1))
    return ranges


def test_a_channel_at_most_a_hundredth_of_the_median_channel_is_dead() -> None:
    # largest magnitudes 0.0099, 1, 1, 2; the median (the lower of the middle ones) is 1
    ranges = ranges_of([0.0099, 1.0, 0.0, -2.0], [0.0, 0.0, 1.0, 1.0])
    assert ranges.dead_and_saturated() == (0.25, 0.0)
    ranges = ranges_of([0.0101, 1.0, 0.0, -2.0], [0.0, 0.0, 1.0, 1.0])
    assert ranges.dead_and_saturated() == (0.0, 0.0)


def test_every_channel_of_a_layer_of_zeros_is_dead_and_none_saturated() -> None:
    assert ranges_of([0.0, 0.0], [0.0, 0.0]).dead_and_saturated() == (1.0, 0.0)


def test_a_channel_that_is_on_and_hardly_moves_is_saturated() -> None:
    # mean 1, deviation 0.04: saturated; 0.06: not; -5 and -5: saturated
    ranges = ranges_of([0.96, 0.94, -5.0], [1.04, 1.06, -5.0])
    assert ranges.dead_and_saturated() == (0.0, pytest.approx(2 / 3))


def test_ranges_do_not_depend_on_how_the_images_are_batched() -> None:
    maps = torch.randn(5, 2, 3, 8, generator=torch.Generator().manual_seed(5))
    maps[..., 0] = 3.0
    maps[:4, ..., 1] = 0.0  # alive in the last image alone
    together, apart = ChannelRanges(), ChannelRanges()
    together.update(maps)
    for image in maps:
        apart.update(image[None])
    assert apart.dead_and_saturated() == together.dead_and_saturated() == (0.0, 1 / 8)
