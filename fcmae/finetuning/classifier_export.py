"""Writes a fine-tuned classifier as safetensors that timm loads and that says what it is."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from fcmae.evaluation.classification import ClassificationScores
from fcmae.finetuning.setup import description
from fcmae.runs.durable import write_atomically
from fcmae.settings.finetune import FinetuneConfig
from fcmae.weights.encoder_info import EncoderInfo


def classifier_info(
    config: FinetuneConfig, step: int, classes: tuple[str, ...] | None = None
) -> EncoderInfo:
    """Return what one must know to use a fine-tuning's classifier after `step` steps."""
    return EncoderInfo(**description(config, step), crop_pct=config.data.crop_pct, classes=classes)


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
