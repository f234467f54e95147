"""The recipe of segmentation is the paper's, can be read and written back, and says what it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fcmae.data.label_masks import MaskClasses
from fcmae.errors import ConfigError
from fcmae.finetuning.segmentation.setup import layer_groups
from fcmae.model.segmenter import build_segmenter, timm_name
from fcmae.settings.reading import load, parse, to_yaml
from fcmae.settings.segmentation import SegmentationConfig
from fcmae.settings.tasks import load_finetuning_settings, task_settings
from fcmae.training.schedule import peak_lr

RECIPE = Path(__file__).resolve().parents[2] / "configs/finetune/segmentation.yaml"
WORDS = [
    *("--config", str(RECIPE), "--data.path=images", "--data.masks=masks"),
    *("--data.classes={ground: 0, crack: 255}", "--model.name=convnextv2_tiny"),
]


def read(*more: str) -> SegmentationConfig:
    config_class, words = task_settings([*WORDS, *more])
    assert config_class is SegmentationConfig
    return parse(SegmentationConfig, words, prog="fcmae finetune")


def test_the_recipe_is_the_papers() -> None:
    config = read()
    optim = config.optim
    assert config.task.architecture == "upernet"
    assert (config.train.steps, config.train.batch_size, config.data.image_size) == (
        160000,
        16,
        512,
    )
    assert 1e-4 <= peak_lr(optim.base_lr, 16) <= 3e-4
    assert (optim.weight_decay, optim.layer_decay, optim.betas) == (0.05, 0.9, (0.9, 0.999))
    assert (optim.warmup_steps, optim.min_lr) == (1500, 0)
    assert 0.1 <= config.model.drop_path <= 0.4
    assert config.augment.scale == (0.5, 2.0)


def test_the_recipe_survives_being_written_and_read(tmp_path: Path) -> None:
    copy = tmp_path / "config.yaml"
    copy.write_text(to_yaml(read()), encoding="utf-8")
    assert load(SegmentationConfig, copy) == load_finetuning_settings(copy) == read()


def test_the_header_says_command_time_and_expected_result() -> None:
    text = RECIPE.read_text(encoding="utf-8")
    header = text[: text.index("\n\n")]
    for part in ("finetune.py --config configs/finetune/segmentation.yaml", "Hardware and time:"):
        assert part in header
    assert "Expected:" in header
    assert max(map(len, text.splitlines())) <= 100


def test_the_decoder_learns_at_the_full_rate_and_first_layers_at_the_least() -> None:
    config = read("--task.decoder_channels=64")
    with torch.device("meta"):
        network = build_segmenter("upernet", "convnextv2_tiny", in_chans=3, num_classes=2)
    groups = layer_groups(config, network)
    of = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    scales = {name: of[id(p)] for name, p in network.named_parameters()}
    assert len(scales) == len(of)
    assert {scale for name, scale in scales.items() if timm_name(name) is None} == {1.0}
    assert scales["encoder.model.stem_0.weight"] == pytest.approx(0.9**13)
    assert scales["encoder.model.stages_3.blocks.2.conv_dw.weight"] == pytest.approx(0.9)


def test_classes_are_what_masks_hold() -> None:
    data = read().data
    found = MaskClasses.of_settings(data.classes, data.ignore_index)
    assert found == MaskClasses(("ground", "crack"), (0, 255))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--data.classes={a: 0, b: [1, 2, 3]}", "got numbers and colours, expected one of them"),
        ("--data.classes={a: [0, 0], b: [1, 2]}", r"expected \[red, green, blue\], each 0 to 255"),
        ("--data.classes=[a, a]", "data.classes: got .*, expected different names"),
        ("--data.ignore_index=255", "expected a value of its own for each"),
        ("--data.ignore_index=[1, 2, 3]", "a colour where data.classes has colours"),
        ("--data.val_masks=masks", "without data.val_path"),
        ("--augment.scale=[2, 1]", r"augment.scale: got \[2.0, 1.0\], expected 0 < low <= high"),
        ("--evaluate.tile_size=100", "evaluate.tile_size: got 100, expected multiples of 32 px"),
        ("--data.label=type", "expected null, since masks are the labels"),
        ("--model.stem_stride=2", "model.stem_stride: got 2, expected 4, since decoders"),
        ("--compare.scratch=true", "weights to compare with training from scratch"),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(word)


def test_an_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"task: got 'boxes', expected classification or segm"):
        task_settings(["--task", "boxes"])
