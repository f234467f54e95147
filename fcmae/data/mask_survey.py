"""Reads every mask once, before training: sizes, values, and how many pixels each class has."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fcmae.data.decoding import UndecodableImageError, describe_image
from fcmae.data.files import Problem
from fcmae.data.label_masks import (
    IGNORED,
    MOST_VALUES,
    MaskClasses,
    as_value,
    code_of,
    count_codes,
    read_codes,
    shown,
)
from fcmae.data.reading import Reading
from fcmae.errors import CheckpointError, DataError
from fcmae.runs.durable import write_text

MOST_THREADS = 8
SHOWN_VALUES = 6


@dataclasses.dataclass(frozen=True)
class MaskSurvey:
    """What all masks hold.

    Attributes:
        classes: what their values mean.
        pixels: {image: int64 [C]} pixels of each class.
    """

    classes: MaskClasses
    pixels: Mapping[str, np.ndarray]

    def counts(self, paths: Iterable[str]) -> np.ndarray:
        """Return the pixels of each class, int64 [N, C], 0 for an image that is not known."""
        none = np.zeros(len(self.classes), np.int64)
        return np.array([self.pixels.get(path, none) for path in paths]).reshape(-1, len(none))

    def shares(self, paths: Iterable[str]) -> list[float]:
        """Return the share of each class among all pixels that have one."""
        total = self.counts(paths).sum(axis=0)
        return (total / max(1, total.sum())).tolist()

    def sentence(self, paths: Sequence[str]) -> str:
        """Say how many pixels each class has."""
        counts = self.counts(paths)
        shares = [
            f"{name} {100 * share:.2f} % in {int(seen)}"
            for name, share, seen in zip(
                self.classes.names, self.shares(paths), (counts > 0).sum(axis=0), strict=True
            )
        ]
        listed = ", ".join(shares[:20]) + (f" and {len(shares) - 20} more" * (len(shares) > 20))
        return f"pixels of each class and training images that have it: {listed}."

    def write(self, file: Path, images: Sequence[Sequence[str]]) -> None:
        """Record it for lists of images, whose order is what a continued run knows them by."""
        classes = self.classes
        lists = [self.counts(paths).tolist() for paths in images]
        content = {
            "classes": list(classes.names),
            "values": list(classes.values),
            "ignored": classes.ignored,
            "pixels": lists,
        }
        write_text(file, json.dumps(content) + "\n")


def read_survey(file: Path, images: Sequence[Sequence[str]]) -> MaskSurvey:
    """Return what `MaskSurvey.write` recorded, for the same images where they are now.

    Raises:
        CheckpointError: it is missing, damaged, or of other images.
    """
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        classes = MaskClasses(
            tuple(content["classes"]),
            tuple(map(as_value, content["values"])),
            as_value(content["ignored"]),
        )
        pixels = {
            path: np.array(counts, np.int64)
            for paths, rows in zip(images, content["pixels"], strict=True)
            for path, counts in zip(paths, rows, strict=True)
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file}: what the run knows of its masks cannot be read ({error}); restore the file, "
            "or start again in another run.dir."
        ) from error
    return MaskSurvey(classes, pixels)


def survey_masks(
    masks: Mapping[str, str],
    classes: MaskClasses | None,
    ignore_index: Any,
    reading: Reading,
) -> tuple[MaskSurvey, list[Problem]]:
    """Return what the masks hold, and the images or masks that cannot be read.

    Args:
        masks: {image: mask}.
        classes: what values mean; None: each value is a class.
        ignore_index: the value of pixels without a class, or None.
        reading: of the images, whose sizes are compared.

    Raises:
        DataError: a mask of another size than its image, or with a value that is no class's; all
            pixels are of one class.
    """
    are_coloured = isinstance(ignore_index, list) if classes is None else classes.are_coloured

    def look(item: tuple[str, str]) -> dict[int, int] | Problem | str:
        image, mask = item
        try:
            about = describe_image(image, reading)
            codes = read_codes(mask, are_coloured=are_coloured)
        except UndecodableImageError as error:
            return error.path, error.reason
        if codes.shape != (about.height, about.width):
            return (
                f"is {codes.shape[0]} x {codes.shape[1]} px, and its image {image!r} "
                f"{about.height} x {about.width} px"
            )
        return count_codes(codes)

    threads = min(MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(look, masks.items()))
    problems = [one for one in found if isinstance(one, tuple)]
    faults = [(mask, one) for mask, one in zip(masks.values(), found, strict=True)]
    sizes = [(mask, one) for mask, one in faults if isinstance(one, str)]
    if sizes:
        raise _fault(sizes, "give each image a mask of its own size")
    histograms = {
        image: one for image, one in zip(masks, found, strict=True) if isinstance(one, dict)
    }
    if not histograms:
        path, reason = problems[0]
        raise DataError(
            f"data.masks: none of the {len(masks)} masks can be used; the first is {path!r}: "
            f"{reason}."
        )
    if classes is None:
        values = sorted({code for one in histograms.values() for code in one})
        if len(values) > MOST_VALUES or are_coloured:
            raise DataError(
                f"data.classes: not given, and masks hold {len(values):,} different values; name "
                "the classes, such as {crack: [255, 0, 0], rest: [0, 0, 0]}."
            )
        classes = MaskClasses.of_values(values, ignore_index)
    unknown = [
        (masks[image], classes.unknown(code, count))
        for image, one in histograms.items()
        for code, count in one.items()
        if classes.number_of(code) is None
    ]
    if unknown:
        raise _fault(
            unknown, f"{_known(classes)}; add it to data.classes, or name it as data.ignore_index"
        )
    survey = MaskSurvey(classes, {n: _of_classes(one, classes) for n, one in histograms.items()})
    _check_several(survey)
    return survey, problems


def _fault(faults: list[tuple[str, str]], advice: str) -> DataError:
    mask, reason = faults[0]
    others = len({name for name, _ in faults}) - 1
    more = f" ({others} more masks are like it)" if others else ""
    return DataError(f"data.masks: {mask!r} {reason}{more}; {advice}.")


def _known(classes: MaskClasses) -> str:
    """Say which values are known."""
    pairs = [
        f"{shown(code_of(value), classes.are_coloured)} ({name})"
        for name, value in zip(classes.names, classes.values, strict=True)
    ]
    listed = ", ".join(pairs[:SHOWN_VALUES]) + ", .." * (len(pairs) > SHOWN_VALUES)
    return f"expected {listed}"


def _of_classes(histogram: Mapping[int, int], classes: MaskClasses) -> np.ndarray:
    pixels = np.zeros(len(classes), np.int64)
    for code, count in histogram.items():
        number = classes.number_of(code)
        if number is not None and number != IGNORED:
            pixels[number] += count
    return pixels


def _check_several(survey: MaskSurvey) -> None:
    """Raise DataError when there is nothing to tell apart."""
    total = survey.counts(survey.pixels).sum(axis=0)
    if (total > 0).sum() < 2:
        name = survey.classes.names[int(total.argmax())]
        raise DataError(
            f"data.masks: all pixels of all masks that have a class are of one class only, "
            f"{name!r}; expected pixels of two or more of {', '.join(survey.classes.names)}."
        )
