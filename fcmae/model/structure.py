"""Which encoder so many images can fill, and which patch suits an image size: `auto` of both."""

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


def variant_for(num_images: int) -> str:
    """Return the encoder that so many images can fill."""
    return next(name for limit, name in VARIANTS if num_images < limit)


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
    """Return the settings with an encoder and a patch size in place of `auto`.

    Args:
        config: of a pretraining.
        num_images: that it is for; 0 where only the model matters, which is then the smallest.
    """
    values: dict[str, object] = {}
    if config.model.name == AUTO:
        values["model.name"] = variant_for(num_images)
    if config.mask.patch_size == AUTO:
        values["mask.patch_size"] = patch_for(config.data.image_size, config.model.stem_stride)
    resolved: PretrainConfig = with_values(config, values)
    return resolved
