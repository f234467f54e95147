"""The masks of an ablation: every encoder is fine-tuned to them and scored by mean IoU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fcmae.data import ImageList
from fcmae.errors import ConfigError
from fcmae.finetuning.segmentation.opening import MaskedImages, open_masked, open_masked_among
from fcmae.finetuning.segmentation.task import segment
from fcmae.finetuning.task import not_scored
from fcmae.model.segmenter import import_smp
from fcmae.settings.ablation import Ablation
from fcmae.settings.segmentation import SegmentationConfig
from fcmae.studies.ablation.grid import Cell, has_own_masks
from fcmae.studies.ablation.split import Split, count_trained_on
from fcmae.training.processes import Processes

SEGMENTED = "fine-tuned masks"  # the score: mean IoU in per cent


def check_masks(
    cells: list[Cell], ablation: Ablation, split: Split, say: Callable[[str], None]
) -> None:
    """Read every mask before the first cell starts, and say what they hold.

    Raises:
        ConfigError: smp is missing; no masks, or the masks do not fit.
        DataError: masks that cannot be used.
    """
    first = cells[0].finetune
    if not isinstance(first, SegmentationConfig):
        return
    import_smp()
    # The weights are not there yet; how files are read follows from the cell.
    alone = dataclasses.replace(first, model=dataclasses.replace(first.model, weights=None))
    try:
        images = _open(alone, ablation, split)
    except ConfigError as error:
        raise ConfigError(f"finetune.{error}") from error
    for sentence in images.told:
        say(sentence)


def segment_cell(
    cell: Cell, ablation: Ablation, split: Split, processes: Processes
) -> tuple[str | None, float, dict[str, Any]]:
    """Fine-tune the cell's encoder to the masks.

    Returns:
        The name of the signal that stopped it, or None; mean IoU in per cent after the last step;
        how many images it was trained on and scored on, and how many of the latter the cell was
        pretrained on.

    Raises:
        As `segment`; DataError when the evaluation after the last step failed.
    """
    config = cell.finetune
    assert isinstance(config, SegmentationConfig)
    images = _open(config, ablation, split)
    done = segment(config, processes, images)
    if done.signal is not None:
        return done.signal, float("nan"), {}
    if done.last is None:
        raise not_scored(config.run.dir)
    about = {
        "train": len(images.train),
        "scored": len(images.validation),
        "known": count_trained_on(images.validation, [Path(cell.config.run.dir)]),
    }
    return None, 100 * done.last.mean_iou, about


def _open(config: SegmentationConfig, ablation: Ablation, split: Split) -> MaskedImages:
    """Return the images with masks: the ablation's own held-out ones score, or those it names."""
    if has_own_masks(ablation):
        return open_masked(config, is_begun=False)
    lists: list[ImageList] = [split.train, split.test]
    return open_masked_among(config, *lists)
