"""What a run is about to use, said and written before the first hour is spent on it.

Every file below the paths with what became of it (files.txt), the values of each band as the model
sees them, and one batch as a picture (first_batch.png).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fcmae.data import ImageList, SampleStream, to_float
from fcmae.data.accounting import account_sentence
from fcmae.data.reading_rules import reading_sentences
from fcmae.errors import DataError
from fcmae.evaluation.pictures import hatching
from fcmae.runs.durable import write_atomically, write_text

if TYPE_CHECKING:
    from fcmae.training.loop import TrainingLoop

MOST_IMAGES = 16  # of the first batch that are pictured
BANDS_SAID = 4  # more are in files.txt alone
GAP_PX = 4
GREY_STRIPES = (0.9, 0.3)  # of holes in pictures that are not RGB
KINDS_LISTED = 40


@dataclass(frozen=True)
class BandValues:
    """The values of the first images, one row per band.

    Attributes:
        raw: [C, 3] lowest, highest and mean on the 0..1 scale.
        normalised: [C, 4] lowest, highest, mean and standard deviation as the model gets them.
        num_images: that were looked at.
        num_with_holes: of them, with pixels without data; these do not count.
    """

    raw: np.ndarray
    normalised: np.ndarray
    num_images: int
    num_with_holes: int = 0

    def holes_sentence(self) -> str:
        """Say how many images have pixels without data."""
        return (
            f"{self.num_with_holes} of the first {self.num_images} images have pixels without "
            "data, hatched in first_batch.png: these are filled, and never scored."
        )

    def sentence(self) -> str:
        """Say the range of each band, or of all where they are many."""
        rows = zip(self.raw.tolist(), self.normalised.tolist(), strict=True)
        texts = [
            f"{low:.3f} to {high:.3f} (mean {mean:.3f}), normalised {a:.2f} to {b:.2f}"
            for (low, high, mean), (a, b, *_) in rows
        ]
        if len(texts) == 1:
            said = texts[0]
        elif len(texts) <= BANDS_SAID:
            said = "; ".join(f"band {number} {text}" for number, text in enumerate(texts, start=1))
        else:
            low, high = self.raw[:, 0].min(), self.raw[:, 1].max()
            said = f"{low:.3f} to {high:.3f} in {len(texts)} bands, each of which files.txt lists"
        return f"values of the first {self.num_images} images, black 0 and white 1: {said}."

    def table(self) -> str:
        """Return the rows as text."""
        header = ("band", "lowest", "highest", "mean", "low", "high", "mean", "std")
        rows = [
            [str(number), *(f"{value:.4f}" for value in (*raw, *normalised))]
            for number, (raw, normalised) in enumerate(
                zip(self.raw.tolist(), self.normalised.tolist(), strict=True), start=1
            )
        ]
        return "\n".join("".join(f"{cell:>10}" for cell in row) for row in (header, *rows))


def look_first(
    loop: TrainingLoop,
    held_out: ImageList,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    is_normalised: bool,
) -> None:
    """Say and write what the run uses, in the main process; the picture follows the first step.

    Changes no number of the run: samples depend on their key alone, and global generators stay.

    Args:
        loop: the run, its folder open.
        held_out: images kept apart, of the same files or of a path of their own.
        mean, std: per channel on the 0..1 scale.
        is_normalised: whether the samples' images are normalised already.
    """
    say_files(loop, held_out)
    values = None
    stream = SampleStream(len(loop.task.images), loop.config.train.seed, loop.effective_batch)
    keys = list(stream.samples(0, min(MOST_IMAGES, loop.effective_batch)))
    dataset = loop.task.create_dataset()
    for sentence in reading_sentences(dataset.reading, map(dataset.path_of, keys)):
        loop.say(sentence)
    if loop.progress.step == 0:
        try:
            drawn = [*map(dataset.__getitem__, keys)]
        except DataError:
            return  # the training meets it, and says it
        samples = [sample["image"] for sample in drawn]
        valid = [sample.get("valid") for sample in drawn]
        shape = -1, 1, 1
        centre, scale = torch.tensor(mean).view(shape), torch.tensor(std).view(shape)
        if is_normalised:
            raw = [image * scale + centre for image in samples]
        else:
            raw = [to_float(image) for image in samples]
            samples = [(image - centre) / scale for image in raw]
        values = _values(raw, samples, valid)
        loop.say(values.sentence())
        if values.num_with_holes:
            loop.say(values.holes_sentence())
        path = loop.folder.first_batch

        def draw() -> None:
            sheet = draw_sheet([hatched(*pair) for pair in zip(raw, valid, strict=True)])
            loop.attempt(lambda: write_atomically(path, sheet.save), path)

        loop.look_later("the picture of the first batch", draw)
    write_files(loop, held_out, values)


def say_files(loop: TrainingLoop, held_out: ImageList) -> None:
    """Say in one line what became of every file below the paths."""
    images = loop.task.images
    if images.accounting is None:
        return
    is_same = held_out.accounting is images.accounting
    num_held_out = len(held_out) if is_same else 0
    for note in images.accounting.notes:
        loop.say(note)
    loop.say(account_sentence(images.accounting, used=len(images), held_out=num_held_out))
    if not is_same and held_out.accounting is not None:
        sentence = account_sentence(held_out.accounting, used=0, held_out=len(held_out))
        loop.say(f"validation: {sentence}")


def write_files(loop: TrainingLoop, held_out: ImageList, values: BandValues | None = None) -> None:
    """Write files.txt: the counts, which add up, the kinds that are no images, the bands."""
    images = loop.task.images
    if images.accounting is None:
        return
    account = images.accounting
    is_same = held_out.accounting is account
    skipped = max(len(loop.skipped) - len(account.folders), len(account.problems))
    undecodable = skipped - len(account.problems)
    lines = [
        account_sentence(
            account,
            used=len(images) - undecodable,
            held_out=len(held_out) if is_same else 0,
            skipped=skipped,
        )
    ]
    if not is_same and held_out.accounting is not None:
        sentence = account_sentence(held_out.accounting, used=0, held_out=len(held_out))
        lines.append(f"validation: {sentence}")
    lines += [f"images.jsonl lists what is used, {loop.folder.skipped_files.name} what is skipped."]
    if account.no_images:
        lines += ["", "Files that are no images:"]
        order = account.no_images.most_common()
        lines += [f"{count:>12,}  {kind}" for kind, count in order[:KINDS_LISTED]]
        if rest := sum(count for _, count in order[KINDS_LISTED:]):
            lines.append(f"{rest:>12,}  of {len(order) - KINDS_LISTED} other kinds")
    path = loop.folder.files
    if values is not None:
        lines += ["", values.sentence(), "", values.table()]
    elif path.is_file():  # a later look has counts alone
        _, mark, bands = path.read_text(encoding="utf-8").partition("\nvalues of the first ")
        lines += ["", mark.strip() + " " + bands.rstrip()] if mark else []
    loop.attempt(lambda: write_text(path, "\n".join(lines) + "\n"), path)


def _values(
    raw: Sequence[Tensor], normalised: Sequence[Tensor], valid: Sequence[Tensor | None]
) -> BandValues:
    def flat(images: Sequence[Tensor]) -> Tensor:
        pixels = [
            image.flatten(1) if mask is None or not mask.any() else image[:, mask[0]]
            for image, mask in zip(images, valid, strict=True)
        ]
        return torch.cat(pixels, dim=1)  # [C, all pixels with data]

    values, seen = flat(raw), flat(normalised)
    spans = (values.amin(1), values.amax(1), values.mean(1))
    more = (seen.amin(1), seen.amax(1), seen.mean(1), seen.std(1))
    num_with_holes = sum(mask is not None for mask in valid)
    return BandValues(
        torch.stack(spans, 1).numpy(), torch.stack(more, 1).numpy(), len(raw), num_with_holes
    )


def hatched(image: Tensor, valid: Tensor | None) -> Tensor:
    """Return an image [C, H, W] with stripes where it has no data; grey ones unless it is RGB."""
    if valid is None:
        return image
    stripes = torch.from_numpy(hatching(*image.shape[1:])).float().permute(2, 0, 1)
    if len(image) != len(stripes):  # their colours differ little in brightness
        brightness = stripes.mean(dim=0, keepdim=True)
        is_light = brightness > brightness.mean()
        light, dark = GREY_STRIPES
        stripes = torch.where(is_light, light, dark)
    return torch.where(valid, image, stripes)


def draw_sheet(images: Sequence[Tensor]) -> Image.Image:
    """Return images [C, H, W] in 0..1 in a grid: grey or colours, else every band by itself."""
    bands = images[0].shape[0]
    shown = list(images)
    columns = math.ceil(math.sqrt(len(shown)))
    if bands not in (1, 3):
        shown = [image[band : band + 1] for image in images for band in range(bands)]
        columns = bands
    height, width = images[0].shape[1:]
    rows = -(-len(shown) // columns)
    size = (columns * (width + GAP_PX) - GAP_PX, rows * (height + GAP_PX) - GAP_PX)
    sheet = Image.new("RGB", size, "white")
    for place, image in enumerate(shown):
        row, column = divmod(place, columns)
        pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        sheet.paste(picture.convert("RGB"), (column * (width + GAP_PX), row * (height + GAP_PX)))
    return sheet
