"""How fast one core reads images for pretraining, against the bare decoder on the same files."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image

from fcmae.bench.subjects import PATCH
from fcmae.bench.timing import Times, time_in_turns
from fcmae.data import open_images
from fcmae.data.augmentation import PretrainAugmentation, default_mean_std
from fcmae.data.dataset import PretrainDataset

MAX_IMAGES = 32  # per round, spread over the folder
RATIO = 0.6


@dataclass(frozen=True)
class ReadingRates:
    """Seconds that a set of images takes in each round.

    Attributes:
        num_images: images in a round.
        megapixels: mean size of one.
        decoder: opening and decoding to RGB alone.
        samples: decoding, crop, flip, normalising and the mask, as in pretraining.
    """

    num_images: int
    megapixels: float
    decoder: Times
    samples: Times

    def describe(self) -> str:
        """Return both rates, and what share of the decoder's is left."""
        return (
            f"{self.num_images} images of {self.megapixels:.1f} megapixels, one core: "
            f"{self.num_images / self.decoder.median:.1f} images/s by the bare decoder, "
            f"{self.num_images / self.samples.median:.1f} images/s as samples "
            f"({self.decoder.ratio(self.samples):.0%})"
        )


def measure_reading(folder: str, image_size: int, repeats: int) -> ReadingRates:
    """Read images of a folder both ways, in turns.

    Raises:
        ConfigError, DataError: there are no images in the folder, or they cannot be decoded.
    """
    images = open_images([folder], None, where="--data")
    step = -(-len(images) // MAX_IMAGES)
    indices = range(0, len(images), step)
    mean, std = default_mean_std(3)
    dataset = PretrainDataset(
        images,
        PretrainAugmentation((image_size, image_size), mean=mean, std=std),
        seed=0,
        in_chans=3,
        num_patches=(image_size // PATCH) ** 2,
        mask_ratio=RATIO,
    )
    epochs = itertools.count()  # other crops in every round
    works: list[Callable[[], None]] = [
        partial(_decode, [images.paths[index] for index in indices]),
        lambda: _read(dataset, next(epochs), indices),
    ]
    decoder, samples = time_in_turns(works, repeats, torch.device("cpu"))
    sizes = []
    for index in indices:
        with Image.open(images.paths[index]) as picture:
            sizes.append(picture.width * picture.height / 1e6)
    return ReadingRates(len(indices), sum(sizes) / len(sizes), decoder, samples)


def _decode(paths: Sequence[str]) -> None:
    for path in paths:
        with warnings.catch_warnings(), Image.open(path) as picture:
            warnings.simplefilter("ignore")
            picture.convert("RGB")


def _read(dataset: PretrainDataset, epoch: int, indices: Sequence[int]) -> None:
    for index in indices:
        dataset[epoch, index]
