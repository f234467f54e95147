"""Gives back the settings and the classifier of a fine-tuning's folder."""

from pathlib import Path
from typing import NamedTuple

from timm.models.convnext import ConvNeXt

from fcmae.data.augmentation import mean_and_std
from fcmae.errors import CheckpointError
from fcmae.finetuning.scoring import best_weights
from fcmae.finetuning.setup import create_reading, weights_metadata
from fcmae.runs.checkpoints import CheckpointStore
from fcmae.runs.folder import RunFolder
from fcmae.settings.finetune import FinetuneConfig
from fcmae.settings.reading import load
from fcmae.settings.sections import image_height_width
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
    found = CheckpointStore(folder.checkpoints).load_newest()
    if found is None:
        raise CheckpointError(
            f"{folder.path}: the run has no checkpoint yet; let it train until the first one "
            f"(checkpoint.every_steps is {config.checkpoint.every_steps})."
        )
    step, state = found
    mean, std = mean_and_std(config.data, weights_metadata(config))
    info = EncoderInfo(
        model_name=config.model.name,
        stem_stride=config.model.stem_stride,
        image_size=image_height_width(config.data.image_size),
        mean=mean,
        std=std,
        **vars(create_reading(config)),
        steps=step,
    )
    try:
        weights = state["extra"]["ema"] or state["model"]
        model = info.create_model(len(weights["head.fc.weight"]))
        model.load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder.checkpoints}: the checkpoint of step {step} does not fit the settings in "
            f"{folder.config} ({reason[:500]}); restore the config.yaml that the run was made with."
        ) from error
    return LoadedFinetuning(config, model.eval(), info)
