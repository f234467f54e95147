"""Gives back the settings and the classifier of a fine-tuning's folder."""

from pathlib import Path
from typing import NamedTuple

from timm.models.convnext import ConvNeXt

from fcmae.finetuning.classifier_export import classifier_info
from fcmae.finetuning.scoring import best_weights
from fcmae.runs.folder import RunFolder
from fcmae.runs.loading import fitting_settings, newest_checkpoint
from fcmae.settings.finetune import FinetuneConfig
from fcmae.settings.reading import load
from fcmae.weights.encoder_info import EncoderInfo
from fcmae.weights.files import read_metadata
from fcmae.weights.loading import load_classifier


class LoadedFinetuning(NamedTuple):
    """A fine-tuning as it stands: its settings, its classifier on the CPU, and how to feed it.

    The classifier is in evaluation mode. `info.steps` are those that it was trained for.
    """

    config: FinetuneConfig
    model: ConvNeXt
    info: EncoderInfo


def load_finetuned(run_dir: str | Path) -> LoadedFinetuning:
    """Return the best classifier that a fine-tuning exported, else that of its newest checkpoint.

    Raises:
        ConfigError: settings that cannot be read.
        CheckpointError: no checkpoint yet, or damaged weights.
        DiskError: a checkpoint that cannot be read now.
    """
    folder = RunFolder(run_dir)
    config = load(FinetuneConfig, folder.config)
    best = best_weights(str(run_dir))
    info = EncoderInfo.from_metadata(read_metadata(best)) if best.is_file() else None
    if info is not None:
        model = info.create_model(len(info.classes or ()))
        load_classifier(model, best)
        return LoadedFinetuning(config, model.eval(), info)
    step, state = newest_checkpoint(folder, config.checkpoint)
    info = classifier_info(config, step)
    with fitting_settings(folder, step):
        weights = state["extra"]["ema"] or state["model"]
        model = info.create_model(len(weights["head.fc.weight"]))
        model.load_state_dict(weights)
    return LoadedFinetuning(config, model.eval(), info)
