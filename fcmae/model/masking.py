"""Which patches are visible: how many, and which, drawn uniformly without replacement."""

# N images, L patches per image, K visible patches per image

from __future__ import annotations

import math

import torch
from torch import Tensor

from fcmae.errors import ConfigError


def num_visible_patches(num_patches: int, mask_ratio: float) -> int:
    """Return floor(num_patches * (1 - mask_ratio)), immune to float noise (100, 0.9 -> 10).

    Raises:
        ConfigError: the ratio leaves no patch visible or none hidden.
    """
    if num_patches < 2:
        raise ConfigError(
            f"mask.ratio: {num_patches} patch cannot be both visible and hidden; "
            "expected at least two patches: larger images or smaller patches."
        )
    highest = math.floor(1000 * (1 - 1 / num_patches)) / 1000  # rounded so that it is allowed
    expected = f"expected a ratio above 0 and at most {highest:g} on this grid"
    if not 0 <= mask_ratio <= 1:
        raise ConfigError(f"mask.ratio: {mask_ratio} is not a share of the patches; {expected}.")
    # Six decimals are far finer than one patch and far coarser than the noise of the product.
    visible = math.floor(round(num_patches * (1.0 - mask_ratio), 6))
    if not 0 < visible < num_patches:
        lost = "visible" if visible == 0 else "hidden"
        raise ConfigError(
            f"mask.ratio: {mask_ratio} of {num_patches} patches leaves none {lost}; {expected}."
        )
    return visible


def effective_mask_ratio(num_patches: int, mask_ratio: float) -> float:
    """Return the share of patches that is hidden in fact: 49 patches at 0.6 hide 30, 0.612."""
    return 1 - num_visible_patches(num_patches, mask_ratio) / num_patches


def draw_visible(
    num_images: int, num_patches: int, mask_ratio: float, generator: torch.Generator | None = None
) -> Tensor:
    """Draw the visible patches: LongTensor [N, K] of row-major indices, ascending in each image.

    Every image keeps the same number, uniformly at random without replacement, from `generator`
    (torch's global one when None), on the generator's device.

    Source: ConvNeXt V2, section 3.1.
    """
    visible = num_visible_patches(num_patches, mask_ratio)
    device = "cpu" if generator is None else generator.device
    noise = torch.rand(num_images, num_patches, generator=generator, device=device)
    return noise.argsort(dim=1)[:, :visible].sort(dim=1).values


def is_masked_from_visible(visible: Tensor, num_patches: int) -> Tensor:
    """Turn indices of visible patches [N, K] into bool [N, L], True where a patch is hidden."""
    is_masked = torch.ones(visible.shape[0], num_patches, dtype=torch.bool, device=visible.device)
    return is_masked.scatter(1, visible, False)
