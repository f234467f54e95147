"""Pictures are asked whether mirrored and turned copies can be told from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fcmae.data import ImageList, Reading, find_images
from fcmae.data.quick_look import QuickLook
from fcmae.data.symmetry import (
    MIRRORED,
    TURNED,
    UPSIDE_DOWN,
    Symmetry,
    measure_symmetry,
)

SIDE = 48


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def waves(count: int, degrees: float, seed: int = 0) -> Tensor:
    """Return gratings of one direction and random phases: no thumbnail tells them from copies."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    angle = np.deg2rad(degrees)
    along = rows * np.sin(angle) + columns * np.cos(angle)
    phases = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    pictures = np.sin(2 * np.pi * 6 * along + phases) + rng.normal(0, 0.5, (count, SIDE, SIDE))
    return torch.from_numpy(pictures).float()


def seen(symmetry: Symmetry) -> set[str]:
    return {name for name in symmetry.told_apart if not symmetry.is_free(name)}


def test_noise_looks_the_same_from_everywhere() -> None:
    assert seen(measure_symmetry(noise(160))) == set()


def test_a_sky_above_is_seen_upside_down_and_not_in_a_mirror() -> None:
    sky = torch.linspace(1, -1, SIDE).view(1, SIDE, 1)
    assert seen(measure_symmetry(noise(160) + sky)) == {UPSIDE_DOWN, TURNED}


def test_a_light_from_the_left_is_seen_in_a_mirror() -> None:
    light = torch.linspace(1, -1, SIDE).view(1, 1, SIDE)
    assert seen(measure_symmetry(noise(160) + light)) == {MIRRORED, TURNED}


def test_the_direction_of_lines_is_seen_whatever_their_phase() -> None:
    assert seen(measure_symmetry(waves(160, 0))) == {TURNED}
    assert seen(measure_symmetry(waves(160, 30))) == {MIRRORED, UPSIDE_DOWN, TURNED}


def with_holes(pictures: Tensor, folder: Path, *, from_left: bool) -> ImageList:
    """Write pictures with a part of 0 behind a border, on the left or at any angle."""
    rng = np.random.default_rng(5)
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] / SIDE - 0.5
    folder.mkdir()
    for number, picture in enumerate(pictures):
        pixels = (picture * 40 + 128).clamp(1, 255).to(torch.uint8).numpy()
        angle = 0.0 if from_left else rng.uniform(0, 2 * np.pi)
        depth = rows * np.sin(angle) + columns * np.cos(angle)
        pixels[depth < np.quantile(depth, rng.uniform(0.2, 0.6))] = 0
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return find_images(str(folder))


def test_the_shape_of_holes_neither_shows_nor_hides_anything(tmp_path: Path) -> None:
    reading = Reading(in_chans=1, invalid=0.0)
    left = with_holes(noise(120), tmp_path / "left", from_left=True)
    assert seen(QuickLook(left, reading).symmetry) == set()
    assert MIRRORED in seen(QuickLook(left, Reading(in_chans=1)).symmetry)
    sky = torch.linspace(1, -1, SIDE).view(1, SIDE, 1)
    any_side = with_holes(noise(120) + sky, tmp_path / "any", from_left=False)
    assert seen(QuickLook(any_side, reading).symmetry) == {UPSIDE_DOWN, TURNED}


def test_pictures_that_are_holes_for_the_most_part_are_not_looked_at(tmp_path: Path) -> None:
    left = with_holes(noise(40), tmp_path / "left", from_left=True)
    for path in left.paths[::2]:
        Image.new("L", (SIDE, SIDE), 0).save(path)
    found = QuickLook(left, Reading(in_chans=1, invalid=0.0)).symmetry
    assert (found.told_apart, found.num_pictures) == ({}, 20)


def test_too_few_pictures_say_nothing_and_nothing_is_free() -> None:
    found = Symmetry({}, 5)
    assert not any(found.is_free(change) for change in (MIRRORED, UPSIDE_DOWN, TURNED))
    assert found.sentence(TURNED) == "5 pictures are too few to see whether it shows"


def test_classes_that_are_each_others_mirror_image_are_seen_by_class(tmp_path: Path) -> None:
    paths, labels = [], []
    for label, degrees in enumerate((30, 150)):
        for number, picture in enumerate(waves(60, degrees, seed=label)):
            pixels = (picture * 40 + 128).clamp(0, 255).to(torch.uint8).numpy()
            paths.append(str(tmp_path / f"{label}-{number}.png"))
            labels.append(label)
            Image.fromarray(pixels).save(paths[-1])
    images, reading = ImageList(tuple(paths), tuple(labels), ("a", "b")), Reading(in_chans=1)
    assert MIRRORED not in seen(QuickLook(images, reading).symmetry)
    assert MIRRORED in seen(QuickLook(images, reading, by_class=True).symmetry)


@pytest.mark.parametrize("channels", [1, 3])
def test_files_are_looked_at_and_broken_ones_passed_over(tmp_path: Path, channels: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(60):
        pixels = rng.integers(0, 60, (40, 56), dtype=np.uint8)
        pixels[:20] += 120
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    found = QuickLook(find_images(str(tmp_path)), Reading(in_chans=channels)).symmetry
    assert found.num_pictures == 60
    assert seen(found) == {UPSIDE_DOWN, TURNED}
    assert "of 60 (chance 50, seen from 75 on)" in found.sentence(TURNED)
