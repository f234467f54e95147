"""Masks in every form that people have them: the same class numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from masked_pictures import COLOURS, NAMES, draw_pair, save_palette
from PIL import Image

from fcmae.data.decoding import UndecodableImageError
from fcmae.data.files import find_images
from fcmae.data.label_masks import IGNORED, MaskClasses, read_codes, read_mask_numbers
from fcmae.data.mask_pairs import MaskPlace, pair
from fcmae.errors import ConfigError

NUMBERED = MaskClasses(NAMES, (0, 1, 2))
COLOURED = MaskClasses(NAMES, COLOURS)
HIGH = MaskClasses(NAMES, (0, 300, 65535))
NUMBERS = draw_pair(np.random.default_rng(3), 33, 41)[1]
VALUES = np.array([0, 300, 65535])[NUMBERS]
RGB = np.array(COLOURS, np.uint8)[NUMBERS]
RGBA = np.concatenate([RGB, np.full((33, 41, 1), 255, np.uint8)], axis=2)

FORMS = {
    "index.png": (lambda p: Image.fromarray(NUMBERS).save(p), NUMBERED),
    "palette.png": (lambda p: save_palette(p, NUMBERS), NUMBERED),
    "palette.gif": (lambda p: save_palette(p, NUMBERS), NUMBERED),
    "colours of a palette.png": (lambda p: save_palette(p, NUMBERS), COLOURED),
    "colours.png": (lambda p: Image.fromarray(RGB).save(p), COLOURED),
    "colours with alpha.png": (lambda p: Image.fromarray(RGBA).save(p), COLOURED),
    "grey as rgb.png": (lambda p: Image.fromarray(NUMBERS).convert("RGB").save(p), NUMBERED),
    "deep.png": (lambda p: Image.fromarray(VALUES.astype(np.uint16)).save(p), HIGH),
    "deep.tif": (lambda p: tifffile.imwrite(p, VALUES.astype(np.uint16)), HIGH),
    "bytes.npy": (lambda p: np.save(p, NUMBERS), NUMBERED),
    "wide.npy": (lambda p: np.save(p, VALUES.astype(np.int64)), HIGH),
    "floats.npy": (lambda p: np.save(p, NUMBERS.astype(np.float32)), NUMBERED),
    "bits.npy": (lambda p: np.save(p, NUMBERS.astype(bool)), NUMBERED),
    "a channel.npy": (lambda p: np.save(p, NUMBERS[None]), NUMBERED),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_mask_in_any_form_has_the_same_numbers(name: str, tmp_path: Path) -> None:
    write, classes = FORMS[name]
    write(tmp_path / name)
    found = read_mask_numbers(str(tmp_path / name), classes)
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, np.minimum(NUMBERS, 1) if "bits" in name else NUMBERS)


def test_ignored_pixels_have_no_class(tmp_path: Path) -> None:
    Image.fromarray(np.where(NUMBERS == 2, 255, NUMBERS).astype(np.uint8)).save(tmp_path / "m.png")
    classes = MaskClasses(("ground", "square"), (0, 1), 255)
    found = read_mask_numbers(str(tmp_path / "m.png"), classes)
    np.testing.assert_array_equal(found, np.where(NUMBERS == 2, IGNORED, NUMBERS.astype(int)))


@pytest.mark.parametrize(
    ("content", "coloured", "reason"),
    [
        (NUMBERS + 0.5, False, "has fractions or NaN"),
        (np.zeros((5, 6, 2), np.uint8), False, r"an array of shape \(5, 6, 2\), where"),
        (np.full((5, 6, 3), 300), True, "beyond 255"),
    ],
)
def test_what_is_no_mask_says_why(
    content: np.ndarray, coloured: bool, reason: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "m.npy", content)
    with pytest.raises(UndecodableImageError, match=reason):
        read_codes(str(tmp_path / "m.npy"), are_coloured=coloured)


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(file)


@pytest.mark.parametrize("suffix", ["_mask", "_mask.png"])
def test_masks_beside_images_are_found_by_their_suffix_and_are_no_images(
    suffix: str, tmp_path: Path
) -> None:
    names = ("a/one.png", "a/one_mask.png", "b/two.png", "b/two_mask.png")
    touch(*(tmp_path / name for name in names))
    images, masks, missing = pair(find_images(str(tmp_path)), MaskPlace(None, suffix))
    assert [Path(path).name for path in images.paths] == ["one.png", "two.png"]
    assert {Path(a).stem: Path(b).name for a, b in masks.items()} == {
        "one": "one_mask.png",
        "two": "two_mask.png",
    }
    assert missing == []
    assert images.labels is None
    assert images.accounting is not None
    assert (images.accounting.num_images, images.accounting.masks) == (2, 2)


def test_masks_of_a_folder_are_found_by_the_same_path_and_else_by_a_stem_of_its_own(
    tmp_path: Path,
) -> None:
    touch(*(tmp_path / "i" / name for name in ("a/one.png", "b/one.png", "c/two.png")))
    touch(*(tmp_path / "m" / name for name in ("a/one.png", "b/one.png", "else/two.png")))
    _, masks, missing = pair(find_images(str(tmp_path / "i")), MaskPlace(str(tmp_path / "m")))
    found = {str(Path(a).relative_to(tmp_path)): b for a, b in masks.items()}
    assert found == {
        "i/a/one.png": str(tmp_path / "m/a/one.png"),
        "i/b/one.png": str(tmp_path / "m/b/one.png"),
        "i/c/two.png": str(tmp_path / "m/else/two.png"),
    }
    assert missing == []


def test_a_folder_of_masks_among_the_images_may_be_excluded(tmp_path: Path) -> None:
    touch(tmp_path / "one.png", tmp_path / "masks" / "one.png")
    place = MaskPlace(str(tmp_path / "masks"))
    with pytest.raises(ConfigError, match=r"lies inside of the images' folder"):
        pair(find_images(str(tmp_path)), place)
    images = find_images(str(tmp_path), exclude=f"{tmp_path}/masks/*")
    assert len(pair(images, place)[1]) == 1
