"""Runs draw nothing where nobody looks: pictures take most of the time of a tiny one.

The fixture `undrawn` has this for a whole file of tests.
"""

from __future__ import annotations

import pytest

DRAWINGS = (
    "fcmae.pretraining.monitoring.draw_reconstructions",
    "fcmae.pretraining.monitoring.draw_loss_curve",
    "fcmae.pretraining.monitoring.draw_health",
    "fcmae.finetuning.task.draw_confusion_matrix",
    "fcmae.finetuning.segmentation.task.draw_pixel_confusion",
    "fcmae.finetuning.segmentation.task.draw_segmentations",
)


def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs of this process draw nothing."""
    for drawing in DRAWINGS:
        monkeypatch.setattr(drawing, lambda *args, **how: None)


def without_pictures() -> None:
    """Do so for good: in a process of its own."""
    draw_nothing(pytest.MonkeyPatch())
