"""What happens to an image between the file and the model: crop, scale, flip, normalise."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import PIL.Image
import torch
from torch import Tensor, nn
from torchvision.transforms import RandomResizedCrop, v2

from fcmae.data.channels import LUMA
from fcmae.data.decoding import Decoded, to_float
from fcmae.data.holes import fill, none_if_all, resize_valid
from fcmae.data.parts import Choose, Part
from fcmae.errors import CheckpointError, ConfigError
from fcmae.settings.finetune import StartedImagesConfig
from fcmae.settings.pretrain import DataConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Luma of ImageNet's colours. The deviation assumes that the colours vary together, as they
# nearly do in photographs: 0.226.
GREY_MEAN = (sum(weight * mean for weight, mean in zip(LUMA, IMAGENET_MEAN, strict=True)),)
GREY_STD = (sum(weight * std for weight, std in zip(LUMA, IMAGENET_STD, strict=True)),)
# Of a strip that would be scaled to more pixels than this, the middle alone is scaled; else a file
# of 65000 x 1 px would ask for gigabytes.
MOST_SCALED_PX, STRIP_MARGIN_PX = 2**22, 16
SMALL_CROPS_PER_SIDE = 4  # the smallest crop of the usual scale overlaps its neighbours by half
SMALL_CROPS = SMALL_CROPS_PER_SIDE**2
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


def mean_and_std(
    data: DataConfig | StartedImagesConfig, known: Mapping[str, Any] | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the channel statistics that images are normalised with, on the 0..1 scale.

    Those of the settings count, then those in `known`, what weights say of themselves, then the
    usual ones.

    Raises:
        CheckpointError: the weights name statistics for another number of channels.
    """
    if data.mean is not None and data.std is not None:
        return tuple(data.mean), tuple(data.std)
    mean, std = default_mean_std(data.in_chans)
    mean = tuple((known or {}).get("mean") or mean)
    std = tuple((known or {}).get("std") or std)
    if not len(mean) == len(std) == data.in_chans:
        raise CheckpointError(
            f"model.weights: made for {len(mean)} channels, and data.in_chans is "
            f"{data.in_chans}; set it to {len(mean)}, or use other weights."
        )
    return mean, std


