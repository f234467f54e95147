"""Labelled images for fine-tuning: which ones, how they are changed at random, how they load."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms.v2 import functional as images_to

from fcmae.data import (
    EvaluationTransform,
    ImageList,
    Normalisation,
    PretrainAugmentation,
    PretrainDataset,
    Reading,
    sample_seed,
    seeded,
    to_float,
)
from fcmae.data.dataset import sample_of
from fcmae.data.decoding import Decoded
from fcmae.data.holes import fill
from fcmae.data.parts import Part
from fcmae.errors import ConfigError
from fcmae.settings.finetune import AugmentConfig

EVALUATED_SHARE = 0.5


class FinetuneAugmentation:
    """Crop, flips, timm's colour policy, erasing: uint8 or float32 [C, H, W] -> float32.

    Draws from the global generators of torch, numpy and `random` (see `seeded`). A colour policy
    works on 8 bits; without one, finer pictures keep their depth.

    Args:
        augment: what to do.
        image_size: (height, width) of the result, px.
        mean, std: per channel on the 0..1 scale, taken away and divided by before erasing.

    Attributes:
        colour: timm's random changes between the crop and the scaling, or None.

    Raises:
        ConfigError: rand_augment is no policy of timm.
    """

    def __init__(
        self,
        augment: AugmentConfig,
        image_size: tuple[int, int],
        *,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self._normalise = Normalisation(mean, std)
        self._crop = PretrainAugmentation(
            image_size,
            crop_scale=augment.crop_scale,
            horizontal_flip=augment.horizontal_flip,
            vertical_flip=augment.vertical_flip,
            rotate90=augment.rotate90,
        )
        self.colour = _colour_policy(augment, image_size, mean)
        self._erase = (
            RandomErasing(augment.reprob, mode="pixel", device="cpu") if augment.reprob else None
        )

    def choose_crop(self, height: int, width: int) -> Part:
        """Draw the part of a picture of height x width px that becomes the image."""
        return self._crop.choose_crop(height, width)

    def __call__(self, crop: Tensor) -> Tensor:
        """Return the image of a crop, which may have been decoded at less than its full size."""
        return self.augment(Decoded(crop)).image

    def flip(self, picture: Decoded) -> Decoded:
        """Return a picture mirrored and turned at random, and changed no further."""
        return self._crop.flip(picture)

    def augment(self, crop: Decoded) -> Decoded:
        """Return the image of a crop; pixels without data are 0, as in pretraining.

        A colour policy may move pixels, and gets them in the colour that becomes 0.
        """
        image, valid = self._crop.augment(crop)
        if valid is not None and self.colour is not None:
            mean = self._normalise.means
            scaled = mean if image.is_floating_point() else (255 * mean).round()
            image = torch.where(valid, image, scaled.to(image.dtype))
        if self.colour is not None:
            if image.dtype != torch.uint8:
                image = (to_float(image) * 255).round().to(torch.uint8)
            image = images_to.pil_to_tensor(self.colour(images_to.to_pil_image(image)))
        image = self._normalise(image)
        if self.colour is None:
            image = fill(image, valid)
        return Decoded(image if self._erase is None else self._erase(image), valid)


def _colour_policy(
    augment: AugmentConfig, image_size: tuple[int, int], mean: Sequence[float]
) -> Any:
    """Return timm's random changes between the crop and the scaling, or None."""
    if augment.rand_augment is None and augment.color_jitter == 0:
        return None
    try:
        _, colour, _ = create_transform(
            image_size,
            is_training=True,
            separate=True,
            auto_augment=augment.rand_augment,
            color_jitter=augment.color_jitter,
            interpolation="bicubic",
            mean=tuple(mean),
            std=(1.0,) * len(mean),
        )
    except (AssertionError, ValueError, KeyError) as error:
        raise ConfigError(
            f"augment.rand_augment: {augment.rand_augment!r} is no policy of timm; expected "
            "something like rand-m9-mstd0.5-inc1, or null."
        ) from error
    for transform in colour.transforms:
        sub_policies = getattr(transform, "policy", [getattr(transform, "ops", [])])
        for op in itertools.chain.from_iterable(sub_policies):
            if op.name.startswith("Posterize"):
                op.aug_fn = _KeepOneBit(op.aug_fn)
    return colour


class _KeepOneBit:
    """Posterises to one bit where timm's strongest setting asks for none, which Pillow refuses."""

    def __init__(self, posterize: Any) -> None:
        self._posterize = posterize

    def __call__(self, picture: Any, bits: int, **kwargs: Any) -> Any:
        return self._posterize(picture, max(bits, 1), **kwargs)


class FinetuneDataset(PretrainDataset):
    """Augmented training images by key (epoch, index); nothing is hidden.

    A sample is a dict of image, label, path, index and skipped as in PretrainDataset. The image
    that stands in for an undecodable file brings its own label.

    Args:
        images: with labels.
        augmentation: how crops are drawn and changed.
        seed: of everything random.
        reading: how values become channels.
        evaluated: prepares a share EVALUATED_SHARE of the images instead, which are then flipped
            alone; None: all are crops.
    """

    def __init__(
        self,
        images: ImageList,
        augmentation: FinetuneAugmentation,
        *,
        seed: int,
        reading: Reading,
        evaluated: EvaluationTransform | None = None,
    ) -> None:
        self._evaluated = evaluated
        super().__init__(
            images,
            augmentation,  # type: ignore[arg-type]
            seed=seed,
            reading=reading,
            num_patches=0,
            mask_ratio=0.0,
        )

    def _make_crop(self, source: int, epoch: int, index: int) -> Decoded:
        """Return one random crop: nothing is hidden, so that no number of patches is needed."""
        with seeded(sample_seed(self.seed, "augment", epoch, index)):
            if self._evaluated is not None and float(torch.rand(())) < EVALUATED_SHARE:
                picture = self._read(source, self._evaluated.choose_part)
                return self.augmentation.flip(self._evaluated.prepare(picture))
            return self.augmentation.augment(self._read(source, self.augmentation.choose_crop))

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Return the sample of `key` = (epoch, index); raises DataError as PretrainDataset does."""
        epoch, index = key
        picture, source, skipped = self._make_image(epoch, index)
        return sample_of(picture, self.images, source, index, skipped)
