"""What values mean in pretraining is what they mean in everything that is done with its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from settled import settled

from fcmae.data import Reading
from fcmae.evaluation.classification import ClassificationScores
from fcmae.finetuning.classifier_export import export_classifier
from fcmae.finetuning.setup import create_evaluation_transform, create_reading
from fcmae.model.autoencoder import create_model
from fcmae.model.backbones import create_backbone
from fcmae.pretraining.task import pretrain
from fcmae.settings.finetune import FinetuneConfig
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.reading import from_plain
from fcmae.weights.encoder_info import EncoderInfo
from fcmae.weights.files import read_metadata
from fcmae.weights.sources import load_described_encoder

DATA = {
    "in_chans": 2,
    "value_range": [0, 4095],
    "bands": [3, 0],
    "mean": [0.3, 0.4],
    "std": [0.1, 0.2],
    "background": [1, 1, 1],
    "image_size": 64,
    "workers": 0,
}
READING = Reading(in_chans=2, value_range=(0.0, 4095.0), bands=(3, 0), background=(1.0, 1.0, 1.0))


def pretraining(folder: Path, steps: int) -> PretrainConfig:
    for number in range(8):
        rng = np.random.default_rng(number)
        values = rng.integers(0, 4096, (48, 48, 5), dtype=np.uint16)
        options = {"photometric": "minisblack", "planarconfig": "contig"}
        tifffile.imwrite(folder / f"{number}.tif", values, **options)
    plain = {
        "run": {"dir": str(folder / "run")},
        "data": {"path": str(folder), **DATA},
        "model": {"name": "convnextv2_atto", "decoder_dim": 16},
        "train": {"steps": steps, "batch_size": 2, "device": "cpu"},
        "log": {"num_pictures": 1, "tensorboard": False},
        "health": {"checks": 0},
    }
    return from_plain(PretrainConfig, plain, where="test")


def finetuning(weights: Path) -> FinetuneConfig:
    plain = {
        "run": {"dir": "unused"},
        "data": {"path": "unused", "in_chans": 2, "image_size": 64},
        "model": {"name": "convnextv2_atto", "weights": str(weights)},
        "train": {"steps": 1},
        "augment": {"rand_augment": None},
    }
    return from_plain(FinetuneConfig, plain, where="test")


def test_the_settings_say_how_files_are_read(tmp_path: Path) -> None:
    config = pretraining(tmp_path, 1)
    assert Reading.of_settings(config.data) == READING
    config = settled(config)
    info = EncoderInfo.of_run(config, create_model(config), 0)
    assert info.reading() == READING


@pytest.mark.parametrize("is_exported", [True, False])
def test_a_run_hands_its_reading_to_fine_tuning_and_embed(
    is_exported: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(pretraining(tmp_path, 1))
    run = tmp_path / "run"
    export = run / "export" / "encoder.safetensors"
    weights = export if is_exported else run
    if not is_exported:
        export.unlink()
    config = finetuning(weights)
    assert create_reading(config) == READING
    transform = create_evaluation_transform(config)
    black = transform(torch.zeros(2, 40, 40, dtype=torch.uint8))
    torch.testing.assert_close(black[:, 0, 0], torch.tensor([-3.0, -2.0]))
    _, info = load_described_encoder(weights)
    assert info.reading() == READING
    assert (info.mean, info.std) == ((0.3, 0.4), (0.1, 0.2))
    capsys.readouterr()


def test_a_classifier_says_all_of_how_its_images_were_read(tmp_path: Path) -> None:
    values = {"value_range": [0, 4095], "invalid": 7, "holes": False}
    plain = {
        "run": {"dir": "unused"},
        "data": {"path": "unused", "in_chans": 2, "image_size": 64, **values},
        "model": {"name": "convnextv2_atto"},
        "train": {"steps": 1},
        "augment": {"rand_augment": None},
    }
    config = from_plain(FinetuneConfig, plain, where="test")
    model = create_backbone("convnextv2_atto", in_chans=2, num_classes=2)
    scores = ClassificationScores(torch.eye(2).long(), 0.1)
    path = tmp_path / "classifier.safetensors"
    export_classifier(model.state_dict(), path, config, ("a", "b"), 1, scores)
    info = EncoderInfo.from_metadata(read_metadata(path))
    assert info is not None
    assert info.reading() == create_reading(config)
    assert info.reading().invalid == 7
    assert not info.reading().holes
