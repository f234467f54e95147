"""Masks that cannot be right: one sentence before training, with the file's name."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from example_scripts import INFO
from masked_pictures import segment_arguments, write_pairs
from PIL import Image

from fcmae.__main__ import main
from fcmae.errors import DONE, MISTAKE
from fcmae.weights.export import export

MASK = "masks/03.png"


def no_masks(data: Path) -> None:
    for path in (data / "masks").iterdir():
        path.unlink()


def other_size(data: Path) -> None:
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(data / MASK)


def unknown_value(data: Path) -> None:
    mask = np.zeros((43, 47), np.uint8)
    mask[2, 3:5] = 7
    Image.fromarray(mask).save(data / MASK)


def unknown_colour(data: Path) -> None:
    for path in (data / "masks").iterdir():
        with Image.open(path) as mask:
            coloured = mask.convert("RGB")
        coloured.putpixel((0, 0), (9, 8, 7))
        coloured.save(path)


def colours_for_numbers(data: Path) -> None:
    with Image.open(data / MASK) as mask:
        mask.convert("RGB").save(data / MASK)


def all_of_one(data: Path) -> None:
    for path in (data / "masks").iterdir():
        with Image.open(path) as mask:
            size = mask.size[::-1]
        Image.fromarray(np.zeros(size, np.uint8)).save(path)


def jpegs(data: Path) -> None:
    for path in (data / "masks").iterdir():
        with Image.open(path) as mask:
            mask.convert("L").save(path.with_suffix(".jpg"))
        path.unlink()


def some_missing(data: Path) -> None:
    (data / MASK).unlink()
    (data / "masks/04.png").unlink()


def inside(data: Path) -> None:
    (data / "masks").rename(data / "images" / "masks")


def twice(data: Path) -> None:
    np.save(data / "masks/03.npy", np.zeros((43, 47), np.uint8))


def nothing(data: Path) -> None:
    """Leave all as it is."""


COLOURS = "{ground: [0, 0, 0], square: [255, 0, 0], dot: [0, 0, 255]}"
CASES: dict[str, tuple[Callable[[Path], object], dict[str, object], str]] = {
    "no masks": (no_masks, {}, r"data.masks: no mask was found for any of the 8 images; that of "),
    "no folder": (nothing, {"data__masks": "nowhere"}, r"'nowhere' is no folder"),
    "neither folder nor suffix": (nothing, {"data__masks": "null"}, r"mask_suffix: got neither"),
    "masks of other size": (
        other_size,
        {},
        r"masks/03.png' is 9 x 8 px, and its image '.*images/03.png' 43 x 47 px",
    ),
    "unknown value": (
        unknown_value,
        {},
        r"masks/03.png' has 2 pixels of the value 7, which is no class; expected 0 \(ground\)",
    ),
    "unknown colour": (
        unknown_colour,
        {"data__classes": COLOURS},
        r"has 1 pixels of the colour \[9, 8, 7\], which is no class \(7 more masks are like it\)",
    ),
    "colours where numbers are expected": (
        colours_for_numbers,
        {"data__max_skipped_share": 0.05},
        r"has colours, and classes are numbers; give data.classes colours",
    ),
    "one class only": (all_of_one, {}, r"are of one class only, 'ground'"),
    "one value only": (
        all_of_one,
        {"data__classes": "null"},
        r"have the value 0, one class only; expected two or more",
    ),
    "one class named": (nothing, {"data__classes": "{crack: 1}"}, r"got one class only"),
    "the same value twice": (
        nothing,
        {"data__classes": "{a: 1, b: 1}"},
        r"expected a value of its own for each",
    ),
    "jpegs": (jpegs, {}, r"is a JPEG, which changes values; write masks as PNG"),
    "missing": (some_missing, {}, r"2 images have no mask: '.*03.png', '.*04.png', which is more"),
    "inside of the images' folder": (
        inside,
        {"data__masks": "IMAGES/masks"},
        r"lies inside of the images' folder, .*--data.exclude",
    ),
    "two masks of one image": (twice, {}, r"has 2 masks, '.*03.npy' and '.*03.png'"),
    "crops that no encoder divides": (nothing, {"data__image_size": 40}, r"multiples of 32 px"),
    "a stem that decoders do not fit": (
        nothing,
        {"model__stem_stride": 2},
        r"model.stem_stride: got 2, expected 4, since decoders .*: pretrain",
    ),
    "an unknown task": (nothing, {"task": "detection"}, r"expected classification or segmentation"),
    "an encoder of the first version that is none": (
        nothing,
        {"model__name": "convnext_nothing"},
        r"'convnext_nothing' is not a ConvNeXt of timm",
    ),
    "validation without its masks": (
        nothing,
        {"data__val_path": "IMAGES"},
        r"data.val_masks: not given beside data.val_path",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_sentence_before_training(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, settings, expected = CASES[name]
    data = write_pairs(tmp_path / "data", 8)
    change(data)
    images = str(data / "images")
    given = {key: str(value).replace("IMAGES", images) for key, value in settings.items()}
    assert main(segment_arguments(data, tmp_path / "run", **given)) == MISTAKE
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(expected, said), said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_weights_of_other_classes_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pairs(tmp_path / "data", 8)
    assert main(segment_arguments(data, tmp_path / "run", train__steps=1)) == DONE
    words = segment_arguments(
        data,
        tmp_path / "alone",
        evaluate__only="true",
        model__weights=tmp_path / "run",
        data__classes="{ground: 0, thing: 1, dot: 2}",
    )
    capsys.readouterr()
    assert main(words) == MISTAKE
    assert "is for the classes ground, square, dot, and data.classes" in capsys.readouterr().err


def test_weights_with_another_stem_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pairs(tmp_path / "data", 8)
    info = dataclasses.replace(INFO, model_name="convnextv2_speck", stem_stride=2)
    weights = tmp_path / "encoder.safetensors"
    export(info.create_model(), "timm", weights, info)
    words = segment_arguments(data, tmp_path / "run", model__weights=weights)
    assert main(words) == MISTAKE
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "has a stem of stride 2, expected 4, since decoders begin at a quarter" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["finetune", "compare"])
def test_a_missing_smp_is_told_before_anything_is_written(
    command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = write_pairs(tmp_path / "data", 8)
    weights = tmp_path / "encoder.safetensors"
    info = dataclasses.replace(INFO, model_name="convnextv2_speck")
    export(info.create_model(), "timm", weights, info)
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    words = segment_arguments(data, tmp_path / "run", model__weights=weights)
    assert main([command, *words[1:]]) == MISTAKE
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "install the extra: pip install 'fcmae[segmentation]'" in said
    assert not (tmp_path / "run").exists()


def test_a_few_images_without_masks_are_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pairs(tmp_path / "data", 10)
    (data / MASK).unlink()
    words = segment_arguments(data, tmp_path / "run", train__steps=1, data__max_skipped_share=0.2)
    assert main(words) == DONE
    assert "1 images have no mask: " in capsys.readouterr().err
    assert "03.png" not in (tmp_path / "run/images.jsonl").read_text()
