"""The image size that follows from the pictures: the rule, told, recorded, kept, overridden."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from pictures_on_disk import write_pictures
from PIL import Image
from speck import SPECK

from fcmae.__main__ import main
from fcmae.data import find_images
from fcmae.errors import DONE
from fcmae.model.structure import image_size_for, with_structure
from fcmae.pretraining.recipe import choose_before_length
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.reading import parse

pytestmark = pytest.mark.usefixtures("undrawn")

NAME = "data.image_size"


def settings(folder: Path, **said: object) -> PretrainConfig:
    """Return settings of a pretraining on the folder; `said` are section__name=value."""
    words = [f"--{name.replace('__', '.')}={value}" for name, value in said.items()]
    plain = ["--run.dir=r", f"--data.path={folder}"]
    return parse(PretrainConfig, [*plain, *words], prog="fcmae")


def chosen(folder: Path, **said: object) -> tuple[object, int, list[str]]:
    """Return image size and patch that rules choose for a folder, and what they say."""
    choices = choose_before_length(settings(folder, **said), find_images(str(folder)), 32)
    return choices.config.data.image_size, choices.config.mask.patch_size, choices.lines


@pytest.mark.parametrize(
    ("median", "unit", "size"),
    [(28, 32, 96), (64, 32, 96), (96, 32, 96), (97, 32, 128), (100, 32, 128), (300, 32, 224),
     (None, 32, 224), (28, 16, 48), (50, 16, 64), (28, 8, 32), (3, 8, 24), (300, 64, 192),
     (40, 256, 256)],
)  # fmt: skip
def test_the_median_is_rounded_up_to_whole_units_from_three_of_them_to_224(
    median: float | None, unit: int, size: int
) -> None:
    assert image_size_for(median, unit) == size


@pytest.mark.parametrize(("side", "size"), [(28, 96), (64, 96), (100, 128), (300, 224)])
def test_the_pictures_say_the_size_and_the_patch_follows(
    tmp_path: Path, side: int, size: int
) -> None:
    write_pictures(tmp_path, 5, side=side)
    found, patch, lines = chosen(tmp_path)
    assert (found, patch) == (size, 32)
    why = f"the median picture has {side} px on its shorter side"
    assert f"auto: {NAME} {size}: {why}." in lines


def test_a_smaller_stem_and_a_given_patch_say_what_tiles(tmp_path: Path) -> None:
    write_pictures(tmp_path, 5, side=28)
    assert chosen(tmp_path, model__stem_stride=1)[:2] == (32, 8)
    assert chosen(tmp_path, model__stem_stride=2)[:2] == (48, 16)
    assert chosen(tmp_path, model__stem_stride=2, mask__patch_size=32)[:2] == (96, 32)


def write_tiff(path: Path, pixels: np.ndarray) -> None:
    tifffile.imwrite(path.with_suffix(".tif"), (pixels * 65535).astype(np.uint16))


def write_array(path: Path, pixels: np.ndarray) -> None:
    np.save(path.with_suffix(".npy"), np.stack([pixels] * 4).astype(np.float32))


def write_turned(path: Path, pixels: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray((pixels * 255).astype(np.uint8)).save(path.with_suffix(".jpg"), exif=exif)


@pytest.mark.parametrize(
    ("write", "channels"), [(write_tiff, 1), (write_array, 4), (write_turned, 3)]
)
def test_the_shorter_side_counts_in_every_format(
    tmp_path: Path, write: Callable[[Path, np.ndarray], None], channels: int
) -> None:
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(90, 310), (400, 110), (130, 131)]):
        write(tmp_path / str(number), rng.random((height, width)))
    size, _, lines = chosen(tmp_path, data__in_chans=channels)
    assert size == 128
    assert any("the median picture has 110 px" in line for line in lines)


def test_where_no_picture_can_be_read_it_is_224(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert chosen(tmp_path)[0] == 224
    assert chosen(tmp_path)[2].count(f"auto: {NAME} 224: no picture could be looked at.") == 1


READER = """
from pathlib import Path

