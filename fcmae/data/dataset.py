"""Samples by key: everything about one depends on (seed, epoch, index) alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fcmae.data.augmentation import EvaluationTransform, PretrainAugmentation
from fcmae.data.cache import PixelCache
from fcmae.data.decoding import UndecodableImageError, decode_all
from fcmae.data.files import ImageList, Problem
from fcmae.data.parts import Choose
from fcmae.data.reading import Reading
from fcmae.errors import DataError
from fcmae.model.masking import draw_visible
from fcmae.randomness import sample_seed, seeded

MAX_STAND_INS = 10


class PretrainDataset(Dataset[dict[str, Any]]):
    """Images for pretraining with the patches that stay visible, by key (epoch, index).

    A sample is a dict of
        image: [C, H, W], cropped and flipped; uint8, or float32 in 0..1 of finer files. See
            `Normalisation` for what the model takes;
        visible: LongTensor [K], ascending patch indices;
        label: int, -1 without labels; path: str, the file that was read; index: int, as asked for;
        skipped: list of (path, reason), the files that could not be decoded on the way.

    An undecodable file is replaced by another image of the set, chosen by (seed, epoch, index),
    with the random numbers and the mask that the sample would have had anyway.
    """

    def __init__(
        self,
        images: ImageList,
        augmentation: PretrainAugmentation,
        *,
        seed: int,
        reading: Reading,
        num_patches: int,
        mask_ratio: float,
        cache: PixelCache | None = None,
    ) -> None:
        self.images = images
        self.augmentation = augmentation
        self.cache = cache
        self.seed = seed
        self.reading = reading
        self.num_patches = num_patches
        self.mask_ratio = mask_ratio

    def __len__(self) -> int:
        return len(self.images)

    def path_of(self, key: tuple[int, int]) -> str:
        """Return the path of the image that `key` asks for."""
        return self.images.paths[key[1]]

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Return the sample of `key` = (epoch, index).

        Raises:
            DataError: the file and all its stand-ins cannot be decoded.
        """
        epoch, index = key
        image, source, skipped = self._make_image(epoch, index)
        rng = torch.Generator().manual_seed(sample_seed(self.seed, "mask", epoch, index))
        return {
            "image": image,
            "visible": draw_visible(1, self.num_patches, self.mask_ratio, rng)[0],
            "label": _label(self.images, source),
            "path": self.images.paths[source],
            "index": index,
            "skipped": skipped,
        }

    def _make_image(self, epoch: int, index: int) -> tuple[Tensor, int, list[Problem]]:
        """Return the image, the index it came from, and the files that failed before."""
        skipped: list[Problem] = []
        source = index
        for attempt in range(MAX_STAND_INS + 1):
            try:
                with seeded(sample_seed(self.seed, "augment", epoch, index)):
                    crop = self._read(source, self.augmentation.choose_crop)
                    return self.augmentation(crop), source, skipped
            except UndecodableImageError as error:
                skipped.append((error.path, error.reason))
            chosen = sample_seed(self.seed, "stand-in", epoch, index, attempt)
            source = chosen % len(self.images)
        path, reason = skipped[0]
        raise DataError(
            f"data.path: {len(skipped)} images in a row cannot be decoded; the first is {path!r}: "
            f"{reason}. Remove or repair the files."
        )

    def _read(self, source: int, choose: Choose) -> Tensor:
        if self.cache is not None:
            return self.cache.read(source, choose)
        return decode_all(self.images.paths[source], self.reading, choose)


class EvaluationDataset(Dataset[dict[str, Any]]):
    """Every image once, without randomness, by index, for features and scores.

    A sample is a dict of image [C, H, W] as the transform returns it, label (int, -1 without
    labels), path, index, skipped as above, and is_usable: False for a file that cannot be
    decoded, whose image is all zeros and which `collate` leaves out.
    """

    def __init__(
        self,
        images: ImageList,
        transform: EvaluationTransform | Callable[[Tensor], Tensor],
        *,
        reading: Reading,
    ) -> None:
        self.images = images
        self.transform = transform
        self.reading = reading

    def __len__(self) -> int:
        return len(self.images)

    def path_of(self, key: int) -> str:
        """Return the path of image `key`."""
        return self.images.paths[key]

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.images.paths[index]
        skipped: list[Problem] = []
        try:
            choose = getattr(self.transform, "choose_part", None)
            image = decode_all(path, self.reading, choose)
        except UndecodableImageError as error:
            skipped.append((error.path, error.reason))
            any_size = (self.reading.in_chans, 32, 32)
            image = torch.zeros(any_size, dtype=torch.uint8)
        return {
            "image": self.transform(image),
            "label": _label(self.images, index),
            "path": path,
            "index": index,
            "skipped": skipped,
            "is_usable": not skipped,
        }


def _label(images: ImageList, index: int) -> int:
    return -1 if images.labels is None else images.labels[index]
