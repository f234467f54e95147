"""Crops of pictures and their masks, changed alike; whole pictures for evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as change

from fcmae.data import (
    EvaluationDataset,
    EvaluationTransform,
    ImageList,
    Normalisation,
    PretrainDataset,
    Reading,
    UndecodableImageError,
    decode,
    sample_seed,
    seeded,
)
from fcmae.data.augmentation import resize_picture
from fcmae.data.dataset import sample_of
from fcmae.data.decoding import Decoded
from fcmae.data.files import Problem
from fcmae.data.holes import fill
from fcmae.data.label_masks import IGNORED, MaskClasses, read_mask_numbers
from fcmae.data.parts import Part
from fcmae.data.readers import UnreadableError
from fcmae.settings.segmentation import SegmentationAugmentConfig


class MaskedCrop(tuple[Tensor, Tensor, "Tensor | None"]):
    """A crop: image float32 [C, H, W], class numbers int16 [H, W], valid bool [1, H, W] or None."""


class SegmentationAugmentation:
    """Random scale, crop, flips and colours of a picture and its mask.

    Draws from torch's global generator (see `seeded`).

    Args:
        augment: what to do.
        image_size: (height, width) of the crops, px.
        normalise: of the image, last.
    """

    def __init__(
        self,
        augment: SegmentationAugmentConfig,
        image_size: tuple[int, int],
        normalise: Normalisation,
    ) -> None:
        self._augment = augment
        self._size = image_size
        self._normalise = normalise
        jitter = augment.color_jitter
        self._colour = v2.ColorJitter(jitter, jitter, jitter) if jitter else None

    def choose_crop(self, mask: np.ndarray, wanted: int | None) -> Part:
        """Draw the part of a picture that becomes the image, and how large it becomes.

        Args:
            mask: class numbers [H, W] of the picture.
            wanted: class of which a pixel of the crop is, if the picture has any.
        """
        low, high = self._augment.scale
        scale = math.exp(float(torch.empty(()).uniform_(math.log(low), math.log(high))))
        sides = []
        for side, length in zip(self._size, mask.shape, strict=True):
            sides.append(min(length, max(1, round(side / scale))))
        places = None if wanted is None else np.flatnonzero(mask == wanted)
        if places is not None and len(places):
            place = int(places[int(torch.randint(len(places), ()))])
            point = divmod(place, mask.shape[1])
            starts = [
                min(max(0, at - int(torch.randint(side, ()))), length - side)
                for at, side, length in zip(point, sides, mask.shape, strict=True)
            ]
        else:
            starts = [
                int(torch.randint(length - side + 1, ()))
                for side, length in zip(sides, mask.shape, strict=True)
            ]
        rows, columns = sides
        height, width = (
            min(limit, max(1, round(side * scale)))
            for side, limit in zip(sides, self._size, strict=True)
        )
        return Part(starts[0], starts[1], rows, columns, (height, width))

    def __call__(self, crop: Decoded, mask: np.ndarray, size: tuple[int, int]) -> MaskedCrop:
        """Return the image of a crop.

        Args:
            crop: of the picture, perhaps decoded at less than its full size.
            mask: class numbers of the same part at full size.
            size: (height, width) that both are scaled to, before the rest is padded: the image
                with 0 after normalisation, the mask with IGNORED.
        """
        image, valid = resize_picture(crop, size)
        pixels: Any = tv_tensors.Image(image)
        numbers: Any = tv_tensors.Mask(nearest(torch.from_numpy(mask), size)[None])
        has_data: Any = None if valid is None else tv_tensors.Mask(valid)

        def both(function: Any, *values: Any) -> None:
            nonlocal pixels, numbers, has_data
            pixels, numbers = function(pixels, *values), function(numbers, *values)
            has_data = None if has_data is None else function(has_data, *values)

        augment = self._augment
        if augment.horizontal_flip and torch.rand(1) < 0.5:
            both(change.horizontal_flip)
        if augment.vertical_flip and torch.rand(1) < 0.5:
            both(change.vertical_flip)
        if augment.rotate90:
            turns = int(torch.randint(4, ()))
            both(lambda tensor: type(tensor)(tensor.as_subclass(Tensor).rot90(turns, (1, 2))))
        if self._colour is not None:
            pixels = self._colour(pixels)
        image = self._normalise(pixels.as_subclass(Tensor))
        mask_numbers: Tensor = numbers.as_subclass(Tensor)
        if has_data is not None:
            valid = has_data.as_subclass(Tensor)
            image = fill(image, valid)
            mask_numbers = mask_numbers.masked_fill(~valid, IGNORED)
        return MaskedCrop(self._pad(image, mask_numbers[0], valid))

    def _pad(
        self, image: Tensor, numbers: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Put a picture that is smaller than the image at a random place in it."""
        free = [limit - side for limit, side in zip(self._size, image.shape[1:], strict=True)]
        if not any(free):
            return image.contiguous(), numbers.contiguous(), valid
        top, left = (int(torch.randint(room + 1, ())) for room in free)
        around = (left, free[1] - left, top, free[0] - top)
        padded = None if valid is None else F.pad(valid, around, value=False)
        return F.pad(image, around), F.pad(numbers, around, value=IGNORED), padded


def nearest(numbers: Tensor, size: tuple[int, int]) -> Tensor:
    """Return class numbers [H, W] at another size: those of the pixel at the same place."""
    places = [
        ((torch.arange(side) + 0.5) * length / side).long().clamp(max=length - 1)
        for side, length in zip(size, numbers.shape, strict=True)
    ]
    return numbers[places[0][:, None], places[1]]


