"""Samples by key: everything about one depends on (seed, epoch, index) alone."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fcmae.data.augmentation import EvaluationTransform, PretrainAugmentation
from fcmae.data.cache import PixelCache
from fcmae.data.crop_stream import ATTEMPTS, RANDOM_CROPS, CropStream
from fcmae.data.decoding import Decoded, UndecodableImageError, decode
from fcmae.data.files import ImageList, Problem
from fcmae.data.parts import Choose
from fcmae.data.reading import Reading
from fcmae.errors import DataError
from fcmae.model.masking import draw_visible, num_visible_patches, valid_patches
from fcmae.randomness import sample_seed

MAX_STAND_INS = 10
GOOD_CROPS = 4  # so many are drawn for one with enough to score, where each of them is read
FULL_SHARE, HALF_SHARE = 0.9, 0.5  # of a whole crop's hidden patches, which are enough to score


class PretrainDataset(Dataset[dict[str, Any]]):
    """Images for pretraining with the patches that stay visible, by key (epoch, index).

    A sample is a dict of
        image: [C, H, W], cropped and flipped; uint8, or float32 in 0..1 of finer files. See
            `Normalisation` for what the model takes;
        valid: bool [1, H, W], False where the image has no data and is 0; not there when all of
            it has;
        visible: LongTensor [K], ascending patch indices, all of them valid patches;
        label: int, -1 without labels; path: str, the file that was read; index: int, as asked for;
        skipped: list of (path, reason), the files that could not be used on the way.

    Images weigh the same in the loss, and one that is scored at few patches says little and makes
    the steps noisy. So while a crop of an image with holes leaves less than nine in ten of the
    patches that are scored of a whole one, others are drawn, by (seed, epoch, index, attempt), and
    of ten the fullest is taken (of four, in pictures too large to be held meanwhile). It must have
    K + 1 valid patches; in the end the smallest crops are tried all over the picture. A file
    without such a crop counts as undecodable. An undecodable file is replaced by another image of
    the set, chosen by (seed, epoch, index), with the random numbers that the sample would have had
    anyway.

    Args:
        images: the files.
        augmentation: how crops are drawn and changed.
        seed: of everything random.
        reading: how values become channels, and what marks pixels without data.
        num_patches, mask_ratio: of an image; they decide K.
        patch_size: px.
        min_valid: share of a patch's pixels that must have data for it to be valid.
        fullest_crops: as said above; False takes the first crop that leaves half of the patches to
            score, or the fullest of four.
        cache: where reduced pictures lie.
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
        patch_size: int = 32,
        min_valid: float = 0.5,
        fullest_crops: bool = True,
        cache: PixelCache | None = None,
    ) -> None:
        self.images = images
        self.augmentation = augmentation
        self.patch_size = patch_size
        self.min_valid = min_valid
        self.fullest_crops = fullest_crops
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
        picture, source, skipped = self._make_image(epoch, index)
        rng = torch.Generator().manual_seed(sample_seed(self.seed, "mask", epoch, index))
        patches = self._valid_patches(picture.valid)
        visible = draw_visible(1, self.num_patches, self.mask_ratio, rng, patches)[0]
        return sample_of(picture, self.images, source, index, skipped, visible=visible)

    def _make_image(self, epoch: int, index: int) -> tuple[Decoded, int, list[Problem]]:
        """Return the image, the index it came from, and the files that failed before."""
        skipped: list[Problem] = []
        source = self._first_choice(epoch, index)
        for attempt in range(MAX_STAND_INS + 1):
            try:
                return self._make_crop(source, epoch, index), source, skipped
            except UndecodableImageError as error:
                skipped.append((error.path, error.reason))
            chosen = sample_seed(self.seed, "stand-in", epoch, index, attempt)
            source = chosen % len(self.images)
        path, reason = skipped[0]
        raise DataError(
            f"data.path: {len(skipped)} images in a row cannot be used; the first is {path!r}: "
            f"{reason}. Remove or repair the files."
        )

    def _first_choice(self, epoch: int, index: int) -> int:
        """Return the image that a sample is made of, unless it cannot be used."""
        return index

    def _make_crop(self, source: int, epoch: int, index: int) -> Decoded:
        """Return the first crop of the sample's stream that has enough valid patches.

        Of those that may be used, none after the first few is waited for: the fullest is taken.
        """
        visible = num_visible_patches(self.num_patches, self.mask_ratio)
        share = FULL_SHARE if self.fullest_crops else HALF_SHARE
        least, enough = visible + 1, visible + math.ceil(share * (self.num_patches - visible))
        stream = CropStream(
            self.augmentation,
            (self.seed, epoch, index),
            self.reading.in_chans,
            lambda choose: self._read(source, choose),
        )
        most, fullest, waited_for, is_held = 0, 0, GOOD_CROPS, False
        picture: Decoded | None = None
        for attempt in range(ATTEMPTS):
            drawn = None if is_held else stream.draw(attempt)
            patches = self._valid_patches(stream.valid(attempt) if drawn is None else drawn.valid)
            count = self.num_patches if patches is None else int(patches.sum())
            if count > most:
                picture, fullest, most = drawn, attempt, count
            if most >= enough or (most >= least and attempt + 1 >= waited_for):
                return stream.draw(fullest) if picture is None else picture
            if attempt == 0 and self.fullest_crops and stream.hold():
                is_held, waited_for = True, RANDOM_CROPS
        raise UndecodableImageError(
            self.images.paths[source],
            f"none of {ATTEMPTS} crops has data in {least} of "
            f"{self.num_patches} patches, which mask.ratio {self.mask_ratio:g} and "
            f"mask.min_valid {self.min_valid:g} need",
        )

    def _valid_patches(self, valid: Tensor | None) -> Tensor | None:
        """Return bool [1, L], None for an image without holes."""
        if valid is None:
            return None
        return valid_patches(valid[None], self.patch_size, self.min_valid)

    def _read(self, source: int, choose: Choose) -> Decoded:
        if self.cache is not None:
            return self.cache.read(source, choose)
        return decode(self.images.paths[source], self.reading, choose)


