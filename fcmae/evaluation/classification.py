"""Scores of a classifier: overall, balanced and per class, as numbers, text and picture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fcmae.evaluation.pictures import new_figure, printable, save_figure

MOST_NUMBERED_CLASSES = 20  # beyond it the counts in the cells cannot be read
MOST_NAMED_CLASSES = 100  # beyond it the names overlap
DPI = 120


def confusion_matrix(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Count images by class: LongTensor [C, C] on the CPU, rows the label, columns the prediction.

    Args:
        labels, predictions: LongTensor [N] of classes below `num_classes`; of images or of pixels.
            They are counted where the predictions are.
    """
    cells = labels.to(predictions.device) * num_classes + predictions
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes).cpu()


@dataclass(frozen=True)
class ClassificationScores:
    """What a confusion matrix [C, C] says.

    Attributes:
        confusion: counts, rows the label, columns the prediction.
        loss: mean cross entropy.
    """

    confusion: Tensor
    loss: float

    @property
    def num_images(self) -> int:
        """Images that were classified."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of all images that is right."""
        return int(self.confusion.diagonal().sum()) / self.num_images

    @property
    def per_class(self) -> list[float]:
        """Share of each class's images that is right; NaN for a class without images."""
        return (self.confusion.diagonal().double() / self.confusion.sum(dim=1)).tolist()

    @property
    def balanced_accuracy(self) -> float:
        """Mean over the classes that have images of the share that is right."""
        return float(torch.tensor(self.per_class, dtype=torch.float64).nanmean())

    def table(self, classes: Sequence[str]) -> str:
        """Return lines of text: accuracy per class, then overall."""
        width = max(len(name) for name in (*classes, "balanced"))
        counts = self.confusion.sum(dim=1).tolist()
        lines = [
            f"{name:<{width}}  " + (f"{100 * share:5.1f} % of {count}" if count else "no images")
            for name, share, count in zip(classes, self.per_class, counts, strict=True)
        ]
        lines.append(f"{'all':<{width}}  {100 * self.accuracy:5.1f} % of {self.num_images}")
        lines.append(f"{'balanced':<{width}}  {100 * self.balanced_accuracy:5.1f} %")
        return "\n".join(lines)


def draw_confusion_matrix(scores: ClassificationScores, classes: Sequence[str], path: Path) -> Path:
    """Write a PNG of what images of each class are taken for, with counts; return `path`."""
    title = (
        f"{scores.num_images} validation images\naccuracy {100 * scores.accuracy:.1f} %, "
        f"balanced {100 * scores.balanced_accuracy:.1f} %"
    )
    return draw_confusion(
        scores.confusion, classes, path, title, "share of the class", lambda count, _: str(count)
    )


def draw_confusion(
    counts: Tensor,
    classes: Sequence[str],
    path: Path,
    title: str,
    unit: str,
    text_of: Callable[[int, float], str],
) -> Path:
    """Write a PNG: shares of each row as colours, and numbers where they can be read.

    Beyond MOST_NAMED_CLASSES the axes count the classes and name none.

    Args:
        counts: LongTensor [C, C], rows the truth, columns the prediction.
        classes: C names.
        path: the PNG, which is returned; replaced as a whole.
        title: above it.
        unit: of the colours.
        text_of: (count, share of its row) -> what stands in a cell.
    """
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    num_classes = len(classes)
    side = min(3.0 + 0.45 * num_classes, 16.0)
    figure = new_figure((side + 1.0, side), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axes, label=unit, shrink=0.8)
    font_size = 9 if num_classes <= MOST_NUMBERED_CLASSES else 5
    if num_classes <= MOST_NAMED_CLASSES:
        names = [printable(name) for name in classes]
        axes.set_xticks(range(num_classes), names, rotation=90, fontsize=font_size)
        axes.set_yticks(range(num_classes), names, fontsize=font_size)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(title, fontsize=10)
    if num_classes <= MOST_NUMBERED_CLASSES:
        for (row, column), count in np.ndenumerate(counts.numpy()):
            share = float(shares[row, column])
            axes.text(
                column,
                row,
                text_of(int(count), share),
                ha="center",
                va="center",
                color="white" if share > 0.5 else "black",
                fontsize=font_size,
            )
    save_figure(figure, path)
    return path
