"""The crops of one sample, one after another: a function of (seed, epoch, index, attempt)."""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from fcmae.data.augmentation import SMALL_CROPS, PretrainAugmentation
from fcmae.data.decoding import Decoded
from fcmae.data.holes import none_if_all, resize_valid
from fcmae.data.parts import Choose, Part
from fcmae.randomness import sample_seed, torch_seeded

RANDOM_CROPS = 10  # of a file with holes, before the smallest ones are tried one after another
ATTEMPTS = RANDOM_CROPS + SMALL_CROPS
HELD_VALUES = 2**24  # of a picture that is kept while crops of it are compared


class CropStream:
    """Crops of a picture: random ones, then the smallest that cover it, from a random one on.

    So it depends on the file and not on luck whether it is of use.

    Args:
        augmentation: how crops are drawn and changed.
        key: seed, epoch and index of the sample.
        in_chans: of its image.
        read: reads the part of the picture that it is given a choice for.
    """

    def __init__(
        self,
        augmentation: PretrainAugmentation,
        key: tuple[int, int, int],
        in_chans: int,
        read: Callable[[Choose], Decoded],
    ) -> None:
        self._augmentation = augmentation
        self._key = key
        self._in_chans = in_chans
        self._read = read
        self._size = (0, 0)
        self._first_small = 0
        self._whole: Decoded | None = None

    def draw(self, attempt: int) -> Decoded:
        """Return the image of crop `attempt` and which of its pixels have data."""
        with self._randomness(attempt):
            choose = self._choice(attempt)
            return self._augmentation.augment(self._crop(choose))

    def hold(self) -> bool:
        """Read the whole picture, unless it is large, so that further crops cost no reading.

        Returns whether it is held. A crop must have been drawn before.
        """
        height, width = self._size
        if height * width * self._in_chans > HELD_VALUES:
            return False
        self._whole = self._read(lambda *_: Part(0, 0, height, width, None))
        return True

    def valid(self, attempt: int) -> Tensor | None:
        """Return which pixels of the image of crop `attempt` have data, neither flipped nor turned.

        The picture must be held.
        """
        assert self._whole is not None
        if self._whole.valid is None:
            return None
        with self._randomness(attempt):
            top, left, height, width, _ = self._choice(attempt)(*self._size)
        valid = self._whole.valid[:, top : top + height, left : left + width]
        return none_if_all(resize_valid(valid, self._augmentation.image_size))

    def _randomness(self, attempt: int) -> contextlib.AbstractContextManager[None]:
        seed, epoch, index = self._key
        further = (attempt,) if attempt else ()
        return torch_seeded(sample_seed(seed, "augment", epoch, index, *further))

    def _choice(self, attempt: int) -> Choose:
        if attempt < RANDOM_CROPS:
            return self._augmentation.choose_crop
        if attempt == RANDOM_CROPS:
            self._first_small = int(torch.randint(SMALL_CROPS, ()))
        return self._augmentation.choose_small_crop((self._first_small + attempt) % SMALL_CROPS)

    def _crop(self, choose: Choose) -> Decoded:
        if self._whole is None:

            def choose_and_note(height: int, width: int) -> Part:
                self._size = (height, width)
                return choose(height, width)

            return self._read(choose_and_note)
        image, valid = self._whole
        top, left, height, width, _ = choose(*self._size)
        place = (slice(None), slice(top, top + height), slice(left, left + width))
        return Decoded(image[place], None if valid is None else none_if_all(valid[place]))