import numpy as np


def read(path):
    with open(Path(__file__).with_name("asked.txt"), "a") as file:
        file.write(path + "\\n")
    return np.zeros((40, 50, 3), np.uint8)
"""


def test_size_and_flips_share_one_look(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(READER)
    write_pictures(tmp_path / "pictures", 30)
    reader = f"{tmp_path / 'own.py'}:read"
    assert chosen(tmp_path / "pictures", data__reader=reader)[0] == 96
    asked = (tmp_path / "asked.txt").read_text().splitlines()
    assert len(asked) == len(set(asked)) == 30


def test_who_says_size_rate_and_flips_has_no_picture_looked_at(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(READER)
    write_pictures(tmp_path / "pictures", 30)
    flips = ("data__horizontal_flip", "data__vertical_flip", "data__rotate90")
    said = {**dict.fromkeys(flips, "false"), "data__image_size": 64, "optim__base_lr": 1e-3}
    reader = f"{tmp_path / 'own.py'}:read"
    assert chosen(tmp_path / "pictures", data__reader=reader, **said)[0] == 64
    assert not (tmp_path / "asked.txt").exists()


def test_without_pictures_at_hand_it_is_224() -> None:
    config = with_structure(settings(Path("nowhere")))
    assert (config.data.image_size, config.mask.patch_size) == (224, 32)
    config = with_structure(settings(Path("nowhere"), data__image_size=96))
    assert config.data.image_size == 96


def test_turns_can_be_asked_for_before_the_size_is_known(tmp_path: Path) -> None:
    write_pictures(tmp_path, 3, side=64)
    assert chosen(tmp_path, data__rotate90="true")[0] == 96


def pretrain(folder: Path, **said: object) -> int:
    """Pretrain for some steps on folder/pictures in folder/run."""
    plain = {
        "run.dir": folder / "run",
        "data.path": folder / "pictures",
        "data.workers": 0,
        "model.name": SPECK,
        "model.decoder_dim": 8,
        "train.batch_size": 2,
        "train.steps": 1,
        "health.checks": 0,
        "evaluate.draws": 0,
        "log.tensorboard": "false",
        "train.device": "cpu",
    }
    given = plain | {name.replace("__", "."): value for name, value in said.items()}
    return main(["pretrain", *(f"--{name}={value}" for name, value in given.items())])


def recorded(folder: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = yaml.safe_load((folder / "run/config.yaml").read_text())
    return found


def test_it_is_told_recorded_and_kept_whatever_files_came(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path / "pictures", 6, side=64)
    assert pretrain(tmp_path) == DONE
    assert f"auto: {NAME} 96: the median picture has 64 px" in capsys.readouterr().err
    before = recorded(tmp_path)
    assert before["data"]["image_size"] == 96
    (tmp_path / "run/finished.txt").unlink()
    write_pictures(tmp_path / "pictures/more", 20, side=200)
    assert pretrain(tmp_path) == DONE
    assert recorded(tmp_path) == before
    assert f"auto: {NAME}" not in capsys.readouterr().err


def test_what_is_said_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path / "pictures", 6, side=100)
    assert pretrain(tmp_path, data__image_size="[64, 96]") == DONE
    assert recorded(tmp_path)["data"]["image_size"] == [64, 96]
    assert f"auto: {NAME}" not in capsys.readouterr().err


def test_a_run_of_before_the_rule_goes_on_at_224(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 6, side=64)
    assert pretrain(tmp_path, data__image_size=224) == DONE
    settings = recorded(tmp_path)
    (tmp_path / "run/finished.txt").unlink()
    assert pretrain(tmp_path) == DONE
    assert recorded(tmp_path) == settings, "as it is recorded"
    del settings["data"]["image_size"]
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "run/finished.txt").unlink()
    assert pretrain(tmp_path) == DONE
    assert recorded(tmp_path)["data"]["image_size"] == 224, "where nothing is recorded"
