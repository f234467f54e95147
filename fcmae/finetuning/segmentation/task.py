"""Segmentation: a class for every pixel, scored on whole pictures, the best exported."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fcmae.data import ImageList
from fcmae.data.files import Problem
from fcmae.evaluation.segmentation import SegmentationScores, draw_pixel_confusion
from fcmae.evaluation.segmentation_pictures import draw_segmentations
from fcmae.finetuning.recipe import choose_after_length
from fcmae.finetuning.resolving import Rules, resolve_settings
from fcmae.finetuning.scored import Finetuned, ScoredTask
from fcmae.finetuning.segmentation.data import SegmentationAugmentation, SegmentationDataset
from fcmae.finetuning.segmentation.opening import MaskedImages, open_masked
from fcmae.finetuning.segmentation.recipe import choose_before_length, steps_for
from fcmae.finetuning.segmentation.scoring import evaluate_segmenter
from fcmae.finetuning.segmentation.setup import (
    SegmentationLoss,
    check_stem,
    create_normalisation,
    create_segmenter,
    layer_groups,
    segmenter_info,
)
from fcmae.finetuning.setup import create_reading, variant_of
from fcmae.model.segmenter import build_segmenter, import_smp
from fcmae.settings.sections import image_height_width
from fcmae.settings.segmentation import SegmentationConfig
from fcmae.training.auto import Choices
from fcmae.training.loop import TrainingLoop
from fcmae.training.processes import Processes
from fcmae.weights.segmenter import BEST_FILE, LAST_FILE, save_segmenter


def segment(
    config: SegmentationConfig, processes: Processes, images: MaskedImages | None = None
) -> Finetuned[SegmentationScores]:
    """Run or continue the segmentation that `config` describes, in its run folder.

    Args:
        config: of the run.
        processes: this process and the others.
        images: with masks; None takes them as config.data says.

    Raises:
        ConfigError: a setting that cannot work, before anything starts.
        CheckpointError: weights that cannot be read or do not fit; damaged checkpoints.
        DataError: masks that cannot be used, too many undecodable files, or readers that die.
        NonFiniteLossError: the loss is NaN or infinite.
        DiskError: no checkpoint could be written several times in a row.
    """
    import_smp()
    if images is None:
        images = processes.from_main(lambda: open_masked(config))
    config, rules = resolve(config, images, processes)
    return Segmentation(config, images).run(processes, rules)


def check(config: SegmentationConfig) -> None:
    """Raise ConfigError, DataError or CheckpointError for settings that name what cannot be.

    Masks are read, the model is built without memory, and weights are asked what they are.
    """
    check_stem(config)
    images = open_masked(config)
    with torch.device("meta"):
        build_segmenter(
            config.task.architecture,
            variant_of(config, len(images.train)),
            in_chans=config.data.in_chans,
            num_classes=len(images.survey.classes),
        )


def resolve(
    config: SegmentationConfig,
    images: MaskedImages,
    processes: Processes,
    record: str | None = None,
    starts: Sequence[str] | None = None,
) -> tuple[SegmentationConfig, list[str]]:
    """Return the settings with nothing left to a rule; see `resolve_settings`."""
    count = len(images.train)

    def before() -> Choices:
        variant = variant_of(config, count)
        reading = create_reading(config)
        return choose_before_length(config, images, reading, variant, processes.world_size, starts)

    rules = Rules(
        before,
        choose_after_length,
        lambda effective_batch: steps_for(count, effective_batch),
        lambda resolved: Segmentation(resolved, images),
    )
    return resolve_settings(config, count, processes, rules, record)


class Segmentation(ScoredTask[SegmentationScores]):
    """A segmenter, from its settings to the exported weights.

    Attributes:
        classes: names of the classes and what stands for them in masks.
    """

    best_file, last_file = BEST_FILE, LAST_FILE
    scores_class = SegmentationScores
    score_name = "val_mean_iou"

    def __init__(self, config: SegmentationConfig, images: MaskedImages) -> None:
        self.classes = images.survey.classes
        network, sentences = create_segmenter(config, self.classes)
        told = [*sentences, *images.told]
        lists = images.train, images.validation
        super().__init__(config, *lists, network, self.classes.names, told)
        self._masked = images
        self._loss = SegmentationLoss(config.task.dice_weight)
        self._augmentation = SegmentationAugmentation(
            config.augment,
            image_height_width(config.data.image_size),
            create_normalisation(config),
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return a group per layer of the encoder and decay; the decoder's rate is the full one."""
        return layer_groups(self.config, self.model)

    def create_dataset(self) -> SegmentationDataset:
        """Return the augmented crops."""
        return SegmentationDataset(
            self._masked.pairs(self.images),
            self._augmentation,
            seed=self.config.train.seed,
            reading=create_reading(self.config),
            class_balanced=self.config.augment.class_balanced,
        )

    def compute_loss(self, network: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Score the predictions of a batch."""
        loss: Tensor = self._loss(self.outputs(network, batch["image"]), batch["mask"])
        return loss

    def begin(self, run: TrainingLoop) -> None:
        """Record images and masks, and say what runs."""
        super().begin(run)
        lists: list[ImageList] = [self.images, self.validation]
        if run.processes.is_main and run.progress.step == 0:
            paths = [images.paths for images in lists]
            self._masked.survey.write(run.folder.masks, paths)
        self.introduce(run, f"{self.config.task.architecture} over {self.config.model.name}")

    def evaluate(self, run: TrainingLoop) -> tuple[SegmentationScores, list[Problem]]:
        """Return the scores on whole validation pictures; some of these are drawn."""
        found = evaluate_segmenter(
            self.evaluated,
            self._masked.pairs(self.validation),
            self.config,
            run.processes,
            run.optimization.autocast,
        )
        if found.pictures and run.processes.is_main:
            path = run.folder.predictions / f"step-{run.progress.step:06d}.png"
            run.attempt(lambda: draw_segmentations(found.pictures, self.class_names, path), path)
        return found.scores, found.skipped

    def score_of(self, scores: SegmentationScores) -> float:
        """Return the mean IoU."""
        return scores.mean_iou

    def log_values(self, scores: SegmentationScores) -> dict[str, float | None]:
        """Return the loss, the means, and IoU and Dice of each class."""
        values: dict[str, float | None] = {
            "val_loss": scores.loss,
            "val_mean_iou": scores.mean_iou,
            "val_mean_dice": scores.mean_dice,
            "val_pixel_accuracy": scores.pixel_accuracy,
        }
        for name, iou, dice in zip(self.class_names, scores.ious, scores.dices, strict=True):
            values[f"val_iou/{name}"] = None if math.isnan(iou) else iou
            values[f"val_dice/{name}"] = None if math.isnan(dice) else dice
        return values

    def sentence(self, scores: SegmentationScores) -> str:
        """Say the means and the loss."""
        return (
            f"mean IoU {100 * scores.mean_iou:.2f} %, mean Dice {100 * scores.mean_dice:.2f} %, "
            f"pixel accuracy {100 * scores.pixel_accuracy:.2f} %, loss {scores.loss:.4f}"
        )

    def export(
        self,
        run: TrainingLoop,
        name: str,
        weights: dict[str, Tensor],
        step: int,
        scores: SegmentationScores | None,
    ) -> None:
        """Write a segmenter with its description and scores."""
        found = {}
        if scores is not None:
            found = {
                "val_mean_iou": json.dumps(scores.mean_iou),
                "val_mean_dice": json.dumps(scores.mean_dice),
                "val_pixel_accuracy": json.dumps(scores.pixel_accuracy),
            }
        info = segmenter_info(self.config, self.classes, step)
        save_segmenter(weights, run.folder.export / name, info, found)

    def draw(self, scores: SegmentationScores, path: Path) -> Path:
        """Draw the confusion matrix of pixels."""
        return draw_pixel_confusion(scores, self.class_names, path)