class Pairs:
    """Images with their masks.

    Args:
        images: the files.
        masks: {image: mask}.
        classes: what the values of masks mean.
        pixels: int64 [N, C] of each image: pixels of each class; zeros where nobody knows.
    """

    def __init__(
        self,
        images: ImageList,
        masks: Mapping[str, str],
        classes: MaskClasses,
        pixels: np.ndarray,
    ) -> None:
        self.images = images
        self.masks = masks
        self.classes = classes
        self.pixels = pixels

    def read_mask(self, source: int) -> np.ndarray:
        """Return the class numbers int16 [H, W] of an image; raises UndecodableImageError."""
        image = self.images.paths[source]
        if image not in self.masks:
            raise UndecodableImageError(image, "it has no mask any more")
        return read_mask_numbers(self.masks[image], self.classes)


class SegmentationDataset(PretrainDataset):
    """Augmented crops by key (epoch, index), as FinetuneDataset, with "mask" in place of a label.

    A share of the samples is drawn by class: a class, each as often; a picture that has it; a crop
    around one of its pixels. All of it depends on (seed, epoch, index) alone.

    Args:
        pairs: images with masks.
        augmentation: how crops are drawn and changed.
        seed: of everything random.
        reading: of the images.
        class_balanced: share of the samples that are drawn by class.
    """

    def __init__(
        self,
        pairs: Pairs,
        augmentation: SegmentationAugmentation,
        *,
        seed: int,
        reading: Reading,
        class_balanced: float = 0.0,
    ) -> None:
        super().__init__(
            pairs.images,
            augmentation,  # type: ignore[arg-type]
            seed=seed,
            reading=reading,
            num_patches=0,
            mask_ratio=0.0,
        )
        self.pairs = pairs
        self._class_balanced = class_balanced
        self._known = np.flatnonzero(pairs.pixels.sum(axis=0))  # classes that some picture has
        self._pictures = [np.flatnonzero(pairs.pixels[:, c]) for c in self._known]

    def wanted_class(self, epoch: int, index: int) -> tuple[int, int] | None:
        """Return (class, image) of a sample that is drawn by class, None of any other."""
        if not (self._class_balanced and len(self._known)):
            return None
        rng = torch.Generator().manual_seed(sample_seed(self.seed, "class", epoch, index))
        if float(torch.rand((), generator=rng)) >= self._class_balanced:
            return None
        place = int(torch.randint(len(self._known), (), generator=rng))
        pictures = self._pictures[place]
        chosen = int(torch.randint(len(pictures), (), generator=rng))
        return int(self._known[place]), int(pictures[chosen])

    def _first_choice(self, epoch: int, index: int) -> int:
        wanted = self.wanted_class(epoch, index)
        return index if wanted is None else wanted[1]

    def _make_crop(self, source: int, epoch: int, index: int) -> Any:
        """Return one crop of an image and its mask."""
        augmentation: Any = self.augmentation
        numbers = self.pairs.read_mask(source)
        wanted = self.wanted_class(epoch, index)
        path = self.images.paths[source]
        with seeded(sample_seed(self.seed, "augment", epoch, index)):
            part = augmentation.choose_crop(numbers, None if wanted is None else wanted[0])

            def choose(height: int, width: int) -> Part:
                if (height, width) != numbers.shape:
                    raise UnreadableError(
                        f"is {height} x {width} px, and its mask {numbers.shape[0]} x "
                        f"{numbers.shape[1]} px"
                    )
                return part

            crop = decode(path, self.reading, choose)
            rows = slice(part.top, part.top + part.height)
            columns = slice(part.left, part.left + part.width)
            return augmentation(crop, numbers[rows, columns], part.scaled_to)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Return the sample of `key` = (epoch, index); raises DataError as PretrainDataset does."""
        epoch, index = key
        crop, source, skipped = self._make_image(epoch, index)
        image, mask, valid = crop  # type: ignore[misc]
        return sample_of(
            Decoded(image, valid), self.images, source, index, skipped, mask=mask, label=-1
        )


class WholePictures(EvaluationDataset):
    """Every picture as a whole with its mask, by index; is_usable as in EvaluationDataset.

    A sample is a dict of image [C, H, W] as decoded, mask int16 [H, W], and the rest as there.
    """

    def __init__(self, pairs: Pairs, reading: Reading) -> None:
        nothing = EvaluationTransform((32, 32), mean=(0.0,), std=(1.0,))
        super().__init__(pairs.images, nothing, reading=reading)
        self.pairs = pairs

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.images.paths[index]
        skipped: list[Problem] = []
        image, valid = torch.zeros(self.reading.in_chans, 1, 1), None
        numbers = torch.full((1, 1), IGNORED, dtype=torch.int16)
        try:
            mask = self.pairs.read_mask(index)
            image, valid = decode(path, self.reading)
            if image.shape[1:] != mask.shape:
                raise UndecodableImageError(
                    path,
                    f"is {image.shape[1]} x {image.shape[2]} px, and its mask {mask.shape[0]} x "
                    f"{mask.shape[1]} px",
                )
            numbers = torch.from_numpy(mask)
            if valid is not None:
                numbers = numbers.masked_fill(~valid[0], IGNORED)
        except UndecodableImageError as error:
            skipped.append((error.path, error.reason))
        own = {"mask": numbers, "label": -1, "is_usable": not skipped}
        return sample_of(Decoded(image, valid), self.images, index, index, skipped, **own)
