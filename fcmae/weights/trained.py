"""Gives back the model of a run folder, for everything that is done after pretraining."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

from timm.models.convnext import ConvNeXt

from fcmae.data import default_mean_std
from fcmae.errors import ConfigError
from fcmae.model.autoencoder import FCMAE
from fcmae.runs.folder import RunFolder
from fcmae.runs.loading import load_run
from fcmae.settings.ranges import check_range
from fcmae.settings.sections import Channels, ImageSize
from fcmae.weights.info import EncoderInfo
from fcmae.weights.reading import load_classifier, load_encoder, read_metadata


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
        check_range("data.image_size", side, ImageSize)
        check_range("data.in_chans", channels, Channels)
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
