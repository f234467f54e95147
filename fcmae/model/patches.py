"""Images to patches and back; a patch's values are ordered (row, column, channel)."""

# N images, C channels, H x W pixels, P patch side in px, R x Q patch grid,
# L = R * Q patches per image, D = P * P * C values per patch

from __future__ import annotations

from torch import Tensor


def patchify(images_NCHW: Tensor, patch_size: int) -> Tensor:
    """Cut square patches out of images: [N, C, H, W] -> [N, L, D], row-major, channel fastest.

    Source: ConvNeXt V2's released `patchify`; any number of channels here, any H x W.
    """
    cells = images_NCHW.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # [N, L, D]


def unpatchify(patches_NLD: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Put patches of a grid (rows, columns) back together: [N, L, D] -> [N, C, H, W]."""
    cells = patches_NLD.unflatten(2, (patch_size, patch_size, -1)).unflatten(1, grid)
    return cells.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # [N, C, H, W]
