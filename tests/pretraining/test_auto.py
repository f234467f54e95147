"""What is left to rules in a pretraining: told, recorded, kept by a continued run, overridden."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pictures_on_disk import write_pictures
from speck import SPECK

from fcmae.__main__ import main
from fcmae.errors import DONE
from fcmae.model.structure import patch_for, variant_for
from fcmae.pretraining.recipe import peak_rate, warmup_steps
from fcmae.training.auto import steps_in

pytestmark = pytest.mark.usefixtures("undrawn")

SMALL = {
    "data.image_size": "64",
    "data.workers": "0",
    "model.decoder_dim": "8",
    "model.name": SPECK,
    "train.batch_size": "4",
    "health.checks": "0",
    "evaluate.draws": "0",
    "log.tensorboard": "false",
    "train.device": "cpu",
}


def pretrain(folder: Path, **settings: str) -> int:
    """Pretrain on folder/pictures in folder/run."""
    plain = SMALL | {"run.dir": str(folder / "run"), "data.path": str(folder / "pictures")}
    given = plain | {name.replace("__", "."): value for name, value in settings.items()}
    return main(["pretrain", *(f"--{name}={value}" for name, value in given.items())])


def recorded(folder: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = yaml.safe_load((folder / "run/config.yaml").read_text())
    return found


def test_values_are_told_with_their_rule_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path / "pictures", 30, channels=3)
    assert pretrain(tmp_path, train__steps="20") == DONE
    told, settings = capsys.readouterr().err, recorded(tmp_path)
    values = [value for section in settings.values() for value in section.values()]
    assert "auto" not in values
    assert f"auto: optim.warmup_steps {warmup_steps(20)}: " in told
    assert settings["optim"]["warmup_steps"] == warmup_steps(20)
    enlarged = 64 / 48
    assert settings["optim"]["base_lr"] == pytest.approx(peak_rate(4, enlarged) * 64, rel=0.01)
    assert "auto: optim.schedule wsd: " in told
    assert "auto: mask.patch_size 32: 2 patches along the shorter side." in told
    for flip in ("horizontal_flip", "vertical_flip", "rotate90"):
        value = str(settings["data"][flip]).lower()
        assert f"auto: data.{flip} {value}: copies" in told


def test_what_is_said_wins_and_is_not_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path / "pictures", 8, channels=1)
    said = {"optim__base_lr": "0.5e-3", "optim__warmup_epochs": "0", "data__rotate90": "true"}
    assert pretrain(tmp_path, train__steps="2", data__in_chans="1", **said) == DONE
    told, settings = capsys.readouterr().err, recorded(tmp_path)
    for name in ("optim.base_lr", "optim.warmup_steps", "data.rotate90"):
        assert f"auto: {name}" not in told
    assert settings["optim"]["base_lr"] == 0.5e-3
    assert (settings["optim"]["warmup_epochs"], settings["optim"]["warmup_steps"]) == (0.0, None)
    assert settings["data"]["rotate90"] is True


def test_a_continued_run_keeps_its_values_whatever_files_came(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path / "pictures", 30, channels=3)
    assert pretrain(tmp_path, train__epochs="2", checkpoint__keep_every="1") == DONE
    before = recorded(tmp_path)
    # Unfinished again, and with far more files, which other rules would see.
    (tmp_path / "run/finished.txt").unlink()
    write_pictures(tmp_path / "pictures/more", 90, channels=3)
    capsys.readouterr()
    assert pretrain(tmp_path, train__epochs="2", checkpoint__keep_every="1") == DONE
    assert recorded(tmp_path) == before
    assert "auto: optim.base_lr" not in capsys.readouterr().err


def test_a_run_of_before_the_rules_goes_on_with_what_it_had(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 12, channels=3)
    old = {
        "optim__base_lr": "1.5e-4",
        "optim__schedule": "cosine",
        "optim__warmup_steps": "null",
        "data__vertical_flip": "false",
    }
    assert pretrain(tmp_path, train__steps="4", **old) == DONE
    settings = recorded(tmp_path)
    for section, name in (("optim", "schedule"), ("optim", "decay_share"), ("train", "time")):
        del settings[section][name]  # what that version did not have
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "run/finished.txt").unlink()
    assert pretrain(tmp_path, train__steps="4") == DONE
    again = recorded(tmp_path)["optim"]
    assert (again["base_lr"], again["warmup_steps"], again["schedule"]) == (1.5e-4, None, "cosine")


def test_a_run_that_is_given_a_time_has_its_steps_fixed_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path / "pictures", 12, channels=3)
    assert pretrain(tmp_path, train__time="1s") == DONE
    told, settings = capsys.readouterr().err, recorded(tmp_path)
    steps = settings["train"]["steps"]
    assert isinstance(steps, int)
    assert steps >= 1
    assert f"auto: train.steps {steps}: 1s at the measured " in told
    assert settings["train"]["time"] is None
    (tmp_path / "run/finished.txt").unlink()
    assert pretrain(tmp_path, train__time="1s") == DONE
    assert recorded(tmp_path) == settings


@pytest.mark.parametrize(
    ("size", "stem_stride", "patch"),
    [(224, 4, 32), (448, 4, 64), (128, 4, 32), (64, 2, 16), (32, 1, 8), ((64, 96), 4, 32),
     (384, 4, 64), (480, 4, 32)],
)  # fmt: skip
def test_patches_tile_the_image_and_are_about_seven_a_side(
    size: int | tuple[int, int], stem_stride: int, patch: int
) -> None:
    assert patch_for(size, stem_stride) == patch


def test_more_images_fill_a_larger_encoder() -> None:
    found = [variant_for(count) for count in (500, 19_999, 20_000, 1_000_000)]
    atto, pico, tiny = (f"convnextv2_{name}" for name in ("atto", "pico", "tiny"))
    assert found == [atto, atto, pico, tiny]


def test_a_time_keeps_a_twentieth_for_looks_and_has_a_step_at_least() -> None:
    assert steps_in(1200, 0.5) == 2280
    assert steps_in(1, 100) == 1


def test_the_rate_rises_with_the_root_of_the_batch() -> None:
    assert peak_rate(32) == pytest.approx(3e-4)
    assert peak_rate(8) == pytest.approx(1.5e-4)
    assert peak_rate(4096) == pytest.approx(3.4e-3, rel=0.01)


def test_the_rate_falls_with_the_enlargement_of_small_pictures_to_a_third() -> None:
    assert [peak_rate(32, by) for by in (0.4, 1, 1.5)] == pytest.approx([3e-4, 3e-4, 2e-4])
    assert peak_rate(32, 3) == peak_rate(32, 12) == pytest.approx(1e-4)


@pytest.mark.parametrize("size", ["64", "128"])
def test_how_far_pictures_are_enlarged_is_seen_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    write_pictures(tmp_path / "pictures", 12, channels=3, side=64)
    assert pretrain(tmp_path, train__steps="1", data__image_size=size) == DONE
    enlarged = int(size) / 64
    settings = recorded(tmp_path)["optim"]
    assert settings["base_lr"] == pytest.approx(peak_rate(4, enlarged) * 64, rel=0.01)
    told = " for 4 images that are enlarged 2 times." in capsys.readouterr().err
    assert told == (enlarged > 1)
