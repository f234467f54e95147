"""How fast one core reads images for pretraining, against the bare decoder on the same files."""

import itertools
import math
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image

from fcmae.data import (
    ImageList,
    PixelCache,
    PretrainAugmentation,
    PretrainDataset,
    Reading,
    decode_all,
    open_images,
    seeded,
)
from fcmae.data.augmentation import resize_image
from fcmae.data.parts import JPEG_REDUCTIONS, Part, cut
from fcmae.machine.bench.subjects import PATCH, Subject, prepare
from fcmae.machine.bench.timing import Times, time_in_turns

ROUND_IMAGES = 32  # spread over the folder, or fewer files read several times: crops differ
STEP_IMAGES = 4
RATIO = 0.6
RGB = Reading(in_chans=3)


@dataclass(frozen=True)
class ReadingRates:
    """Seconds that a set of images takes in each round.

    Attributes:
        num_images: files.
        passes: how often each is read in a round.
        megapixels: mean size of one.
        decoder: opening and decoding whole images to RGB alone.
        samples: decoding, crop, flip and the mask, as in pretraining.
        cached: the same with data.cache.
        steps: a pretraining step on STEP_IMAGES images, by model.
        likeness: PSNR, dB, of crops that were decoded at a reduced size, to the full decoding.
    """

    num_images: int
    passes: int
    megapixels: float
    decoder: Times
    samples: Times
    cached: Times
    steps: dict[str, Times]
    likeness: list[float]

    def describe(self) -> str:
        """Return all rates, and what share of the decoder's they are."""
        reading = {
            "bare decoder": self.decoder,
            "samples": self.samples,
            "samples from data.cache": self.cached,
        }
        lines = [
            f"{self.num_images} images of {self.megapixels:.1f} megapixels, each read "
            f"{self.passes} times in a round, medians of {len(self.decoder.rounds)} rounds:"
        ]
        for name, times in reading.items():
            rate = self.num_images * self.passes / times.median
            share = self.decoder.ratio(times)
            lines.append(_line(name, rate, times, f"{share:5.0%} of the bare decoder"))
        for name, times in self.steps.items():
            lines.append(_line(f"steps of {name}", STEP_IMAGES / times.median, times, ""))
        lines.append(
            f"{len(self.likeness)} of {ROUND_IMAGES} crops are decoded at a reduced size"
            + (
                f"; PSNR to the full size {min(self.likeness):.0f} dB at least, "
                f"{statistics.mean(self.likeness):.0f} dB in the mean."
                if self.likeness
                else "."
            )
        )
        return "\n".join(lines)


def _line(name: str, rate: float, times: Times, remark: str) -> str:
    spread = f"(spread {times.spread:.0%})"
    return f"  {name:28} {rate:8.1f} images/s {spread:13} {remark}".rstrip()


def measure_reading(
    folder: str, models: Sequence[str], image_size: int, repeats: int
) -> ReadingRates:
    """Read images of a folder in all ways, and train on made ones, in turns.

    Raises:
        ConfigError, DataError: there are no images in the folder, or they cannot be decoded.
    """
    images = open_images([folder], None, where="--data")
    step = -(-len(images) // ROUND_IMAGES)
    images = images.select(range(0, len(images), step))
    passes = -(-ROUND_IMAGES // len(images))
    with tempfile.TemporaryDirectory(prefix="fcmae-bench-") as cache:
        works: list[Callable[[], None]] = [
            partial(_decode, list(images.paths) * passes),
            *(_reading(images, passes, image_size, where) for where in (None, cache)),
            *(_training_step(name, image_size) for name in models),
        ]
        decoder, samples, cached, *steps = time_in_turns(works, repeats, torch.device("cpu"))
    sizes = []
    for path in images.paths:
        with Image.open(path) as picture:
            sizes.append(picture.width * picture.height / 1e6)
    steps_of = dict(zip(models, steps, strict=True))
    megapixels = sum(sizes) / len(sizes)
    return ReadingRates(
        len(images),
        passes,
        megapixels,
        decoder,
        samples,
        cached,
        steps_of,
        _likeness(list(images.paths) * passes, image_size),
    )


def _decode(paths: Sequence[str]) -> None:
    for path in paths:
        with warnings.catch_warnings(), Image.open(path) as picture:
            warnings.simplefilter("ignore")
            picture.convert("RGB")


def _reading(
    images: ImageList, passes: int, image_size: int, cache_folder: str | None
) -> Callable[[], None]:
    """Return what reads all images `passes` times as samples, with other crops every time."""
    cache = None
    augmentation = PretrainAugmentation((image_size, image_size))
    if cache_folder is not None:
        cache = PixelCache(cache_folder, images.paths, side=augmentation.least_side(), reading=RGB)
        cache.fill(0, print)
    dataset = PretrainDataset(
        images,
        augmentation,
        seed=0,
        reading=RGB,
        num_patches=(image_size // PATCH) ** 2,
        mask_ratio=RATIO,
        cache=cache,
    )
    epochs = itertools.count()

    def read() -> None:
        for epoch in itertools.islice(epochs, passes):
            for index in range(len(images)):
                dataset[epoch, index]

    return read


def _likeness(paths: Sequence[str], image_size: int) -> list[float]:
    """Return the PSNR of crops decoded at a reduced size, to the same places decoded in full."""
    augmentation = PretrainAugmentation((image_size, image_size))
    values = []
    for number, path in enumerate(paths[:ROUND_IMAGES]):
        chosen: list[Part] = []

        def choose(height: int, width: int, chosen: list[Part] = chosen) -> Part:
            crop = augmentation.choose_crop(height, width)
            grid = max(JPEG_REDUCTIONS)  # elsewhere a crop moves by half a reduced pixel at most
            top, left, rows, columns = (side // grid * grid for side in crop[:4])
            chosen.append(Part(top, left, rows, columns, crop.scaled_to))
            return chosen[0]

        with seeded(number):
            part = decode_all(path, RGB, choose)
        full = cut(decode_all(path, RGB), lambda *_, chosen=chosen: chosen[0])
        if part.shape != full.shape:
            pair = [resize_image(crop, (image_size, image_size)).float() for crop in (part, full)]
            error = (pair[0] - pair[1]).square().mean().item()
            values.append(10 * math.log10(255**2 / max(error, 1e-9)))
    return values


def _training_step(model_name: str, image_size: int) -> Callable[[], None]:
    subject = Subject(
        model=model_name,
        contender="native",
        ratio=RATIO,
        precision="fp32",
        part="step",
        batch_size=STEP_IMAGES,
        image_size=image_size,
    )
    return prepare(subject, torch.device("cpu"))
