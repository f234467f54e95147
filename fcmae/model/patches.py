"""Images to patches and back; a patch's values are ordered (row, column, channel)."""

# N images, C channels, H x W pixels, P patch side in px, R x Q patch grid,
# L = R * Q patches per image, D = P * P * C values per patch

from torch import Tensor

from fcmae.errors import ConfigError


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


def patch_grid(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Return patch rows and columns, or raise ConfigError unless whole patches tile the image."""
    for side in image_size:
        rest = side % patch_size
        if side < patch_size or rest:
            smaller = max(side - rest, patch_size)
            larger = side - rest + patch_size
            sizes = f"{smaller} or {larger}" if smaller != larger else f"{larger}"
            raise ConfigError(
                f"data.image_size: {side} px is not a multiple of mask.patch_size "
                f"({patch_size} px); {rest} px per side would belong to no patch. Use {sizes}."
            )
    return image_size[0] // patch_size, image_size[1] // patch_size
