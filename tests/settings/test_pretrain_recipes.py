"""Every pretraining recipe in configs/ can be read, built and written back."""

import functools
from pathlib import Path

import pytest
import torch

from fcmae.model.autoencoder import create_model
from fcmae.model.backbones import VARIANTS
from fcmae.pretraining.recipe import with_numbers
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.reading import load, parse, to_yaml
from fcmae.training.schedule import Schedule

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "pretrain"
FILES = sorted(FOLDER.glob("*.yaml"))
PUBLISHED = [FOLDER / f"{variant}.yaml" for variant in VARIANTS]


@functools.cache
def read(path: Path) -> PretrainConfig:
    arguments = ["--config", str(path), "--data.path", "images"]
    return parse(PretrainConfig, arguments, prog="fcmae pretrain")


def test_there_is_a_recipe_for_every_variant_for_small_data_and_for_going_on() -> None:
    assert {path.stem for path in FILES} == {*VARIANTS, "small_data", "continue"}


def test_going_on_from_weights_is_gentler_than_a_run_from_random_ones() -> None:
    config = read(FOLDER / "continue.yaml")
    usual = with_numbers(read(FOLDER / "small_data.yaml"), 10_000)
    assert config.model.init_from == "timm/convnextv2_tiny.fcmae"
    assert config.optim.base_lr <= usual.optim.base_lr / 4
    assert config.optim.layer_decay < 1
    assert usual.optim.layer_decay == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recipe_builds_its_model(path: Path) -> None:
    config = with_numbers(read(path), 10_000)
    with torch.device("meta"):
        model = create_model(config)
    assert model.num_patches == 49
    assert all(parameter.is_meta for parameter in model.parameters())
    assert Schedule(config.train, config.optim, 10_000, 256).total_steps > 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recipe_survives_being_written_and_read(path: Path, tmp_path: Path) -> None:
    config = read(path)
    copy = tmp_path / "config.yaml"
    copy.write_text(to_yaml(config), encoding="utf-8")
    assert load(PretrainConfig, copy) == config


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_header_says_command_time_and_expected_result(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    header = text[: text.index("\n\n")]
    assert f"pretrain.py --config configs/pretrain/{path.name} " in header
    assert "Hardware and time: not measured." in header
    assert "Expected:" in header


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_recipe_is_the_papers(path: Path) -> None:
    config = read(path)
    assert config.model.name == f"convnextv2_{path.stem}"
    assert config.train.batch_size * config.train.accumulate == 4096
    assert (config.train.epochs, config.optim.warmup_epochs) == (1600, 40)
    assert (config.optim.base_lr, config.optim.min_lr) == (1.5e-4, 0.0)
    assert (config.optim.weight_decay, config.optim.betas) == (0.05, (0.9, 0.95))
    assert config.optim.clip_grad is None
    assert (config.mask.ratio, config.mask.patch_size) == (0.6, 32)
    assert (config.model.decoder_dim, config.model.decoder_depth) == (512, 1)
    assert config.data.crop_scale == (0.2, 1.0)
    assert config.loss.normalize_targets


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recipe_fits_a_hundred_columns(path: Path) -> None:
    assert max(map(len, path.read_text(encoding="utf-8").splitlines())) <= 100