class Normalisation(nn.Module):
    """(pixels - mean) / std: uint8 or float32 in 0..1 [..., C, H, W] -> contiguous float32.

    Pixels travel as they were decoded; move this to the device of the model, where it runs.

    Args:
        mean, std: per channel on the 0..1 scale.

    Raises:
        ConfigError: the pixels have another number of channels.
    """

    means: Tensor
    stds: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("means", mean), ("stds", std)):
            per_channel = torch.tensor(tuple(values), dtype=torch.float32)[:, None, None]
            self.register_buffer(name, per_channel, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the normalised images."""
        channels = pixels.shape[-3]
        for name, values in (("mean", self.means), ("std", self.stds)):
            if len(values) != channels:  # one value would do for all channels, unnoticed
                raise ConfigError(
                    f"data.{name}: {len(values)} values for images of {channels} channels "
                    "(data.in_chans); give one per channel."
                )
        return ((to_float(pixels) - self.means) / self.stds).contiguous()


class PretrainAugmentation:
    """Random resized crop and flips: [C, H, W] -> [C, height, width], uint8 or float32 in 0..1.

    `choose_crop` draws the part of a picture that is needed, before it is decoded; a call makes
    the image of it. Both draw from torch's global generator (see `seeded`).

    Args:
        image_size: (height, width) of the result, px.
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
        self.image_size = (height, width)
        self.crop_scale, self.crop_ratio = list(crop_scale), list(crop_ratio)
        self.horizontal_flip, self.vertical_flip = horizontal_flip, vertical_flip
        self.rotate90 = rotate90

    def least_side(self) -> int:
        """Return the px of a square picture whose smallest square crop has the image's size."""
        return math.ceil(max(self.image_size) / math.sqrt(self.crop_scale[0]))

    def choose_crop(self, height: int, width: int) -> Part:
        """Draw the part of a picture of height x width px that becomes the image."""
        picture = torch.empty(1, height, width, device="meta")
        top, left, rows, columns = RandomResizedCrop.get_params(
            picture, self.crop_scale, self.crop_ratio
        )
        return Part(top, left, rows, columns, self.image_size)

    def choose_small_crop(self, place: int) -> Choose:
        """Return how to take crop `place` of the SMALL_CROPS smallest that cover a picture."""

        def choose(height: int, width: int) -> Part:
            share = math.sqrt(self.crop_scale[0])
            rows, columns = (max(1, int(side * share)) for side in (height, width))
            down, right = divmod(place, SMALL_CROPS_PER_SIDE)
            last = SMALL_CROPS_PER_SIDE - 1
            top, left = (height - rows) * down // last, (width - columns) * right // last
            return Part(top, left, rows, columns, self.image_size)

        return choose

    def __call__(self, crop: Tensor) -> Tensor:
        """Return the image of a crop, which may have been decoded at less than its full size."""
        return self.augment(Decoded(crop)).image

    def augment(self, crop: Decoded) -> Decoded:
        """Return the image of a crop, as a call does, and which of its pixels have data."""
        return self.flip(resize_picture(crop, self.image_size))

    def flip(self, picture: Decoded) -> Decoded:
        """Return a picture mirrored and turned at random."""
        image, valid = picture
        if self.horizontal_flip and torch.rand(1) < 0.5:
            image, valid = image.flip(2), None if valid is None else valid.flip(2)
        if self.vertical_flip and torch.rand(1) < 0.5:
            image, valid = image.flip(1), None if valid is None else valid.flip(1)
        if self.rotate90:
            turns = int(torch.randint(4, ()))
            image = image.rot90(turns, dims=(1, 2))
            valid = None if valid is None else valid.rot90(turns, dims=(1, 2))
        return Decoded(image.contiguous(), None if valid is None else valid.contiguous())


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Return [C, H, W] uint8 or float32 as [C, *size], bicubic, smoothed where it shrinks."""
    return v2.functional.resize(
        image, list(size), interpolation=v2.InterpolationMode.BICUBIC, antialias=True
    )


def resize_picture(picture: Decoded, size: tuple[int, int]) -> Decoded:
    """Return a picture scaled as `resize_image` does; pixels made of holes are holes, and 0."""
    image, valid = picture
    if valid is None:
        return Decoded(resize_image(image, size))
    scaled = none_if_all(resize_valid(valid, size))
    return Decoded(fill(resize_image(image, size), scaled), scaled)


class EvaluationTransform:
    """Resize and centre crop: [C, H, W] uint8 or float32 -> [C, height, width] float32.

    Pixels without data become 0, as in training.

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
        self._normalise = Normalisation(mean, std)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the size, px, that an image of height x width px is scaled to."""
        if self.is_warping:
            return self.image_size
        covered = [int(side / self.crop_pct) for side in self.image_size]
        if height * covered[1] < width * covered[0]:  # relatively wider than what it must cover
            return covered[0], width * covered[0] // height
        return height * covered[1] // width, covered[1]

    def choose_part(self, height: int, width: int) -> Part:
        """Return the part of a picture of height x width px that is needed, whole as a rule.

        Of a strip that is scaled to many times the image's area it is the middle. What is larger
        than any picture that is decoded whole may be reduced on the way, to twice what is needed.
        """
        top, left, part_height, part_width = self._middle(height, width)
        limit = PIL.Image.MAX_IMAGE_PIXELS
        if limit is None or part_height * part_width <= limit:
            return Part(top, left, part_height, part_width, None)
        to_height, to_width = self._resized(part_height, part_width)
        return Part(top, left, part_height, part_width, (2 * to_height, 2 * to_width))

    def _middle(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return (top, left, height, width) of the middle of a strip; all of other pictures."""
        resized = self._resized(height, width)
        if self.is_warping or math.prod(resized) <= MOST_SCALED_PX:
            return 0, 0, height, width
        sides = []
        for side, scaled, wanted in zip((height, width), resized, self.image_size, strict=True):
            # What is cut out, and what bicubic scaling looks at beside it; the short side must
            # stay the one that decides the scale.
            covered = math.ceil(wanted / self.crop_pct) + STRIP_MARGIN_PX
            length = min(side, math.ceil(covered * side / scaled) + 4)
            sides.append(((side - length) // 2, length))
        (top, part_height), (left, part_width) = sides
        return top, left, part_height, part_width

    def __call__(self, image: Tensor) -> Tensor:
        """Return the image of a picture, or of the part of it that `choose_part` names."""
        return self.prepare(Decoded(image)).image

    def prepare(self, picture: Decoded) -> Decoded:
        """Return the image, as a call does and 0 where it has no data, and where that is."""
        image, valid = picture
        top, left, height, width = self._middle(*image.shape[-2:])
        place = (..., slice(top, top + height), slice(left, left + width))
        part = Decoded(image[place], None if valid is None else none_if_all(valid[place]))
        image, valid = resize_picture(part, self._resized(height, width))
        cropped = v2.functional.center_crop(image, list(self.image_size))
        if valid is not None:
            valid = none_if_all(v2.functional.center_crop(valid, list(self.image_size)))
        return Decoded(fill(self._normalise(cropped), valid), valid)
