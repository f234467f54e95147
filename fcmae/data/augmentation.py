"""What happens to an image between the decoder and the model: crop, flip, scale, normalise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import v2

from fcmae.data.decoding import LUMA, to_float
from fcmae.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Luma of ImageNet's colours. The deviation assumes that the colours vary together, as they
# nearly do in photographs: 0.226.
GREY_MEAN = (sum(weight * mean for weight, mean in zip(LUMA, IMAGENET_MEAN, strict=True)),)
GREY_STD = (sum(weight * std for weight, std in zip(LUMA, IMAGENET_STD, strict=True)),)
WARP_FROM_PX = 384  # evaluation at this size and above resizes without cropping, as the paper's


def default_mean_std(in_chans: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation per channel on the 0..1 scale.

    ImageNet's for 3 channels, those of its luma for 1 (0.459, 0.226), and 0.5 and 0.25 for any
    other count, where nothing is known about the channels.
    """
    if in_chans == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    if in_chans == 1:
        return GREY_MEAN, GREY_STD
    return (0.5,) * in_chans, (0.25,) * in_chans


def _normalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (image - mean) / std as contiguous float32, image on the 0..1 scale, [C, H, W]."""
    means = torch.tensor(tuple(mean), dtype=torch.float32)[:, None, None]  # [C, 1, 1]
    stds = torch.tensor(tuple(std), dtype=torch.float32)[:, None, None]
    return ((to_float(image) - means) / stds).contiguous()


class PretrainAugmentation:
    """Random resized crop and flips: [C, H, W] uint8 or float32 -> [C, height, width] float32.

    Draws from torch's global generator (see `seeded`). Pixels stay uint8 until the crop is made.

    Args:
        image_size: (height, width) of the result, px.
        mean, std: per channel on the 0..1 scale, taken away and divided by at the end.
        crop_scale: smallest and largest share of the area that a crop covers.
        crop_ratio: smallest and largest width / height of a crop before resizing.
        horizontal_flip, vertical_flip: flip every second image.
        rotate90: turn by 0, 90, 180 or 270 degrees; square images only.

    Raises:
        ConfigError: rotate90 with an image_size that is not square.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        crop_scale: tuple[float, float] = (0.2, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        horizontal_flip: bool = True,
        vertical_flip: bool = False,
        rotate90: bool = False,
    ) -> None:
        height, width = image_size
        if rotate90 and height != width:
            raise ConfigError(
                f"data.rotate90: quarter turns need square images, but data.image_size is "
                f"{height} x {width} px; switch one of them."
            )
        crop = v2.RandomResizedCrop(
            (height, width),
            scale=crop_scale,
            ratio=crop_ratio,
            interpolation=v2.InterpolationMode.BICUBIC,
            antialias=True,
        )
        steps = [crop]
        if horizontal_flip:
            steps.append(v2.RandomHorizontalFlip())
        if vertical_flip:
            steps.append(v2.RandomVerticalFlip())
        self.transform = v2.Compose(steps)
        self.image_size = (height, width)
        self.rotate90 = rotate90
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, image: Tensor) -> Tensor:
        image = self.transform(image)
        if self.rotate90:
            image = image.rot90(int(torch.randint(4, ())), dims=(1, 2))
        return _normalise(image, self.mean, self.std)


class EvaluationTransform:
    """Resize and centre crop: [C, H, W] uint8 or float32 -> [C, height, width] float32.

    The image is scaled (bicubic) to cover image_size / crop_pct and its centre is cut out. From
    384 px on (both sides) it is squeezed to image_size instead, and nothing is cut.
    Source: fine-tuning evaluation of ConvNeXt V2.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        crop_pct: float = 0.875,
    ) -> None:
        self.image_size = height, width = image_size
        self.crop_pct = crop_pct
        self.is_warping = min(height, width) >= WARP_FROM_PX
        self.mean, self.std = tuple(mean), tuple(std)

    def _resized(self, height: int, width: int) -> list[int]:
        """Return the size, px, that an image of height x width px is scaled to."""
        if self.is_warping:
            return list(self.image_size)
        covered = [int(side / self.crop_pct) for side in self.image_size]
        if height * covered[1] < width * covered[0]:  # relatively wider than what it must cover
            return [covered[0], width * covered[0] // height]
        return [height * covered[1] // width, covered[1]]

    def __call__(self, image: Tensor) -> Tensor:
        size = self._resized(*image.shape[-2:])
        bicubic = v2.InterpolationMode.BICUBIC
        image = v2.functional.resize(image, size, interpolation=bicubic, antialias=True)
        image = v2.functional.center_crop(image, list(self.image_size))
        return _normalise(image, self.mean, self.std)
