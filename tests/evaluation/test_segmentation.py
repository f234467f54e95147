"""Scores of segmentations: torchmetrics' own numbers, and intervals over the images."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.functional.classification import multiclass_f1_score

from fcmae.evaluation.segmentation import SegmentationScores, confusion_of, draw_pixel_confusion
from fcmae.evaluation.statistics import bootstrap_interval

IGNORED = -1


def some(count: int, classes: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return (prediction, truth) of images; the last class occurs nowhere."""
    rng = torch.Generator().manual_seed(2)
    found = []
    for _ in range(count):
        truth = torch.randint(-1, classes - 1, (20, 30), generator=rng)
        is_right = torch.rand(20, 30, generator=rng) < 0.7
        other = torch.randint(0, classes - 1, (20, 30), generator=rng)
        found.append((torch.where(is_right & (truth >= 0), truth, other), truth))
    return found


def scores_of(images: list[tuple[torch.Tensor, torch.Tensor]]) -> SegmentationScores:
    confusions = [confusion_of(*pair, 4, IGNORED) for pair in images]
    return SegmentationScores.of_images(confusions, [1.0] * len(images))


def test_scores_are_torchmetrics_own() -> None:
    images = some(5)
    scores = scores_of(images)
    metric = MulticlassJaccardIndex(4, average="none", ignore_index=IGNORED)
    for prediction, truth in images:
        metric.update(prediction.flatten(), truth.flatten())
    expected = metric.compute()
    torch.testing.assert_close(torch.tensor(scores.ious[:3]).float(), expected[:3])
    assert math.isnan(scores.ious[3])
    prediction, truth = (torch.cat([pair[side].flatten() for pair in images]) for side in (0, 1))
    dice = multiclass_f1_score(prediction, truth, 4, average="none", ignore_index=IGNORED)
    torch.testing.assert_close(torch.tensor(scores.dices[:3]).float(), dice[:3])
    known = truth >= 0
    assert scores.pixel_accuracy == pytest.approx(
        float((prediction == truth)[known].float().mean())
    )
    assert scores.mean_iou == pytest.approx(sum(scores.ious[:3]) / 3)
    assert scores.loss == pytest.approx(5 / int(known.sum()))


def test_intervals_hold_the_score_and_shrink_with_more_images() -> None:
    few, many = scores_of(some(4)), scores_of(some(64))
    for scores in (few, many):
        low, high = scores.intervals[-1]
        assert low < scores.mean_iou < high
        assert all(math.isnan(end) for end in scores.intervals[3])
    widths = [one.intervals[-1][1] - one.intervals[-1][0] for one in (few, many)]
    assert widths[1] < widths[0]


def test_the_bootstrap_has_the_spread_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(size=(400, 1))
    rows = np.concatenate([values, np.ones_like(values)], axis=1)
    ((low, high),) = bootstrap_interval(rows, lambda sums: sums[:, :1] / sums[:, 1:])
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)


def test_a_table_has_a_row_per_class_and_the_matrix_is_drawn(tmp_path: Path) -> None:
    scores, names = scores_of(some(3)), ("wood", "metal", "glass", "none")
    lines = scores.table(names).splitlines()
    assert [line.split()[0] for line in lines[1:6]] == [*names, "mean"]
    assert lines[4].split()[1:] == ["-", "-", "-", "0.00"]
    path = draw_pixel_confusion(scores, names, tmp_path / "matrix.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
