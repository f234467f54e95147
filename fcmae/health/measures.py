"""Measures of features: rank, diversity of channels, dead and saturated channels."""

from __future__ import annotations

import torch
from torch import Tensor

# A channel is dead when its largest response is below this share of the layer's median channel's,
DEAD_SHARE = 0.01
# and saturated when it is on, but varies by less than this share of its mean magnitude.
SATURATED_SHARE = 0.05


def rank_me(vectors: Tensor) -> float:
    """Return the effective rank of feature vectors [N, D], between 1 and min(N, D).

    The exponential of the entropy of the singular values. Constant features have rank 1.
    Source: RankMe (Garrido et al. 2023, arXiv 2210.02885), equation 2.
    """
    values = torch.linalg.svdvals(vectors.double())
    total = values.sum()
    if total == 0:
        return 1.0
    shares = values / total
    return float(torch.exp(torch.special.entr(shares).sum()))


def channel_diversity(maps: Tensor) -> float:
    """Return the mean pairwise cosine distance between channels, 0 to 1: maps [N, H, W, C].

    Each channel of an image is a vector over its positions; (1 - cosine) / 2 is averaged over all
    pairs of channels, each with itself included, and over the images. Near 0 the channels say the
    same: feature collapse. A channel that is zero everywhere counts as equal to every other.

    Source: ConvNeXt V2, section 3.1, "feature cosine distance analysis".
    """
    channels = maps.double().flatten(1, 2).transpose(1, 2)  # [N, C, H * W]
    norms = channels.norm(dim=2, keepdim=True)
    directions = channels / norms.clamp_min(torch.finfo(torch.float64).tiny)
    num_channels = channels.shape[1]
    # The mean over all pairs of u_i . u_j is the squared length of the mean direction; zero
    # channels are taken out of that mean and counted as equal below.
    is_live = norms.squeeze(2) > 0
    length = directions.sum(dim=1).square().sum(dim=1)  # sum of cosines over live pairs
    live = is_live.sum(dim=1).double()
    cosines = length + (num_channels**2 - live**2)
    return float(((1 - cosines / num_channels**2) / 2).mean())


def dead_and_saturated(maps: Tensor) -> tuple[float, float]:
    """Return the shares of dead and of saturated channels over a set of images: [N, H, W, C].

    Dead: the channel's largest magnitude is below 1 % of the median channel's. Saturated: not
    dead, and its standard deviation over images and positions is below 5 % of its mean magnitude.
    """
    rows = maps.double().flatten(0, 2)  # [N * H * W, C]
    largest = rows.abs().amax(dim=0)
    is_dead = largest <= DEAD_SHARE * largest.median()
    spread, magnitude = rows.std(dim=0), rows.abs().mean(dim=0)
    is_saturated = ~is_dead & (spread < SATURATED_SHARE * magnitude)
    return float(is_dead.double().mean()), float(is_saturated.double().mean())
