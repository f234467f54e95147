"""A run folder with an atto encoder, small pictures, and labels: made in a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from settled import settled

from fcmae.model.autoencoder import FCMAE, create_model
from fcmae.runs.checkpoints import CheckpointStore
from fcmae.runs.folder import RunFolder
from fcmae.settings.pretrain import DataConfig, LossConfig, MaskConfig, ModelConfig, PretrainConfig
from fcmae.settings.reading import to_yaml
from fcmae.settings.sections import RunConfig, TrainConfig

STEP = 7


def make_config(folder: Path, **model: object) -> PretrainConfig:
    """Return settings of a grey run on 64 x 96 px images, two by three patches."""
    config = PretrainConfig(
        run=RunConfig(dir=str(folder)),
        data=DataConfig(path="images", image_size=(64, 96), in_chans=1, workers=0),
        model=ModelConfig(**{"name": "convnextv2_atto", "decoder_dim": 8, **model}),  # type: ignore[arg-type]
        mask=MaskConfig(ratio=0.5),
        loss=LossConfig(),
        train=TrainConfig(steps=STEP),
    )
    settings: PretrainConfig = settled(config)
    return settings


def make_run(folder: Path, **settings: object) -> tuple[PretrainConfig, FCMAE]:
    """Write a run folder with one checkpoint and return its settings and its model.

    The weights are moved off their start, so that they differ from an untrained model's.

    Args:
        folder: is made.
        settings: of the section `model`; the encoder is an atto unless `name` says otherwise.
    """
    config = make_config(folder, **settings)
    model = create_model(config)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # the final norm is not trained
                parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.02)
    run = RunFolder(folder)
    run.path.mkdir(parents=True)
    run.config.write_text(to_yaml(config), encoding="utf-8")
    CheckpointStore(run.checkpoints).save(STEP, {"model": model.state_dict()})
    return config, model


def make_pictures(folder: Path, per_class: int = 6) -> Path:
    """Write grey pictures in two class folders, dark and bright, of differing sizes."""
    rng = np.random.default_rng(2)
    for name, level in (("bright", 180), ("dark", 60)):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = rng.integers(level - 40, level + 40, (70 + number, 101), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder
