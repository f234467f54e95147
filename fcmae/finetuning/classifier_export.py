"""Writes a fine-tuned classifier as safetensors that timm loads and that says what it is."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from fcmae.data.augmentation import mean_and_std
from fcmae.evaluation.classification import ClassificationScores
from fcmae.finetuning.setup import create_reading, weights_metadata
from fcmae.runs.durable import write_atomically
from fcmae.settings.finetune import FinetuneConfig
from fcmae.settings.sections import image_height_width
from fcmae.weights.info import EncoderInfo


def export_classifier(
    model: nn.Module,
    path: Path,
    config: FinetuneConfig,
    classes: tuple[str, ...],
    step: int,
    scores: ClassificationScores,
) -> None:
    """Write float32 weights under timm's names, with metadata; the file is replaced as a whole.

    The metadata are those of an exported encoder, and: classes, in the order of the outputs,
    crop_pct, val_accuracy and val_balanced_accuracy.

    Raises:
        OSError: the file cannot be written.
    """
    mean, std = mean_and_std(config.data, weights_metadata(config))
    reading = create_reading(config)
    info = EncoderInfo(
        model_name=config.model.name,
        in_chans=config.data.in_chans,
        stem_stride=config.model.stem_stride,
        image_size=image_height_width(config.data.image_size),
        mean=mean,
        std=std,
        value_range=reading.value_range,
        bands=reading.bands,
        background=reading.background,
        reader=reading.reader,
        steps=step,
    )
    metadata = info.to_metadata() | {
        "classes": json.dumps(classes),
        "crop_pct": json.dumps(config.data.crop_pct),
        "val_accuracy": json.dumps(scores.accuracy),
        "val_balanced_accuracy": json.dumps(scores.balanced_accuracy),
    }
    weights = {
        name: value.detach().cpu().float().contiguous()
        for name, value in model.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda partial: save_file(weights, partial, metadata=metadata))
