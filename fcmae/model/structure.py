"""Which encoder so many images can fill, and which sizes suit pictures: `auto` of all three."""

from __future__ import annotations

import math

from fcmae.settings.auto import AUTO, with_values
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.sections import image_height_width

# images -> encoder, from 3.4 M parameters on: what so many can fill
VARIANTS = (
    (20_000, "convnextv2_atto"),
    (50_000, "convnextv2_pico"),
    (500_000, "convnextv2_nano"),
    (math.inf, "convnextv2_tiny"),
)
STRIDES = 8  # of the three downsample layers together, below the stem's
PATCHES_PER_SIDE = 7  # the paper's: 224 px of 32
FEWEST_PER_SIDE = 3  # below it there is next to nothing to hide
LARGEST_SIZE_PX = 224  # the paper's


def variant_for(num_images: int) -> str:
    """Return the encoder that so many images can fill."""
    return next(name for limit, name in VARIANTS if num_images < limit)


def image_size_for(median_side: float | None, unit: int) -> int:
    """Return the side of images, px, that suits pictures: enlarged as little as can be.

    It is the unit as often as it takes to hold the median picture, three times at least, and 224 px
    at most: time goes by the area, and a larger one shows nothing more of the picture.

    Args:
        median_side: median of the pictures' shorter sides, px; None where nobody could look.
        unit: px that a side must be a multiple of: of `unit_of`, or the encoder's total stride.
    """
    most = max(1, LARGEST_SIZE_PX // unit)
    times = most if median_side is None else math.ceil(median_side / unit)
    return unit * min(max(times, FEWEST_PER_SIDE), most)


def unit_of(config: PretrainConfig) -> int:
    """Return what a side must be a multiple of, px: the patch, or the encoder's total stride."""
    patch = config.mask.patch_size
    return STRIDES * config.model.stem_stride if patch == AUTO else patch


def patch_for(image_size: int | tuple[int, int], stem_stride: int) -> int:
    """Return the side of a patch, px, that cuts the shorter side into about seven.

    It is a multiple of the encoder's total stride that tiles the image; the stride itself where
    the image is smaller.
    """
    stride = STRIDES * stem_stride
    sides = image_height_width(image_size)
    times = max(1, round(min(sides) / (PATCHES_PER_SIDE * stride)))
    fitting = [n for n in range(times, 0, -1) if all(side % (n * stride) == 0 for side in sides)]
    return stride * (fitting or [1])[0]


def with_structure(config: PretrainConfig, num_images: int = 0) -> PretrainConfig:
    """Return the settings with an encoder, an image and a patch size in place of `auto`.

    Pictures are not looked at: a size that would follow from them is the largest.

    Args:
        config: of a pretraining.
        num_images: that it is for; 0 where only the model matters, which is then the smallest.
    """
    values: dict[str, object] = {}
    if config.model.name == AUTO:
        values["model.name"] = variant_for(num_images)
    size = config.data.image_size
    if size == AUTO:
        size = values["data.image_size"] = image_size_for(None, unit_of(config))
    if config.mask.patch_size == AUTO:
        values["mask.patch_size"] = patch_for(size, config.model.stem_stride)
    resolved: PretrainConfig = with_values(config, values)
    return resolved
