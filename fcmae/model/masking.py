"""Which patches are visible: how many, and which, drawn uniformly without replacement.

A patch of an image with holes is valid, that is, may be seen or scored, when enough of its pixels
have data.
"""

# N images, L patches per image, K visible patches per image

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
    num_images: int,
    num_patches: int,
    mask_ratio: float,
    generator: torch.Generator | None = None,
    valid_patches: Tensor | None = None,
) -> Tensor:
    """Draw the visible patches: LongTensor [N, K] of row-major indices, ascending in each image.

    Every image keeps the same number, uniformly at random without replacement, from `generator`
    (torch's global one when None), on the generator's device. With `valid_patches`, bool [N, L],
    they are drawn among these; where all are, the draw is that without it.

    Source: ConvNeXt V2, section 3.1.

    Raises:
        ValueError: an image has no more valid patches than are to be visible, and the loss would
            have nothing to score.
    """
    visible = num_visible_patches(num_patches, mask_ratio)
    device = "cpu" if generator is None else generator.device
    noise = torch.rand(num_images, num_patches, generator=generator, device=device)
    if valid_patches is not None:
        fewest = int(valid_patches.sum(dim=1).min())
        if fewest <= visible:
            raise ValueError(
                f"valid_patches: an image has {fewest} of them, expected {visible + 1} or more: "
                f"{visible} visible ones (mask ratio {mask_ratio:g}) and one to score."
            )
        noise = noise.masked_fill(~valid_patches.to(device), 2.0)  # behind all others
    return noise.argsort(dim=1)[:, :visible].sort(dim=1).values


def is_masked_from_visible(visible: Tensor, num_patches: int) -> Tensor:
    """Turn indices of visible patches [N, K] into bool [N, L], True where a patch is hidden."""
    is_masked = torch.ones(visible.shape[0], num_patches, dtype=torch.bool, device=visible.device)
    return is_masked.scatter(1, visible, False)


def hidden_from_visible(visible: Tensor, num_patches: int) -> Tensor:
    """Return the patches that are not visible: [N, K] -> LongTensor [N, L - K], ascending.

    As many in each image, which a compiled model and a batch of predictions need.
    """
    is_visible = ~is_masked_from_visible(visible, num_patches)
    order = is_visible.to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, : num_patches - visible.shape[1]]


def valid_patches(valid: Tensor, patch_size: int, min_valid: float) -> Tensor:
    """Return which patches have data in at least the share `min_valid` of their pixels.

    bool [N, 1, H, W], True where an image has data -> bool [N, L], row-major.
    """
    cells = valid.squeeze(1).unflatten(2, (-1, patch_size)).unflatten(1, (-1, patch_size))
    counts = cells.sum(dim=(2, 4)).flatten(1)  # [N, L]
    return counts >= round(min_valid * patch_size**2, 6)  # immune to float noise, as above
