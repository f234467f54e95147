"""Scores of a classifier by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from fcmae.evaluation.classification import (
    ClassificationScores,
    confusion_matrix,
    draw_confusion_matrix,
)

LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 3])
PREDICTIONS = torch.tensor([0, 0, 0, 2, 1, 0, 3])


def scores() -> ClassificationScores:
    return ClassificationScores(confusion_matrix(LABELS, PREDICTIONS, 4), loss=0.25)


def test_rows_are_labels_and_columns_predictions() -> None:
    expected = [[3, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert confusion_matrix(LABELS, PREDICTIONS, 4).tolist() == expected


def test_accuracies_by_hand() -> None:
    found = scores()
    assert found.num_images == 7
    assert found.accuracy == pytest.approx(5 / 7)
    assert found.per_class[:2] == pytest.approx([0.75, 0.5])
    assert math.isnan(found.per_class[2])
    assert found.balanced_accuracy == pytest.approx((0.75 + 0.5 + 1) / 3)


def test_table_names_every_class_and_the_overall_scores() -> None:
    lines = scores().table(("ash", "birch", "cedar", "dogwood")).splitlines()
    assert lines == [
        "ash        75.0 % of 4",
        "birch      50.0 % of 2",
        "cedar     no images",
        "dogwood   100.0 % of 1",
        "all        71.4 % of 7",
        "balanced   75.0 %",
    ]


@pytest.mark.parametrize("num_classes", [2, 40])
def test_picture_is_written_for_few_and_many_classes(tmp_path: Path, num_classes: int) -> None:
    rng = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 9, (num_classes, num_classes), generator=rng)
    path = tmp_path / "new" / "confusion.png"
    names = [f"class {number}" for number in range(num_classes)]
    draw_confusion_matrix(ClassificationScores(counts, 0.1), names, path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
    assert [item.name for item in path.parent.iterdir()] == ["confusion.png"]
