"""Scores of a segmentation: IoU and Dice per class, with intervals over the images."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fcmae.evaluation.classification import confusion_matrix, draw_confusion
from fcmae.evaluation.statistics import bootstrap_interval

NOTE = (
    "Intervals: 95 %, bootstrap over the images. IoU and Dice of all pixels together; the mean is "
    "over classes that occur."
)


def confusion_of(predictions: Tensor, truth: Tensor, num_classes: int, ignored: int) -> Tensor:
    """Count pixels by class: LongTensor [C, C] on the CPU, rows the truth, columns predictions.

    Args:
        predictions: whole numbers below C.
        truth: the same in this shape, or `ignored`.
        num_classes: C.
        ignored: truth of pixels that do not count.
    """
    truth, predictions = truth.flatten().long(), predictions.flatten().long()
    counts = truth != ignored
    return confusion_matrix(truth[counts], predictions[counts], num_classes)


@dataclass(frozen=True)
class SegmentationScores:
    """What the confusion matrices of images say.

    Attributes:
        counts: LongTensor [N, 3, C] of each image: right, predicted and true pixels per class.
        confusion: LongTensor [C, C] of all images, rows the truth, columns the prediction.
        loss: mean cross entropy of a pixel.
    """

    counts: Tensor
    confusion: Tensor
    loss: float

    @classmethod
    def of_images(cls, confusions: Sequence[Tensor], losses: Sequence[float]) -> SegmentationScores:
        """Return the scores of images by their confusion matrices and sums of cross entropy."""
        counts = [torch.stack([c.diagonal(), c.sum(dim=0), c.sum(dim=1)]) for c in confusions]
        confusion = torch.stack(list(confusions)).sum(dim=0)
        return cls(torch.stack(counts), confusion, sum(losses) / max(1, int(confusion.sum())))

    @property
    def num_images(self) -> int:
        """Images that were scored."""
        return len(self.counts)

    @functools.cached_property
    def ious(self) -> list[float]:
        """Share of each class's pixels, true or predicted, that is both; NaN where it has none."""
        return _ious(self.counts.sum(dim=0).double().numpy()).tolist()

    @functools.cached_property
    def dices(self) -> list[float]:
        """Dice score of each class, 2 IoU / (1 + IoU); NaN where it has no pixel."""
        return [2 * iou / (1 + iou) for iou in self.ious]

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that occur."""
        return float(np.nanmean(self.ious))

    @property
    def mean_dice(self) -> float:
        """Mean over the classes that occur."""
        return float(np.nanmean(self.dices))

    @property
    def pixel_accuracy(self) -> float:
        """Share of all pixels that is right."""
        return int(self.confusion.diagonal().sum()) / int(self.confusion.sum())

    @functools.cached_property
    def intervals(self) -> list[tuple[float, float]]:
        """95 % intervals over the images: of each class's IoU, then of their mean."""
        return bootstrap_interval(self.counts.flatten(1).double().numpy(), _ious_and_mean)

    def table(self, classes: Sequence[str]) -> str:
        """Return lines of text: a row per class, then the means and what they are."""
        width = max(len(name) for name in (*classes, "pixel accuracy"))
        lines = [f"{'':<{width}}    IoU  95 % interval    Dice  share of pixels"]
        true = self.counts[:, 2].sum(dim=0).double()
        shares = (true / true.sum()).tolist()
        rows = zip(classes, self.ious, self.intervals, self.dices, shares, strict=False)
        for name, iou, interval, dice, share in rows:
            row = f"{_percent(iou)}  {_between(interval)}  {_percent(dice)}  {100 * share:15.2f}"
            lines.append(f"{name:<{width}} {row}")
        mean = f"{_percent(self.mean_iou)}  {_between(self.intervals[-1])}"
        lines.append(f"{'mean':<{width}} {mean}  {_percent(self.mean_dice)}")
        lines.append(f"{'pixel accuracy':<{width}} {_percent(self.pixel_accuracy)}")
        return "\n".join([*lines, f"In %, of {self.num_images} images. {NOTE}"])


def _ious(counts: np.ndarray) -> np.ndarray:
    """Return IoU [..., C] of sums [..., 3, C]."""
    right, predicted, true = np.moveaxis(counts, -2, 0)
    union = predicted + true - right
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(union > 0, right / union, np.nan)


def _ious_and_mean(sums: np.ndarray) -> np.ndarray:
    """Return [B, C + 1] IoU of each class and their mean, of sums [B, 3 * C]."""
    ious = _ious(sums.reshape(len(sums), 3, -1))
    known = ~np.isnan(ious)
    mean = np.where(known, ious, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return np.concatenate([ious, mean[:, None]], axis=1)


def _percent(share: float) -> str:
    return "     -" if np.isnan(share) else f"{100 * share:6.2f}"


def _between(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{'-':>13}" if np.isnan(low) else f"{100 * low:5.1f} to {100 * high:5.1f}"[:14]


def draw_pixel_confusion(scores: SegmentationScores, classes: Sequence[str], path: Path) -> Path:
    """Write a PNG of what pixels of each class are taken for: shares of each row; return `path`."""
    title = (
        f"{scores.num_images} validation images\nmean IoU {100 * scores.mean_iou:.1f} %, "
        f"pixel accuracy {100 * scores.pixel_accuracy:.1f} %"
    )
    return draw_confusion(
        scores.confusion,
        classes,
        path,
        title,
        "share of the class's pixels",
        lambda _, share: f"{100 * share:.1f}",
    )