class EvaluationDataset(Dataset[dict[str, Any]]):
    """Every image once, without randomness, by index, for features and scores.

    A sample is a dict of image [C, H, W] as the transform returns it, valid as above, label (int,
    -1 without labels), path, index, skipped as above, and is_usable: False for a file that cannot
    be decoded, whose image is all zeros and which `collate` leaves out.
    """

    def __init__(
        self,
        images: ImageList,
        transform: EvaluationTransform,
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

    def decoded(self, path: str) -> Decoded:
        """Return the picture, or the part of it that is needed; raises UndecodableImageError."""
        return decode(path, self.reading, self.transform.choose_part)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.images.paths[index]
        skipped: list[Problem] = []
        try:
            picture = self.decoded(path)
        except UndecodableImageError as error:
            skipped.append((error.path, error.reason))
            any_size = (self.reading.in_chans, 32, 32)
            picture = Decoded(torch.zeros(any_size, dtype=torch.uint8))
        picture, is_usable = self.transform.prepare(picture), not skipped
        return sample_of(picture, self.images, index, index, skipped, is_usable=is_usable)


def sample_of(
    picture: Decoded,
    images: ImageList,
    source: int,
    index: int,
    skipped: list[Problem],
    **more: Any,
) -> dict[str, Any]:
    """Return what a data set yields.

    Args:
        picture: as the transform returns it.
        images: of the data set.
        source: index of the image that it is.
        index: of the image that was asked for.
        skipped: files that could not be used on the way.
        more: of this data set.
    """
    sample = {
        "image": picture.image,
        "label": -1 if images.labels is None else images.labels[source],
        "path": images.paths[source],
        "index": index,
        "skipped": skipped,
        **more,
    }
    return sample if picture.valid is None else {**sample, "valid": picture.valid}
