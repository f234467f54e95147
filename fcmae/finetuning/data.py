"""Labelled images for fine-tuning: which ones, how they are changed at random, how they load."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms.v2 import functional as images_to

from fcmae.data import (
    ImageList,
    Normalisation,
    PretrainAugmentation,
    PretrainDataset,
    open_images,
    open_train_and_validation,
    sample_seed,
    to_float,
)
from fcmae.data.parts import Part
from fcmae.errors import ConfigError
from fcmae.settings.finetune import AugmentConfig, FinetuneDataConfig


def open_labelled(data: FinetuneDataConfig, seed: int) -> tuple[ImageList, ImageList]:
    """Return training and validation images with labels; `seed` draws data.train_per_class.

    Raises:
        ConfigError: no images, no labels, other classes in val_path, or too few images of a class.
    """
    if data.val_path is None:
        try:
            train, validation = open_train_and_validation(
                data.path, data.label, data.val_share, data.split_seed
            )
        except ConfigError:
            with_labels(open_images(data.path, data.label), "data.path", data.path)
            raise
    else:
        train = with_labels(open_images(data.path, data.label), "data.path", data.path)
        validation = open_validation(data.val_path, train.classes)
    if data.train_per_class is not None:
        train = draw_per_class(train, data.train_per_class, seed)
    return train, validation


def open_validation(path: str, classes: Sequence[str] | None) -> ImageList:
    """Return the images of data.val_path, which must hold `classes` where these are known.

    Raises:
        ConfigError: no images, no labels, or other classes.
    """
    validation = with_labels(open_images(path, None, "data.val_path"), "data.val_path", path)
    assert validation.classes is not None
    if classes is not None and tuple(classes) != validation.classes:
        differing = sorted(set(classes) ^ set(validation.classes))
        raise ConfigError(
            f"data.val_path: {path!r} has the classes {', '.join(validation.classes)}, expected "
            f"{', '.join(classes)}; one side alone has {', '.join(differing)}."
        )
    return validation


def with_labels(images: ImageList, where: str, path: object) -> ImageList:
    """Return the images, or raise ConfigError when they have no labels."""
    if images.labels is None:
        raise ConfigError(
            f"{where}: {path!r} has no labels; expected one folder with a folder of images per "
            "class, two classes or more."
        )
    return images


def draw_per_class(images: ImageList, count: int, seed: int) -> ImageList:
    """Return `count` images of each class, drawn by `seed`, in their old order.

    Raises:
        ConfigError: a class has fewer.
    """
    assert images.labels is not None
    assert images.classes is not None
    chosen: list[int] = []
    for label, name in enumerate(images.classes):
        members = [index for index, other in enumerate(images.labels) if other == label]
        if len(members) < count:
            raise ConfigError(
                f"data.train_per_class: got {count}, but class {name!r} has {len(members)} "
                "training images; use fewer, or null for all."
            )
        rng = torch.Generator().manual_seed(sample_seed(seed, "labels", name))
        order = torch.randperm(len(members), generator=rng)[:count]
        chosen += [members[place] for place in order.tolist()]
    return images.select(sorted(chosen))


class FinetuneAugmentation:
    """Crop, flips, timm's colour policy, erasing: uint8 or float32 [C, H, W] -> float32.

    Draws from the global generators of torch, numpy and `random` (see `seeded`). A colour policy
    works on 8 bits; without one, finer pictures keep their depth.

    Args:
        augment: what to do.
        image_size: (height, width) of the result, px.
        mean, std: per channel on the 0..1 scale, taken away and divided by before erasing.

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
        self._colour = _colour_policy(augment, image_size, mean)
        self._erase = (
            RandomErasing(augment.reprob, mode="pixel", device="cpu") if augment.reprob else None
        )

    def choose_crop(self, height: int, width: int) -> Part:
        """Draw the part of a picture of height x width px that becomes the image."""
        return self._crop.choose_crop(height, width)

    def __call__(self, crop: Tensor) -> Tensor:
        """Return the image of a crop, which may have been decoded at less than its full size."""
        image = self._crop(crop)
        if self._colour is not None:
            if image.dtype != torch.uint8:
                image = (to_float(image) * 255).round().to(torch.uint8)
            image = images_to.pil_to_tensor(self._colour(images_to.to_pil_image(image)))
        image = self._normalise(image)
        return image if self._erase is None else self._erase(image)


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
    """

    def __init__(
        self,
        images: ImageList,
        augmentation: FinetuneAugmentation,
        *,
        seed: int,
        in_chans: int,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(
            images,
            augmentation,  # type: ignore[arg-type]
            seed=seed,
            in_chans=in_chans,
            num_patches=0,
            mask_ratio=0.0,
            value_range=value_range,
        )

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Return the sample of `key` = (epoch, index); raises DataError as PretrainDataset does."""
        epoch, index = key
        image, source, skipped = self._make_image(epoch, index)
        assert self.images.labels is not None
        return {
            "image": image,
            "label": self.images.labels[source],
            "path": self.images.paths[source],
            "index": index,
            "skipped": skipped,
        }
