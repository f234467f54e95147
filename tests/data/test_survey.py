"""What is seen of files, which of them look alike, and the settings that follow."""

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pictures_on_disk import write_pictures
from PIL import Image

from fcmae.data.advice import Advice, advise
from fcmae.data.perceptual_hash import Fingerprint, fingerprint, near_duplicates
from fcmae.data.survey import Look, equal_files, look_at, survey


def looks_at(folder: Path) -> list[Look]:
    paths = sorted(str(path) for path in folder.iterdir())
    return survey(paths, sampled=range(len(paths)), workers=0)


def advice_for(folder: Path) -> Advice:
    advice = advise(looks_at(folder), cores=2)
    assert advice is not None
    return advice


def textured(seed: int, side: int = 120) -> np.ndarray:
    """A picture with detail at all scales, [side, side, 3] uint8."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


def test_every_file_gets_a_look_whatever_is_wrong_with_it(tmp_path: Path) -> None:
    write_pictures(tmp_path, 2, side=20)
    Image.new("RGB", (20, 20), "white").save(tmp_path / "white.png")
    (tmp_path / "zero.png").touch()
    whole = (tmp_path / "picture-000.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "gone.png").symlink_to("nowhere")
    found = {os.path.basename(look.path): look for look in looks_at(tmp_path)}
    assert {name for name, look in found.items() if look.reason} == {
        "zero.png",
        "cut.png",
        "gone.png",
    }
    assert found["zero.png"].reason == "the file is empty"
    assert found["cut.png"].about is not None, "its header is good"
    assert {name for name, look in found.items() if look.is_constant} == {"white.png"}


def test_pixels_are_read_of_the_sample_alone(tmp_path: Path) -> None:
    paths = [str(path) for path in write_pictures(tmp_path, 5, side=20)]
    looks = survey(paths, sampled=[1, 3], workers=0)
    assert [look.pixels is not None for look in looks] == [False, True, False, True, False]
    assert all(look.about is not None and look.about.width == 20 for look in looks)


def test_a_huge_picture_is_read_in_part(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((9000, 30), np.uint8))
    look = look_at(str(tmp_path / "a.tif"), with_pixels=True)
    assert look.pixels is not None
    assert max(look.pixels.values.shape[:2]) <= 64


def test_copies_are_found_and_pictures_of_one_build_are_told_apart() -> None:
    prints = [fingerprint(textured(seed)) for seed in range(40)]
    scaled = Image.fromarray(textured(7)).resize((90, 140), Image.Resampling.BILINEAR)
    brighter = np.clip(textured(9).astype(np.float32) * 1.2, 0, 255)
    prints += [fingerprint(np.asarray(scaled)), fingerprint(brighter)]
    assert sorted(near_duplicates(prints)) == [[7, 40], [9, 41]]
    assert fingerprint(np.zeros((40, 40, 3))) is None
    assert fingerprint(textured(1)[:5]) is None


def test_hashes_that_differ_in_three_bits_are_found_wherever_the_bits_lie() -> None:
    rng = np.random.default_rng(0)
    base = [int(value) for value in rng.integers(0, 2**63, 500)]
    changed = [value ^ 1 << 3 ^ 1 << 20 ^ 1 << 61 for value in base]
    far = [value ^ 0b1111 for value in base]
    prints = [Fingerprint(value, 0) for value in base + changed + far]
    groups = near_duplicates(prints)
    assert sorted(map(tuple, groups)) == [(i, i + 500) for i in range(500)]


def test_exact_copies_are_found_by_content(tmp_path: Path) -> None:
    first, second = write_pictures(tmp_path, 2, side=20)
    (tmp_path / "copy.png").write_bytes(first.read_bytes())
    (tmp_path / "other.png").write_bytes(second.read_bytes()[:-1] + b"x")
    assert equal_files([look.path for look in looks_at(tmp_path)]) == [
        [str(tmp_path / "copy.png"), str(first)]
    ]


def test_grey_pictures_get_one_channel_and_their_own_statistics(tmp_path: Path) -> None:
    write_pictures(tmp_path, 30, side=100, channels=1)
    advice = advice_for(tmp_path)
    data = advice.settings["data"]
    assert (data["in_chans"], data["value_range"], data["image_size"]) == (1, None, 128)
    pixels = np.stack([np.asarray(Image.open(p)) for p in sorted(tmp_path.glob("*.png"))]) / 255
    assert data["mean"] == pytest.approx([pixels.mean()], abs=0.01)
    assert data["std"] == pytest.approx([pixels.std()], abs=0.01)
    assert advice.settings["train"] == {"batch_size": 16, "accumulate": 1, "epochs": 3000}
    assert set(advice.rules) == {
        f"{section}.{name}" for section, values in advice.settings.items() for name in values
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.linspace(0, 4090, 4096, dtype=np.uint16), [0.0, 4095.0]),  # 12 bits in 16
        (np.linspace(0, 65000, 4096, dtype=np.uint16), None),
        (np.linspace(0, 1, 4096, dtype=np.float32), None),
        (np.linspace(-50, 150, 4096, dtype=np.float32), [-49.8, 149.8]),  # degrees
    ],
)
def test_the_range_follows_from_what_the_files_hold(
    values: np.ndarray, expected: list[float] | None, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values.reshape(64, 64))
    advice = advice_for(tmp_path)
    found = advice.settings["data"]["value_range"]
    assert found == (None if expected is None else pytest.approx(expected, rel=0.01))
    assert advice.unfit == []


def test_bands_of_unknown_meaning_are_all_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        bands = rng.integers(0, 255, (40, 50, 7), np.uint8)
        tifffile.imwrite(tmp_path / f"{number}.tif", bands, photometric="minisblack")
    assert advice_for(tmp_path).settings["data"]["in_chans"] == 7


def test_bands_of_colours_that_are_no_rgb_are_named(tmp_path: Path) -> None:
    for number in range(3):
        tifffile.imwrite(tmp_path / f"{number}.tif", textured(number), photometric="cielab")
    advice = advice_for(tmp_path)
    assert (advice.settings["data"]["in_chans"], advice.settings["data"]["bands"]) == (3, [0, 1, 2])
    assert "3 of 3 files hold cielab" in advice.rules["data.bands"]
    assert advice.unfit == []


def test_grey_stored_as_colour_gets_one_channel(tmp_path: Path) -> None:
    grey = textured(0)[..., :1]
    Image.fromarray(np.repeat(grey, 3, axis=2)).save(tmp_path / "a.png")
    assert advice_for(tmp_path).settings["data"]["in_chans"] == 1


def test_known_damage_raises_the_limit_of_skipped_files(tmp_path: Path) -> None:
    write_pictures(tmp_path, 9, side=40)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert advice_for(tmp_path).settings["data"]["max_skipped_share"] == 0.15


@pytest.mark.parametrize(("shade", "background"), [(0, 1.0), (230, 0.0)])
def test_drawings_on_transparent_ground_are_laid_over_another_colour(
    shade: int, background: float, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for number in range(6):
        pixels = np.full((60, 70, 4), (*(shade,) * 3, 0), np.uint8)
        top, left = rng.integers(5, 30, 2)
        pixels[top : top + 20, left : left + 20, 3] = 255
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    advice = advice_for(tmp_path)
    data = advice.settings["data"]
    assert data["background"] == [background] * 3
    assert "transparency have one colour alone" in advice.rules["data.background"]
    assert (advice.unfit, data.get("max_skipped_share")) == ([], None)
    drawn = 400 / 4200
    mean = drawn * shade / 255 + (1 - drawn) * background
    assert data["mean"] == pytest.approx([mean], abs=0.02)


def test_pictures_with_clear_parts_keep_them_as_holes(tmp_path: Path) -> None:
    for number in range(4):
        pixels = np.dstack([textured(number), np.full((120, 120), 255, np.uint8)])
        pixels[:30, :, 3] = 0
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    assert "background" not in advice_for(tmp_path).settings["data"]
