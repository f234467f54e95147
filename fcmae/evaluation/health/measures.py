"""Measures of features: rank, diversity of channels, dead and saturated channels."""

import torch
from torch import Tensor

# A channel is dead when its largest response is at most this share of the layer's median channel's,
DEAD_SHARE = 0.01
# and saturated when it is on, but varies by less than this share of its mean magnitude.
SATURATED_SHARE = 0.05


def rank_me(vectors: Tensor) -> float:
    """Return the effective rank of feature vectors [N, D], between 1 and min(N, D).

    The exponential of the entropy of the singular values. Constant features have rank 1; NaN when
    a feature is not finite.

    Source: RankMe (Garrido et al. 2023, arXiv 2210.02885), equation 2.
    Deviation: no epsilon is added to the shares; 0 log 0 is 0.
    """
    if not vectors.isfinite().all():
        return float("nan")
    values = torch.linalg.svdvals(vectors.double())
    total = values.sum()
    if total == 0:
        return 1.0
    return float(torch.special.entr(values / total).sum().exp())


def channel_diversity(maps: Tensor) -> float:
    """Return the mean pairwise cosine distance between channels, 0 to 1: maps [N, H, W, C].

    Each channel of an image is a vector over its positions; (1 - cosine) / 2 is averaged over all
    pairs of channels, each with itself included, and over the images. Near 0 the channels say the
    same: feature collapse. A channel that is zero everywhere counts as equal to every other.

    Source: ConvNeXt V2, section 3.1, "feature cosine distance analysis".
    """
    channels = maps.double().flatten(1, 2)  # [N, H * W, C]
    norms = channels.norm(dim=1, keepdim=True)
    directions = channels / norms.clamp_min(torch.finfo(torch.float64).tiny)
    # The sum of u_i . u_j over all pairs is the squared length of the sum of directions. Zero
    # channels add nothing to it, and their pairs are counted as equal.
    live_cosines = directions.sum(dim=2).square().sum(dim=1)  # [N]
    live = (norms > 0).sum(dim=(1, 2))
    pairs = channels.shape[2] ** 2
    cosines = live_cosines + (pairs - live**2)
    return float(((1 - cosines / pairs) / 2).mean())


class ChannelRanges:
    """How far each channel of a layer moves over a set of images, gathered batch by batch."""

    def __init__(self) -> None:
        self._largest: Tensor | None = None
        self._sums: Tensor | None = None
        self._count = 0

    def update(self, maps: Tensor) -> None:
        """Take in the features of some images: [N, H, W, C]."""
        rows = maps.double().flatten(0, 2)  # [N * H * W, C]
        magnitudes = rows.abs()
        largest = magnitudes.amax(dim=0)
        sums = torch.stack([rows.sum(dim=0), rows.square().sum(dim=0), magnitudes.sum(dim=0)])
        self._count += len(rows)
        self._largest = largest if self._largest is None else largest.maximum(self._largest)
        self._sums = sums if self._sums is None else sums + self._sums

    def dead_and_saturated(self) -> tuple[float, float]:
        """Return the shares of dead and of saturated channels.

        Dead: the channel's largest magnitude is at most 1 % of the median channel's. Saturated:
        not dead, and its standard deviation over images and positions is below 5 % of its mean
        magnitude.
        """
        assert self._largest is not None
        assert self._sums is not None
        is_dead = self._largest <= DEAD_SHARE * self._largest.median()
        mean, mean_square, magnitude = self._sums / self._count
        spread = (mean_square - mean.square()).clamp_min(0).sqrt()
        is_saturated = ~is_dead & (spread < SATURATED_SHARE * magnitude)
        return float(is_dead.double().mean()), float(is_saturated.double().mean())
