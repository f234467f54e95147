"""What is left to rules in a fine-tuning: by labels and steps, told, recorded, kept, overridden."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from pictures_on_disk import write_pictures
from safetensors.torch import save_file
from speck import SPECK
from tiny_run import make_run

from fcmae.__main__ import main
from fcmae.data import ImageList, Reading
from fcmae.errors import DONE, MISTAKE
from fcmae.finetuning.recipe import (
    FEWEST_STEPS,
    MOST_STEPS,
    choose_after_length,
    choose_before_length,
    steps_for,
)
from fcmae.settings.auto import autos
from fcmae.settings.finetune import FinetuneConfig
from fcmae.settings.reading import parse

SMALL = {
    "data.image_size": "64",
    "data.in_chans": "1",
    "data.workers": "0",
    "train.batch_size": "4",
    "log.tensorboard": "false",
    "train.device": "cpu",
}


def finetune(folder: Path, **settings: str) -> int:
    """Fine-tune folder/weights on folder/pictures in folder/run."""
    plain = SMALL | {"run.dir": str(folder / "run"), "data.path": str(folder / "pictures")}
    given = plain | {"model.weights": str(folder / "weights")}
    given |= {name.replace("__", "."): value for name, value in settings.items()}
    return main(["finetune", *(f"--{name}={value}" for name, value in given.items())])


def recorded(folder: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = yaml.safe_load((folder / "run/config.yaml").read_text())
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        write_pictures(tmp_path / "pictures" / name, 20, channels=1)
    make_run(tmp_path / "weights", name=SPECK)
    return tmp_path


def test_the_weights_say_the_model_and_the_labels_the_rest(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(folder, train__steps="4") == DONE
    told, settings = capsys.readouterr().err, recorded(folder)
    assert settings["model"]["name"] == SPECK
    assert f"auto: model.name {SPECK}: as model.weights say." in told
    assert "auto: augment.crop_scale" in told
    assert settings["augment"]["rand_augment"] is None
    values = [value for section in settings.values() for value in section.values()]
    assert "auto" not in values


def test_a_continued_run_keeps_its_values_whatever_labels_came(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(folder, train__epochs="1") == DONE
    before = recorded(folder)
    (folder / "run/finished.txt").unlink()
    write_pictures(folder / "pictures/a/more", 60, channels=1)
    capsys.readouterr()
    assert finetune(folder, train__epochs="1") == DONE
    assert recorded(folder) == before
    assert "auto: optim.base_lr" not in capsys.readouterr().err


def test_what_is_said_wins(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = {"optim__base_lr": "0.5e-3", "augment__mixup": "0.8", "ema__decay": "0.9"}
    assert finetune(folder, train__steps="2", **said) == DONE
    told, settings = capsys.readouterr().err, recorded(folder)
    for name in ("optim.base_lr", "augment.mixup", "ema.decay"):
        assert f"auto: {name}" not in told
    found = (settings["optim"]["base_lr"], settings["augment"]["mixup"], settings["ema"]["decay"])
    assert found == (0.5e-3, 0.8, 0.9)


def test_weights_that_name_no_model_are_asked_for_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"head.weight": torch.zeros(1)}, folder / "plain.safetensors")
    weights = str(folder / "plain.safetensors")
    assert finetune(folder, train__steps="2", model__weights=weights) == MISTAKE
    told = capsys.readouterr().err
    assert "plain.safetensors does not say which model it belongs to; add --model.name" in told


def resolved(labels: int, steps: int, *words: str) -> FinetuneConfig:
    """Return settings for so many labels and steps of 32, whose pictures nobody looks at."""
    plain = ["--run.dir=r", "--data.path=d", "--model.weights=w", "--train.batch_size=32"]
    flips = [f"--augment.{name}=false" for name in ("horizontal_flip", "vertical_flip", "rotate90")]
    asks_no_file = ["--model.head_start=random", "--data.image_size=224"]
    config = parse(FinetuneConfig, [*plain, *flips, *asks_no_file, *words], prog="fcmae")
    images = ImageList(paths=tuple(f"{number}.png" for number in range(labels)))
    choices = choose_before_length(config, images, Reading(in_chans=3), "convnextv2_atto")
    choose_after_length(choices, steps, 32)
    found: FinetuneConfig = choices.config
    return found


@pytest.mark.parametrize(("labels", "steps"), [(40, 200), (500, 400), (50_000, 4000)])
def test_nothing_is_left_open_and_everything_can_be(labels: int, steps: int) -> None:
    assert list(autos(resolved(labels, steps))) == []
    assert list(autos(resolved(labels, steps, "--data.in_chans=5"))) == []
    assert list(autos(resolved(labels, steps, "--train.batch_size=33"))) == []


def test_many_labels_bear_the_strong_changes_that_few_do_not() -> None:
    few, many = resolved(100, 200), resolved(50_000, 4000)
    assert (few.augment.rand_augment, few.augment.mixup, few.ema.decay) == (None, 0.0, None)
    assert many.augment.rand_augment == "rand-m9-mstd0.5-inc1"
    assert (many.augment.mixup, many.augment.cutmix) == (0.8, 1.0)
    assert many.ema.decay is not None


def test_no_length_is_epochs_of_the_labels_within_bounds() -> None:
    assert steps_for(40, 32) == FEWEST_STEPS
    assert steps_for(10**6, 32) == MOST_STEPS
    assert FEWEST_STEPS < steps_for(1600, 32) < MOST_STEPS
