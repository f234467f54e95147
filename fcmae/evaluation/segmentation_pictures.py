"""Draws what a segmentation says of pictures: image, truth, prediction and error side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fcmae.data import to_float
from fcmae.data.decoding import Decoded
from fcmae.data.label_masks import IGNORED
from fcmae.evaluation.pictures import new_figure, printable, save_figure

MOST_SIDE_PX = 384  # of a picture in the sheet
CELL_INCHES = 2.6
DPI = 120
MOST_LEGEND = 24  # classes
OVERLAY = 0.55  # opacity of a class over the picture
RIGHT, WRONG, UNKNOWN = (0.93, 0.95, 0.93), (0.80, 0.16, 0.14), (0.6, 0.6, 0.6)
COLUMNS = ("image", "truth", "prediction", "error (red)")
_FIRST_COLOURS = (
    (0.55, 0.57, 0.60),
    (0.90, 0.30, 0.10),
    (0.10, 0.45, 0.85),
    (0.15, 0.65, 0.30),
    (0.95, 0.75, 0.10),
    (0.60, 0.25, 0.70),
    (0.10, 0.75, 0.75),
    (0.95, 0.50, 0.70),
)


class SegmentedPicture(NamedTuple):
    """A picture at the size in which it is drawn.

    colours: float32 [H, W, 3] of 0..1.
    truth, prediction: class numbers [H, W].
    name: of its file.
    iou: its mean IoU.
    """

    colours: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    name: str
    iou: float


def class_colours(count: int) -> np.ndarray:
    """Return a colour per class, float [C, 3] of 0..1: the same for the same number."""
    golden = 0.61803398875
    colours: list[tuple[float, ...]] = list(_FIRST_COLOURS[:count])
    for number in range(len(colours), count):
        hue, level = number * golden % 1, 0.55 + 0.4 * (number % 3) / 2
        channel = [abs((hue * 6 + shift) % 6 - 3) - 1 for shift in (0, 4, 2)]
        colours.append(tuple(level * (0.25 + 0.75 * min(max(value, 0), 1)) for value in channel))
    return np.array(colours, np.float64).reshape(-1, 3)


def segmented(
    picture: Decoded, truth: torch.Tensor, prediction: torch.Tensor, name: str, iou: float
) -> SegmentedPicture:
    """Return a picture reduced for the sheet by leaving pixels out."""
    step = max(1, -(-max(truth.shape) // MOST_SIDE_PX))
    image = to_float(picture.image[:, ::step, ::step])
    image = image[:3] if image.shape[0] >= 3 else image.mean(dim=0, keepdim=True).expand(3, -1, -1)
    return SegmentedPicture(
        image.permute(1, 2, 0).numpy(),
        truth[::step, ::step].numpy(),
        prediction[::step, ::step].numpy(),
        name,
        iou,
    )


def draw_segmentations(
    pictures: Sequence[SegmentedPicture], classes: Sequence[str], path: Path
) -> Path:
    """Write a PNG with a row per picture; return `path`."""
    colours = class_colours(len(classes))
    from matplotlib.patches import Patch

    height = (CELL_INCHES + 0.25) * len(pictures) + 0.8
    figure = new_figure((4 * CELL_INCHES, height), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(pictures), 4, squeeze=False)
    for row, picture in zip(grid, pictures, strict=True):
        for axes, title, cell in zip(row, COLUMNS, _cells(picture, colours), strict=True):
            axes.imshow(cell, interpolation="nearest", aspect="equal")
            axes.set_axis_off()
            axes.set_title(title, fontsize=8)
        name = printable(Path(picture.name).name)
        row[0].set_title(f"{name[:40]}\nmean IoU {100 * picture.iou:.1f} %", fontsize=8)
    shown = [
        Patch(color=tuple(colour), label=printable(name))
        for name, colour in zip(classes[:MOST_LEGEND], colours, strict=False)
    ]
    figure.legend(handles=shown, loc="outside lower center", ncols=min(6, len(shown)), fontsize=8)
    save_figure(figure, path)
    return path


def _cells(picture: SegmentedPicture, colours: np.ndarray) -> list[np.ndarray]:
    """Return image, truth, prediction and error, each [H, W, 3]."""
    grey = picture.colours.mean(axis=2, keepdims=True)

    def laid(numbers: np.ndarray) -> np.ndarray:
        cell = OVERLAY * colours[numbers.clip(0)] + (1 - OVERLAY) * grey
        return np.where((numbers == IGNORED)[..., None], np.array(UNKNOWN), cell)

    is_wrong = (picture.truth != picture.prediction)[..., None]
    error = np.where(is_wrong, np.array(WRONG), np.array(RIGHT) * (0.6 + 0.4 * grey))
    error = np.where((picture.truth == IGNORED)[..., None], np.array(UNKNOWN), error)
    return [picture.colours, laid(picture.truth), laid(picture.prediction), error]
