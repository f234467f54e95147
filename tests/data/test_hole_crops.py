"""Which crop of a picture with holes a sample is made of: a function of its key, and a full one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from holed_pictures import PATCH, RGB, assert_same, half_empty, make_dataset, noise
from PIL import Image

from fcmae.data import (
    Decoded,
    PixelCache,
    PretrainDataset,
    decode,
    find_images,
    sample_seed,
    seeded,
)
from fcmae.model.masking import valid_patches


def test_every_sample_shows_valid_patches_and_hides_one_to_score(tmp_path: Path) -> None:
    folder = half_empty(tmp_path, share=0.55)
    dataset = make_dataset(folder, dataclasses.replace(RGB, invalid=0.0))
    attempts = 0
    for epoch in range(12):
        for index in range(4):
            sample = dataset[epoch, index]
            assert sample["skipped"] == []
            assert sample["visible"].shape == (6,)
            if "valid" not in sample:
                continue
            assert sample["valid"].shape == (1, 64, 64)
            patches = valid_patches(sample["valid"][None], PATCH, 0.5)[0]
            assert patches[sample["visible"]].all()
            assert int(patches.sum()) >= 7
            assert sample["image"].masked_select(~sample["valid"]).eq(0).all()
            with seeded(sample_seed(3, "augment", epoch, index)):
                first = dataset.augmentation.augment(
                    decode(sample["path"], dataset.reading, dataset.augmentation.choose_crop)
                )
            attempts += not torch.equal(first.image, sample["image"])
    assert attempts > 3, "no crop had to be drawn again"


def crops_of(dataset: PretrainDataset, epoch: int, index: int, count: int) -> list[Decoded]:
    """The first crops of a sample's stream, each read from its file."""
    crops = []
    for attempt in range(count):
        with seeded(sample_seed(3, "augment", epoch, index, *([attempt] * (attempt > 0)))):
            choose = dataset.augmentation.choose_crop
            crop = decode(dataset.images.paths[index], dataset.reading, choose)
            crops.append(dataset.augmentation.augment(crop))
    return crops


def num_valid(crop: Decoded) -> int:
    whole = torch.ones(1, *crop.image.shape[-2:], dtype=torch.bool)
    mask = whole if crop.valid is None else crop.valid
    return int(valid_patches(mask[None], PATCH, 0.5).sum())


