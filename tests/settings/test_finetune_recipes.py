"""Recipes in configs/ can be read, built and written back; impossible settings are refused."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from settled import settled

from fcmae.errors import ConfigError
from fcmae.finetuning.setup import create_augmentation, layer_groups
from fcmae.model.backbones import VARIANTS, create_backbone
from fcmae.settings.finetune import (
    AugmentConfig,
    CompareConfig,
    EmaConfig,
    FinetuneConfig,
    FinetuneDataConfig,
    FinetuneEvaluateConfig,
    FinetuneModelConfig,
    FinetuneOptimConfig,
)
from fcmae.settings.reading import load, parse, to_yaml
from fcmae.settings.sections import RunConfig, TrainConfig
from fcmae.training.schedule import Schedule

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PUBLISHED = [CONFIGS / "finetune" / f"{variant}.yaml" for variant in VARIANTS]
FILES = [*PUBLISHED, CONFIGS / "quickstart_finetune.yaml"]
# The paper's Tables 9-11; base and large at the learning rate of the authors' TRAINING.md:
# base_lr, weight decay, layer decay, form, epochs, warm-up, smoothing, mixup, cutmix, drop path.
RECIPES = {
    "atto": (2e-4, 0.3, 0.9, "single", 600, 0, 0.2, 0, 0, 0.1),
    "femto": (2e-4, 0.05, 0.9, "single", 600, 0, 0.2, 0.3, 0.3, 0.0),
    "pico": (2e-4, 0.3, 0.9, "single", 600, 0, 0.2, 0.3, 0.3, 0.0),
    "nano": (2e-4, 0.3, 0.9, "single", 600, 0, 0.2, 0.5, 0.5, 0.1),
    "tiny": (8e-4, 0.05, 0.9, "single", 300, 40, 0.1, 0.8, 1.0, 0.2),
    "base": (6.25e-4, 0.05, 0.6, "group", 100, 20, 0.1, 0.8, 1.0, 0.1),
    "large": (6.25e-4, 0.05, 0.6, "group", 100, 20, 0.1, 0.8, 1.0, 0.2),
    "huge": (1.25e-3, 0.05, 0.75, "single", 50, 10, 0.1, 0.8, 1.0, 0.3),
}


@functools.cache
def read(path: Path) -> FinetuneConfig:
    arguments = ["--config", str(path), "--data.path", "images"]
    return parse(FinetuneConfig, arguments, prog="fcmae finetune")


def test_there_is_a_recipe_for_every_variant() -> None:
    names = {path.stem for path in (CONFIGS / "finetune").glob("*.yaml")}
    assert names == {*VARIANTS, "segmentation"}


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_recipe_is_the_papers(path: Path) -> None:
    config = read(path)
    optim, augment = config.optim, config.augment
    found = (
        *(optim.base_lr, optim.weight_decay, optim.layer_decay, optim.layer_decay_assigner),
        *(config.train.epochs, optim.warmup_epochs),
        *(augment.smoothing, augment.mixup, augment.cutmix, config.model.drop_path),
    )
    assert found == RECIPES[path.stem]
    assert config.model.name == f"convnextv2_{path.stem}"
    assert config.train.batch_size * config.train.accumulate == 1024
    assert (optim.min_lr, optim.betas, optim.clip_grad) == (1e-6, (0.9, 0.999), None)
    assert (augment.rand_augment, augment.reprob) == ("rand-m9-mstd0.5-inc1", 0.25)
    assert (config.ema.decay, config.ema.warmup) == (0.9999, False)
    assert (config.model.head_init_scale, config.data.image_size) == (0.001, 224)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recipe_builds_its_model_and_optimizer(path: Path) -> None:
    config = settled(read(path))
    with torch.device("meta"):
        model = create_backbone(
            config.model.name,
            in_chans=config.data.in_chans,
            drop_path=config.model.drop_path,
            num_classes=10,
        )
    assert sum(len(group["params"]) for group in layer_groups(config, model)) == (
        len(list(model.parameters()))
    )
    without_weights = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, weights=None),
        compare=CompareConfig(),
    )
    create_augmentation(without_weights)
    assert Schedule(config.train, config.optim, 10_000, 1024).total_steps > 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recipe_survives_being_written_and_read(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "config.yaml"
    copy.write_text(to_yaml(read(path)), encoding="utf-8")
    assert load(FinetuneConfig, copy) == read(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_header_says_command_time_and_expected_result(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    header = text[: text.index("\n\n")]
    assert f"finetune.py --config configs/{path.relative_to(CONFIGS)}" in header
    assert "Hardware and time:" in header
    assert "Expected:" in header
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("variant", ["base", "large"])
def test_disputed_learning_rate_is_explained(variant: str) -> None:
    text = (CONFIGS / "finetune" / f"{variant}.yaml").read_text(encoding="utf-8")
    assert "6.25e-3" in text
    assert "TRAINING.md 6.25e-4" in text


def config_with(**sections: Any) -> FinetuneConfig:
    return FinetuneConfig(
        **{
            "run": RunConfig(dir="runs/x"),
            "data": FinetuneDataConfig(path="images"),
            "train": TrainConfig(steps=10, batch_size=8),
            **sections,
        }
    )


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"val_share": 1.0}}, r"data.val_share: got 1.0, expected more than 0"),
        ({"data": {"train_per_class": 0}}, r"data.train_per_class: got 0, expected 1 or more"),
        ({"data": {"crop_pct": 0}}, r"data.crop_pct: got 0"),
        ({"data": {"value_range": (5, 5)}}, r"data.value_range: got \(5, 5\)"),
        ({"data": {"workers": -1}}, r"data.workers: got -1"),
        ({"data": {"timeout_seconds": 0}}, r"data.timeout_seconds: got 0"),
        ({"data": {"max_skipped_share": 2}}, r"data.max_skipped_share: got 2"),
        ({"data": {"image_size": 0}}, r"data.image_size: got 0, expected 1 to 16384 px per side"),
        ({"model": {"drop_path": 1.0}}, r"model.drop_path: got 1.0, expected 0 to below 1"),
        ({"model": {"head_init_scale": -1}}, r"model.head_init_scale: got -1"),
        ({"optim": {"layer_decay": 0}}, r"optim.layer_decay: got 0, expected more than 0 to 1"),
        ({"optim": {"base_lr": -1}}, r"optim.base_lr: got -1"),
        ({"ema": {"decay": 1.0}}, r"ema.decay: got 1.0, expected more than 0, below 1, or null"),
        ({"augment": {"crop_scale": (0.5, 0.1)}}, r"augment.crop_scale: got \[0.5, 0.1\]"),
        ({"augment": {"mixup": -1}}, r"augment.mixup: got -1"),
        (
            {"augment": {"reprob": 1.5}},
            r"augment.reprob: got 1.5, expected a share between 0 and 1",
        ),
        ({"augment": {"smoothing": 1}}, r"augment.smoothing: got 1, expected 0 to below 1"),
        (
            {"augment": {"color_jitter": 0.4, "rand_augment": "rand-m9-mstd0.5-inc1"}},
            r"rand-m9-mstd0.5-inc1 and 0.4, expected at most one",
        ),
        (
            {"data": {"in_chans": 5}, "augment": {"rand_augment": "augmix"}},
            r"with 5 channels, expected null and 0",
        ),
        (
            {"data": {"image_size": (32, 64)}, "augment": {"rotate90": True}},
            r"augment.rotate90: got true with 32 x 64 px, expected square images",
        ),
        (
            {"augment": {"cutmix": 1.0}, "train": {"steps": 10, "batch_size": 7}},
            r"train.batch_size: got 7, expected an even number",
        ),
        (
            {"evaluate": {"every_epochs": 1, "every_steps": 10}},
            r"evaluate.every_steps, evaluate.every_epochs: got 10 and 1, expected at most one",
        ),
        (
            {"evaluate": {"every_steps": 0}},
            r"evaluate.every_steps: got 0, expected 1 or more, or null",
        ),
        ({"evaluate": {"batch_size": 0}}, r"evaluate.batch_size: got 0"),
        ({"compare": {"seeds": 2}}, r"compare.seeds: got 2, expected 3 or more: fewer show no"),
        ({"compare": {"scratch": True}}, r"model.weights: got null with compare.scratch true"),
        (
            {
                "compare": {"scratch": True},
                "model": {"weights": "x"},
                "evaluate": {"only": True},
            },
            r"compare.scratch, evaluate.only: got true and true, expected at most one",
        ),
        ({"compare": {"scratch_base_lr": -1}}, r"compare.scratch_base_lr: got -1"),
        ({"compare": {"scratch_layer_decay": 2}}, r"compare.scratch_layer_decay: got 2"),
    ],
)
def test_impossible_settings_are_refused(sections: dict[str, Any], message: str) -> None:
    classes: dict[str, Any] = {
        "data": functools.partial(FinetuneDataConfig, path="images"),
        "model": FinetuneModelConfig,
        "augment": AugmentConfig,
        "optim": FinetuneOptimConfig,
        "ema": EmaConfig,
        "evaluate": FinetuneEvaluateConfig,
        "compare": CompareConfig,
        "train": TrainConfig,
    }
    built = {name: classes[name](**settings) for name, settings in sections.items()}
    with pytest.raises(ConfigError, match=message):
        config_with(**built)


def test_schedule_warms_up_and_ends_at_the_least_rate() -> None:
    optim = FinetuneOptimConfig(base_lr=2.56e-2, min_lr=1e-6, warmup_steps=4)
    config = config_with(optim=optim)
    schedule = Schedule(config.train, config.optim, num_images=100, effective_batch=10)
    assert schedule.peak == pytest.approx(1e-3)
    assert schedule(0) == pytest.approx(0.25e-3)
    assert schedule(3) == pytest.approx(1e-3)
    assert schedule(10) == pytest.approx(1e-6)
    assert schedule.steps(None, None, otherwise=schedule.total_steps) == 10


def test_schedule_counts_epochs_in_images() -> None:
    config = config_with(
        train=TrainConfig(epochs=3, batch_size=8),
        evaluate=FinetuneEvaluateConfig(every_epochs=1),
        optim=FinetuneOptimConfig(base_lr=1.0, warmup_epochs=0.5),
    )
    schedule = Schedule(config.train, config.optim, num_images=100, effective_batch=10)
    evaluate = config.evaluate
    cadence = schedule.steps(evaluate.every_steps, evaluate.every_epochs)
    found = (schedule.total_steps, schedule.warmup_steps, cadence)
    assert found == (30, 5, 10)


def test_schedule_refuses_a_warm_up_longer_than_the_run() -> None:
    config = config_with(optim=FinetuneOptimConfig(base_lr=1e-3, warmup_steps=11))
    with pytest.raises(ConfigError, match=r"warm-up takes 11 steps and the whole run 10"):
        Schedule(config.train, config.optim, 100, 8)


def test_schedule_refuses_a_least_rate_above_the_peak() -> None:
    config = config_with(optim=FinetuneOptimConfig(base_lr=1e-6, min_lr=1e-6, warmup_steps=0))
    with pytest.raises(ConfigError, match=r"optim.min_lr: 1e-06 is above the peak rate 3.125e-08"):
        Schedule(config.train, config.optim, 100, 8)
