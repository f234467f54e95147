"""Gives back the model of a run folder, for everything that is done after pretraining."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

from timm.models.convnext import ConvNeXt

from fcmae.data import default_mean_std
from fcmae.errors import CheckpointError, ConfigError
from fcmae.model.autoencoder import FCMAE
from fcmae.pretraining.setup import create_model
from fcmae.runs.checkpoints import CheckpointStore
from fcmae.runs.folder import RunFolder
from fcmae.settings.pretrain import PretrainConfig, check_data_sizes
from fcmae.settings.reading import load
from fcmae.weights.info import EncoderInfo
from fcmae.weights.reading import load_classifier, load_encoder, read_metadata


class LoadedRun(NamedTuple):
    """A run as it stands: its settings, its model in evaluation mode on the CPU, its steps."""

    config: PretrainConfig
    model: FCMAE
    step: int


def load_run(run_dir: str | Path) -> LoadedRun:
    """Return the model of the newest undamaged checkpoint of a run folder.

    Raises:
        ConfigError: no folder of a pretraining run, or one whose settings cannot be read.
        CheckpointError: no checkpoint yet, all of them damaged, or one of another model.
    """
    config = load_run_config(run_dir)
    folder = RunFolder(run_dir)
    found = CheckpointStore(folder.checkpoints).load_newest()
    if found is None:
        raise CheckpointError(
            f"{folder.path}: the run has no checkpoint yet; let it train until the first one "
            f"(checkpoint.every_steps is {config.checkpoint.every_steps})."
        )
    step, state = found
    model = create_model(config)
    try:
        model.load_state_dict(state["model"], strict=True)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder.checkpoints}: the checkpoint of step {step} does not fit the settings in "
            f"{folder.config} ({reason[:500]}); restore the config.yaml that the run was made with."
        ) from error
    return LoadedRun(config, model.eval(), step)


def load_run_config(run_dir: str | Path) -> PretrainConfig:
    """Return the settings of a run folder.

    Raises:
        ConfigError: no folder of a pretraining run, or one whose settings cannot be read.
    """
    folder = RunFolder(run_dir)
    if not folder.config.is_file():
        what = "has no config.yaml" if folder.path.is_dir() else "is no folder"
        raise ConfigError(
            f"run folder: {str(run_dir)!r} {what}; name the folder that fcmae pretrain made "
            "(its run.dir)."
        )
    return load(PretrainConfig, folder.config)


class Trained(NamedTuple):
    """What a run has trained, on the CPU and in evaluation mode.

    Attributes:
        model: the encoder, or the classifier of a fine-tuning.
        fcmae: the whole model of a pretraining; None of a fine-tuning.
        info: of `model`.
    """

    model: ConvNeXt
    fcmae: FCMAE | None
    info: EncoderInfo


def load_trained(run_dir: str | Path, origin: str = "") -> Trained:
    """Return the classifier that a fine-tuning has exported, or the model of a pretraining.

    Raises:
        ConfigError, CheckpointError: as `load_run`; a classifier that cannot be read.
    """
    file = RunFolder(run_dir).export / "classifier.safetensors"
    info = EncoderInfo.from_metadata(read_metadata(file)) if file.is_file() else None
    if info is None or info.classes is None:
        config, fcmae, step = load_run(run_dir)
        return Trained(fcmae.encoder, fcmae, EncoderInfo.of_run(config, fcmae, step, origin))
    model = info.create_model(len(info.classes))
    load_classifier(model, file)
    return Trained(model.eval(), None, dataclasses.replace(info, origin=origin or info.origin))


def load_described_encoder(
    source: str | Path,
    *,
    model_name: str | None = None,
    in_chans: int | None = None,
    stem_stride: int | None = None,
    image_size: int | None = None,
) -> tuple[ConvNeXt, EncoderInfo]:
    """Return the encoder of a run folder or weights file, in evaluation mode, and how to feed it.

    The keyword arguments are for files that do not say it themselves; in_chans, stem_stride and
    image_size default to 3, 4 and 224 px, mean and deviation to those of `default_mean_std`.

    Raises:
        ConfigError: a file that does not say its model, without `model_name`; the arguments
            beside a source that knows better; as `load_run`.
        CheckpointError: as `load_run` and `load_encoder`.
    """
    given = {
        "model.name": model_name,
        "data.in_chans": in_chans,
        "model.stem_stride": stem_stride,
        "data.image_size": image_size,
    }
    named = [f"--{name}" for name, value in given.items() if value is not None]
    is_run = Path(source).is_dir()
    info = None if is_run else EncoderInfo.from_metadata(read_metadata(source))
    if named and (is_run or info is not None):
        raise ConfigError(f"{source}: says itself what {', '.join(named)} say; remove them.")
    if is_run:
        config, model, step = load_run(source)
        return model.encoder, EncoderInfo.of_run(config, model, step)
    if info is None:
        if model_name is None and Path(source).is_file():
            raise ConfigError(
                f"{source}: does not say which model its weights belong to; "
                "add --model.name, such as --model.name convnextv2_atto."
            )
        channels = 3 if in_chans is None else in_chans
        side = 224 if image_size is None else image_size
        check_data_sizes(side, channels, None, None)
        mean, std = default_mean_std(channels)
        info = EncoderInfo(
            model_name=model_name or "convnextv2_atto",  # a file that is missing is told below
            in_chans=channels,
            stem_stride=4 if stem_stride is None else stem_stride,
            image_size=(side, side),
            mean=mean,
            std=std,
        )
    encoder = info.create_model()
    load_encoder(encoder, source)
    return encoder.eval(), info