@pytest.mark.parametrize(
    ("fullest_crops", "is_held", "enough", "tried"),
    [(True, True, 15, 10), (True, False, 15, 4), (False, True, 11, 4)],
)
def test_a_crop_leaves_enough_to_score_or_is_the_fullest_of_some(
    fullest_crops: bool,
    is_held: bool,
    enough: int,
    tried: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """6 of 16 patches are visible, 10 of a whole crop are scored: 9 of them are enough, or 5."""
    if not is_held:
        monkeypatch.setattr("fcmae.data.crop_stream.HELD_VALUES", 90 * 120)
    reading = dataclasses.replace(RGB, invalid=0.0)
    folder = half_empty(tmp_path, share=0.5)
    dataset = make_dataset(folder, reading, fullest_crops=fullest_crops)
    chosen = []
    for epoch in range(12):
        for index in range(4):
            crops = crops_of(dataset, epoch, index, tried)
            counts = [num_valid(crop) for crop in crops]
            if max(counts) < 7:  # more are drawn then
                continue
            good = [place for place, count in enumerate(counts) if count >= enough]
            place = good[0] if good else counts.index(max(counts))
            sample = dataset[epoch, index]
            assert torch.equal(sample["image"], crops[place].image)
            valid = crops[place].valid
            assert ("valid" in sample) == (valid is not None)
            if valid is not None:
                assert torch.equal(sample["valid"], valid)
            chosen.append((bool(good), place))
    assert {is_good for is_good, _ in chosen} == {True, False}
    assert {place for _, place in chosen} >= {0, 1, 2, 3}
    assert max(place for _, place in chosen) > 3 or tried == 4


@pytest.mark.parametrize("kind", ["npy", "tif", "alpha", "mask", "cache"])
def test_crops_of_a_picture_that_is_held_are_those_that_are_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a picture is small enough to be held decides how many crops are compared, only."""
    folder = half_empty(tmp_path / "images", share=0.45)
    reading, cache = dataclasses.replace(RGB, invalid=0.0), None
    for path in sorted(folder.iterdir()):
        pixels = np.asarray(Image.open(path))
        has_data = pixels.any(axis=2)
        if kind == "npy":
            np.save(path.with_suffix(".npy"), np.where(has_data[..., None], pixels / 255, np.nan))
        elif kind == "tif":
            tags = [(42113, "s", 0, "0", True), (274, "H", 1, 6, True)]  # nodata 0, turned
            tile = {"tile": (16, 16), "compression": "zlib"}
            tifffile.imwrite(
                path.with_suffix(".tif"), pixels, photometric="rgb", extratags=tags, **tile
            )
        elif kind == "alpha":
            alpha = np.where(has_data, 255, 0).astype(np.uint8)
            Image.fromarray(np.dstack([pixels, alpha])).save(path)
        elif kind == "mask":
            np.save(path.with_suffix(".npz.npy"), has_data)
        if kind in ("npy", "tif"):
            path.unlink()
    if kind == "mask":
        reading = dataclasses.replace(RGB, valid_mask="{stem}.npz.npy")
    if kind == "cache":
        paths = find_images(str(folder)).paths
        cache = PixelCache(tmp_path / "cache", paths, side=72, reading=reading)
        cache.fill(0, lambda sentence: None)
        cache.load()
    dataset = make_dataset(folder, reading, cache=cache)
    held = [dataset[epoch, index] for epoch in range(6) for index in range(4)]
    assert sum("valid" in sample for sample in held) > 6
    monkeypatch.setattr("fcmae.data.crop_stream.HELD_VALUES", 0)
    monkeypatch.setattr("fcmae.data.dataset.GOOD_CROPS", 10)
    read = [dataset[epoch, index] for epoch in range(6) for index in range(4)]
    assert_same(held, read)


def test_a_picture_is_read_twice_at_most_however_many_crops_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset(half_empty(tmp_path, share=0.6), dataclasses.replace(RGB, invalid=0.0))
    reads: list[str] = []

    def counted(path: str, *arguments: Any) -> Decoded:
        reads.append(path)
        return decode(path, *arguments)

    monkeypatch.setattr("fcmae.data.dataset.decode", counted)
    for epoch in range(6):
        for index in range(4):
            reads.clear()
            assert dataset[epoch, index]["skipped"] == []
            assert len(reads) <= 2


def test_a_crop_that_is_drawn_again_depends_on_the_key_alone(tmp_path: Path) -> None:
    reading = dataclasses.replace(RGB, invalid=0.0)
    dataset = make_dataset(half_empty(tmp_path, share=0.6), reading)
    keys = [(epoch, index) for epoch in range(6) for index in range(4)]
    before = torch.get_rng_state()
    forwards = [dataset[key] for key in keys]
    assert torch.equal(torch.get_rng_state(), before)
    backwards = [make_dataset(tmp_path, reading)[key] for key in reversed(keys)][::-1]
    assert_same(forwards, backwards)


def test_a_file_that_never_has_enough_is_skipped_with_its_reason(tmp_path: Path) -> None:
    half_empty(tmp_path, 3, share=0.3)
    half_empty(tmp_path / "empty", 1, seed=9, share=0.97)
    dataset = make_dataset(tmp_path, dataclasses.replace(RGB, invalid=0.0))
    (empty,) = [i for i, path in enumerate(dataset.images.paths) if "empty" in path]
    for epoch in range(4):
        sample = dataset[epoch, empty]
        assert "empty" not in sample["path"]
        assert sample["index"] == empty
        path, reason = sample["skipped"][0]
        assert path == dataset.images.paths[empty]
        assert reason == (
            "none of 26 crops has data in 7 of 16 patches, which mask.ratio 0.6 and "
            "mask.min_valid 0.5 need"
        )


def test_a_file_with_one_good_corner_is_used_in_every_epoch(tmp_path: Path) -> None:
    """Random crops of it fail more often than not; the smallest ones find the corner."""
    pixels = noise(200, 200)
    pixels[:, 95:] = 0
    pixels[95:] = 0
    Image.fromarray(pixels).save(tmp_path / "corner.png")
    dataset = make_dataset(tmp_path, dataclasses.replace(RGB, invalid=0.0))
    assert [dataset[epoch, 0]["skipped"] for epoch in range(25)] == [[]] * 25
