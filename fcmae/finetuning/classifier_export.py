"""Writes a fine-tuned classifier as safetensors that timm loads and that says what it is."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from fcmae.data.augmentation import mean_and_std
from fcmae.evaluation.classification import ClassificationScores
from fcmae.finetuning.setup import create_reading, weights_metadata
from fcmae.runs.durable import write_atomically
from fcmae.settings.finetune import FinetuneConfig
from fcmae.settings.sections import image_height_width
from fcmae.weights.encoder_info import EncoderInfo


def classifier_info(
    config: FinetuneConfig, step: int, classes: tuple[str, ...] | None = None
) -> EncoderInfo:
    """Return what one must know to use a fine-tuning's classifier after `step` steps."""
    known = weights_metadata(config)
    mean, std = mean_and_std(config.data, known)
    return EncoderInfo(
        model_name=config.model.name,
        stem_stride=config.model.stem_stride,
        image_size=image_height_width(config.data.image_size),
        mean=mean,
        std=std,
        **dataclasses.asdict(create_reading(config)),
        steps=step,
        origin=known.get("origin", ""),
        crop_pct=config.data.crop_pct,
        classes=classes,
    )


def export_classifier(
    weights: Mapping[str, Tensor],
    path: Path,
    config: FinetuneConfig,
    classes: tuple[str, ...],
    step: int,
    scores: ClassificationScores | None,
) -> None:
    """Write `weights`, of `float32_weights`, with metadata; the file is replaced as a whole.

    The metadata are those of an exported encoder, val_accuracy and val_balanced_accuracy, these
    two unless `scores` is None.

    Raises:
        OSError: the file cannot be written.
    """
    metadata = classifier_info(config, step, classes).to_metadata()
    if scores is not None:
        metadata |= {
            "val_accuracy": json.dumps(scores.accuracy),
            "val_balanced_accuracy": json.dumps(scores.balanced_accuracy),
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = dict(weights)
    write_atomically(path, lambda partial: save_file(plain, partial, metadata=metadata))
