"""Pixels without data on their way from a file to a batch: nothing of them is left."""

from __future__ import annotations

import dataclasses
import tarfile
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import torch
from holed_pictures import RGB, assert_same, half_empty, make_dataset, noise
from PIL import Image
from torch import Tensor

from fcmae.data import (
    Decoded,
    EvaluationDataset,
    EvaluationTransform,
    PixelCache,
    PretrainAugmentation,
    Reading,
    UndecodableImageError,
    collate,
    decode,
    find_images,
    sample_seed,
    seeded,
)
from fcmae.data.augmentation import resize_image, resize_picture
from fcmae.data.holes import resize_valid, without_masks
from fcmae.errors import ConfigError
from fcmae.model.masking import draw_visible

# What marks them


def test_black_borders_are_where_every_band_has_the_value(tmp_path: Path) -> None:
    pixels = noise(5, 7)
    pixels[0] = 0
    pixels[2, 3] = (0, 0, 9)  # dark, and valid
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = decode(str(tmp_path / "a.png"), dataclasses.replace(RGB, invalid=0.0))
    expected = np.ones((1, 5, 7), bool)
    expected[0, 0] = False
    assert found.valid is not None
    assert np.array_equal(found.valid.numpy(), expected)
    assert np.array_equal(found.image.numpy(), pixels.transpose(2, 0, 1))
    grey = decode(str(tmp_path / "a.png"), Reading(in_chans=1, invalid=0.0))
    assert grey.valid is not None
    assert np.array_equal(grey.valid.numpy(), expected)


def test_one_value_per_band(tmp_path: Path) -> None:
    pixels = noise(5, 7)
    pixels[1, 1] = (10, 20, 30)
    pixels[1, 2] = (10, 10, 10)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = decode(str(tmp_path / "a.png"), dataclasses.replace(RGB, invalid=(10.0, 20.0, 30.0)))
    assert found.valid is not None
    assert (~found.valid).nonzero().tolist() == [[0, 1, 1]]
    assert found.image[:, 1, 1].tolist() == [0, 0, 0]
    with pytest.raises(UndecodableImageError, match=r"data\.invalid has 2 values for 3 bands"):
        decode(str(tmp_path / "a.png"), dataclasses.replace(RGB, invalid=(1.0, 2.0)))


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("uint16", 65535), ("int16", -9999), ("float32", -3.4e38), ("float32", 0.1)],
)
def test_the_value_is_the_files_own_and_need_not_be_in_its_range(
    tmp_path: Path, dtype: str, value: float
) -> None:
    values = np.random.default_rng(0).uniform(0, 1, (6, 8, 3))
    values = (values if dtype == "float32" else 1000 * values).astype(dtype)
    values[:2] = value
    np.save(tmp_path / "a.npy", values)
    reading = Reading(in_chans=3, invalid=float(value), value_range=(0, 1000))
    found = decode(str(tmp_path / "a.npy"), reading)
    assert found.valid is not None
    assert not found.valid[:, :2].any()
    assert found.valid[:, 2:].all()
    assert found.image[:, :2].eq(0).all()
    assert found.image.isfinite().all()


def test_nan_and_infinity_mark_them_unless_holes_are_off(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(0, 1, (6, 8, 3)).astype(np.float32)
    values[0, 0, 1] = np.nan
    np.save(tmp_path / "a.npy", values)
    found = decode(str(tmp_path / "a.npy"), RGB)
    assert found.valid is not None
    assert (~found.valid).nonzero().tolist() == [[0, 0, 0]]
    assert found.image[:, 0, 0].tolist() == [0, 0, 0]
    with pytest.raises(UndecodableImageError, match="NaN or infinite"):
        decode(str(tmp_path / "a.npy"), dataclasses.replace(RGB, holes=False))


def test_an_alpha_of_zero_marks_them_and_no_other_alpha(tmp_path: Path) -> None:
    pixels = np.dstack([noise(5, 7), np.full((5, 7), 255, np.uint8)])
    pixels[1, :, 3] = 0
    pixels[3, :, 3] = 1
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = decode(str(tmp_path / "a.png"), RGB)
    assert found.valid is not None
    assert found.valid[0].all(dim=1).tolist() == [True, False, True, True, True]
    assert decode(str(tmp_path / "a.png"), dataclasses.replace(RGB, holes=False)).valid is None


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    ("in_chans", "bands", "is_data"),
    [(4, None, True), (1, (3,), True), (2, (3, 0), True), (2, (0, 1), False), (3, None, False)],
)
def test_an_alpha_that_is_a_channel_is_data_and_marks_nothing(
    tmp_path: Path, bits: int, in_chans: int, bands: tuple[int, ...] | None, is_data: bool
) -> None:
    """A fourth band in a PNG, near infrared, is called alpha by the format."""
    pixels = np.dstack([noise(5, 7), np.full((5, 7), 200, np.uint8)])
    pixels[1, :, 3] = 0
    if bits == 16:
        imagecodecs.imwrite(tmp_path / "a.png", pixels.astype(np.uint16) * 257, codec="png")
    else:
        Image.fromarray(pixels).save(tmp_path / "a.png")
    found = decode(str(tmp_path / "a.png"), Reading(in_chans=in_chans, bands=bands))
    if not is_data:
        assert found.valid is not None
        assert found.valid[0].all(dim=1).tolist() == [True, False, True, True, True]
        return
    assert found.valid is None
    expected = pixels[..., list(bands or range(4))].transpose(2, 0, 1)
    image = found.image.float() * (255 if found.image.is_floating_point() else 1)
    assert np.allclose(image.numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("pattern", ["{stem}_mask.png", "masks/{name}", "../masks/{stem}.png"])
def test_a_mask_beside_says_where_the_picture_has_data(tmp_path: Path, pattern: str) -> None:
    path = tmp_path / "images" / "a.png"
    mask = path.parent / pattern.format(stem="a", name="a.png")
    for file in (path, mask):
        file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(5, 7)).save(path)
    zeros = np.full((5, 7), 255, np.uint8)
    zeros[2, 3] = 0
    zeros[4, 4] = 1
    Image.fromarray(zeros).save(mask)
    reading = dataclasses.replace(RGB, valid_mask=pattern)
    found = decode(str(path), reading)
    assert found.valid is not None
    assert (~found.valid).nonzero().tolist() == [[0, 2, 3]]
    images = without_masks(find_images(str(path.parent)), reading)
    assert list(images.paths) == [str(path)]


def test_masks_are_no_images_and_are_counted(tmp_path: Path) -> None:
    half_empty(tmp_path, 3)
    for number in range(3):
        Image.new("L", (120, 90), 255).save(tmp_path / f"{number}-mask.png")
    images = find_images(str(tmp_path))
    reading = dataclasses.replace(RGB, valid_mask="{stem}-mask.png")
    kept = without_masks(images, reading)
    assert [Path(path).name for path in kept.paths] == ["0.png", "1.png", "2.png"]
    assert images.accounting is not None
    assert kept.accounting is not None
    assert (kept.accounting.num_images, kept.accounting.masks) == (3, 3)
    assert kept.accounting.num_files == images.accounting.num_files == 6
    with pytest.raises(ConfigError, match=r"data\.valid_mask: none of the 6 images has a mask"):
        without_masks(images, dataclasses.replace(RGB, valid_mask="{stem}.msk"))


def test_a_mask_that_is_missing_or_of_another_size_is_a_reason(tmp_path: Path) -> None:
    Image.fromarray(noise(5, 7)).save(tmp_path / "a.png")
    reading = dataclasses.replace(RGB, valid_mask="{stem}_mask.png")
    with pytest.raises(UndecodableImageError, match=r"a_mask\.png.*: the file does not exist"):
        decode(str(tmp_path / "a.png"), reading)
    Image.new("L", (7, 6), 1).save(tmp_path / "a_mask.png")
    with pytest.raises(UndecodableImageError, match=r"its mask .* is 6 x 7 px.* picture 5 x 7"):
        decode(str(tmp_path / "a.png"), reading)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.npy"])
def test_a_part_has_the_holes_of_the_whole(tmp_path: Path, name: str) -> None:
    """A JPEG is not reduced where exact pixels are asked for."""
    pixels = noise(160, 240)
    pixels[:, :100] = 0
    path = tmp_path / name
    if path.suffix == ".npy":
        np.save(path, pixels)
    else:
        Image.fromarray(pixels).save(path, quality=95)
    mask = np.full((160, 240), 1, np.uint8)
    mask[:50] = 0
    np.save(tmp_path / "a-valid.npy", mask)
    reading = dataclasses.replace(RGB, invalid=0.0, valid_mask="{stem}-valid.npy")
    whole = decode(str(path), reading)
    augmentation = PretrainAugmentation((16, 16), crop_scale=(0.5, 1.0))
    for seed in range(4):
        with seeded(seed):
            top, left, height, width, _ = augmentation.choose_crop(160, 240)
        with seeded(seed):
            part = decode(str(path), reading, augmentation.choose_crop)
        place = (slice(None), slice(top, top + height), slice(left, left + width))
        assert whole.valid is not None
        assert part.valid is not None
        assert torch.equal(part.image, whole.image[place])
        assert torch.equal(part.valid, whole.valid[place])
        assert not part.valid.all()


# Scaling, flips


@pytest.mark.parametrize(
    ("size", "target"),
    [
        *(((9, 13), (5, 8)), ((9, 13), (20, 29)), ((9, 13), (9, 8)), ((9, 13), (3, 13))),
        *(((31, 17), (8, 5)), ((9, 13), (9, 13)), ((40, 7), (16, 14))),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_what_a_hole_reaches_is_a_hole_and_nothing_else(
    size: tuple[int, int], target: tuple[int, int], dtype: torch.dtype
) -> None:
    """Against the scaling itself: each pixel of the source is changed, and what moves is noted."""
    rng = torch.Generator().manual_seed(0)
    image = torch.randint(60, 200, (1, *size), generator=rng).to(dtype)
    before = resize_image(image, target)
    reached = torch.zeros(*size, *target, dtype=torch.bool)
    for row in range(size[0]):
        for column in range(size[1]):
            for value in (0, 255):
                changed = image.clone()
                changed[0, row, column] = value
                reached[row, column] |= (resize_image(changed, target) != before)[0]
    for seed in range(6):
        rng = torch.Generator().manual_seed(seed)
        valid = torch.rand(1, *size, generator=rng) > 0.03
        hit = (reached & ~valid[0, :, :, None, None]).flatten(0, 1).any(dim=0)
        found = ~resize_valid(valid, target)[0]
        assert not (hit & ~found).any(), "a hole got through"
        assert torch.equal(found, touched_by_loops(~valid[0], target))


def touched_by_loops(is_hole: Tensor, target: tuple[int, int]) -> Tensor:
    """Which pixels of the scaled picture have a hole within the kernel's reach, by distances."""
    near = []
    for axis in (0, 1):
        scale = is_hole.shape[axis] / target[axis]
        reach = 2 * max(scale, 1.0) if scale != 1 else 0.5  # px of the source
        near.append(
            [
                [
                    abs(i + 0.5 - (o + 0.5) * scale) < reach - 1e-6
                    for i in range(is_hole.shape[axis])
                ]
                for o in range(target[axis])
            ]
        )
    holes = is_hole.nonzero().tolist()
    return torch.tensor(
        [[any(row[y] and column[x] for y, x in holes) for column in near[1]] for row in near[0]]
    )


@pytest.mark.parametrize("target", [(16, 16), (70, 80), (30, 200)])
def test_scaled_pixels_with_data_do_not_depend_on_holes(target: tuple[int, int]) -> None:
    image = torch.from_numpy(noise(60, 90)).permute(2, 0, 1)
    valid = torch.ones(1, 60, 90, dtype=torch.bool)
    valid[:, 20:30, 10:60] = False
    valid[:, 50, 80] = False
    expected = resize_image(image, target)
    found, mask = resize_picture(Decoded(image.masked_fill(~valid, 0), valid), target)
    assert mask is not None
    assert torch.equal(found[mask.expand(3, -1, -1)], expected[mask.expand(3, -1, -1)])
    assert found[~mask.expand(3, -1, -1)].eq(0).all()
    assert 0.3 < float(mask.float().mean()) < 1


def test_the_mask_turns_with_the_image() -> None:
    """Every flip and turn: where the image is 200, and only there, is data."""
    augmentation = PretrainAugmentation((16, 16), vertical_flip=True, rotate90=True)
    valid = torch.zeros(1, 16, 16, dtype=torch.bool)
    valid[:, :5, :11] = True
    image = torch.where(valid, 200, 0).to(torch.uint8)
    seen = set()
    for seed in range(40):
        with seeded(seed):
            turned, mask = augmentation.augment(Decoded(image, valid))
        assert mask is not None
        assert torch.equal(turned == 200, mask)
        seen.add(mask.numpy().tobytes())
    assert len(seen) == 8


def test_evaluation_fills_with_what_the_mean_becomes() -> None:
    transform = EvaluationTransform((32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    image = torch.from_numpy(noise(40, 60)).permute(2, 0, 1)
    valid = torch.ones(1, 40, 60, dtype=torch.bool)
    valid[:, :10] = False
    found, mask = transform.prepare(Decoded(image, valid))
    assert mask is not None
    assert found[~mask.expand(3, -1, -1)].eq(0).all()
    kept = mask.expand(3, -1, -1)
    assert torch.equal(found[kept], transform(image)[kept])


# Samples


def test_samples_without_holes_are_those_of_today(tmp_path: Path) -> None:
    for number in range(3):
        Image.fromarray(noise(90, 120, number)).save(tmp_path / f"{number}.png")
    plain, asked = (
        make_dataset(tmp_path, reading) for reading in (RGB, dataclasses.replace(RGB, invalid=0.0))
    )
    assert_same([plain[1, index] for index in range(3)], [asked[1, index] for index in range(3)])
    sample = plain[1, 0]
    assert "valid" not in sample
    rng = torch.Generator().manual_seed(sample_seed(3, "mask", 1, 0))
    assert torch.equal(sample["visible"], draw_visible(1, 16, 0.6, rng)[0])
    with seeded(sample_seed(3, "augment", 1, 0)):
        augmentation = PretrainAugmentation((64, 64))
        crop = decode(plain.images.paths[0], RGB, augmentation.choose_crop)
        assert torch.equal(sample["image"], augmentation(crop.image))


def test_what_the_holes_of_a_file_hold_changes_no_sample(tmp_path: Path) -> None:
    """From the file's pixels on: other values, NaN among them, where the mask is 0."""
    folders = []
    for number, value in enumerate((0.0, 1.0, float("nan"), -1e30)):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in range(3):
            values = np.random.default_rng(name).random((90, 120, 3), dtype=np.float32)
            valid = np.ones((90, 120), np.uint8)
            valid[:, :45] = valid[30:33, 70:75] = 0
            values[valid == 0] = value
            np.save(folder / f"{name}.npy", values)
            np.save(folder / f"{name}-valid.npy", valid)
        folders.append(folder)
    reading = dataclasses.replace(RGB, valid_mask="{stem}-valid.npy")
    samples = [
        [make_dataset(folder, reading)[epoch, index] for epoch in range(4) for index in range(3)]
        for folder in folders
    ]
    assert any("valid" in sample for sample in samples[0])
    for others in samples[1:]:
        assert_same(samples[0], others)


def test_a_batch_has_masks_where_one_of_its_images_has_holes() -> None:
    def sample(index: int, valid: Tensor | None) -> dict[str, Any]:
        made = {
            "image": torch.zeros(3, 4, 4),
            "label": -1,
            "index": index,
            "path": "a",
            "skipped": [],
        }
        return made if valid is None else {**made, "valid": valid}

    hole = torch.zeros(1, 4, 4, dtype=torch.bool)
    batch = collate([sample(0, None), sample(1, hole)])
    assert batch["valid"].shape == (2, 1, 4, 4)
    assert batch["valid"][0].all()
    assert not batch["valid"][1].any()
    assert "valid" not in collate([sample(0, None), sample(1, None)])


def test_evaluation_samples_carry_their_masks(tmp_path: Path) -> None:
    half_empty(tmp_path, 2)
    (tmp_path / "1.png").unlink()
    Image.fromarray(noise(90, 120)).save(tmp_path / "whole.png")
    transform = EvaluationTransform((32, 32), mean=(0.5,) * 3, std=(0.2,) * 3)
    reading = dataclasses.replace(RGB, invalid=0.0)
    dataset = EvaluationDataset(find_images(str(tmp_path)), transform, reading=reading)
    batch = collate([dataset[0], dataset[1]])
    assert batch["valid"][1].all()
    assert 0.2 < float(batch["valid"][0].float().mean()) < 0.9
    assert batch["image"][0].masked_select(~batch["valid"][0]).eq(0).all()


# Caches


def test_a_cache_keeps_what_has_data(tmp_path: Path) -> None:
    folder = half_empty(tmp_path / "images")
    Image.fromarray(noise(90, 121)).save(folder / "whole.png")
    values = np.random.default_rng(0).random((130, 91, 3), dtype=np.float32)
    values[:50] = np.nan
    np.save(folder / "deep.npy", values)
    reading = dataclasses.replace(RGB, invalid=0.0)
    paths = find_images(str(folder)).paths

    def opened() -> PixelCache:
        return PixelCache(tmp_path / "cache", paths, side=72, reading=reading)

    def samples(cache: PixelCache) -> list[dict[str, Any]]:
        dataset = make_dataset(
            folder,
            reading,
            cache=cache,
            augmentation=PretrainAugmentation((64, 64), crop_scale=(0.8, 1.0)),
        )
        return [dataset[epoch, index] for epoch in range(3) for index in range(6)]

    expected = samples(opened())
    assert any("valid" in sample for sample in expected)
    opened().fill(0, lambda sentence: None)
    kept = opened()
    assert kept.missing() == []
    for path in paths:
        Path(path).touch(exist_ok=True)
    assert_same(samples(kept), expected)
    plain = PixelCache(tmp_path / "cache", paths, side=72, reading=RGB)
    assert len(plain.missing()) == 6, "other holes are another cache"


def test_masks_lie_beside_the_pictures_of_a_shard(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "masks").mkdir(parents=True)
    for number in range(3):
        Image.fromarray(noise(60, 80, seed=number)).save(folder / f"{number}.png")
        valid = np.full((60, 80), 255, np.uint8)
        valid[: 10 * number] = 0
        Image.fromarray(valid).save(folder / "masks" / f"{number}.png")
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.add(file, str(file.relative_to(folder)))
    reading = dataclasses.replace(RGB, valid_mask="masks/{name}")
    packed = without_masks(find_images(str(tmp_path / "0.tar")), reading)
    plain = without_masks(find_images(str(folder)), reading)
    assert [path.split("::")[1] for path in packed.paths] == ["0.png", "1.png", "2.png"]
    assert packed.accounting is not None
    assert packed.accounting.masks == 3
    for theirs, ours in zip(packed.paths, plain.paths, strict=True):
        packed_one, plain_one = decode(theirs, reading), decode(ours, reading)
        assert torch.equal(packed_one.image, plain_one.image)
        assert (packed_one.valid is None) == theirs.endswith("0.png")
        if packed_one.valid is not None and plain_one.valid is not None:
            assert torch.equal(packed_one.valid, plain_one.valid)
    other = dataclasses.replace(RGB, valid_mask="{stem}_mask.png")
    with pytest.raises(ConfigError, match=r"first would be '.*0\.tar::0_mask\.png'"):
        without_masks(find_images(str(tmp_path / "0.tar")), other)
    with pytest.raises(UndecodableImageError, match=r"its mask '.*0\.tar::0_mask\.png'.*no such"):
        decode(packed.paths[0], other)


def test_a_stack_of_masks_belongs_to_a_stack_of_pictures(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (20, 30, 40), dtype=np.uint8)
    valid = np.ones((20, 30, 40), np.uint8)
    valid[7, :5] = 0
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "a_mask.npy", valid)
    reading = Reading(in_chans=1, valid_mask="{stem}_mask.npy")
    images = without_masks(find_images(str(tmp_path), wanted=reading.wanted()), reading)
    assert [Path(path).name for path in images.paths] == [f"a.npy::{n}" for n in range(20)]
    assert images.accounting is not None
    assert (images.accounting.num_files, images.accounting.masks) == (2, 20)
    found = decode(images.paths[7], reading).valid
    assert found is not None
    assert int((~found).sum()) == 5 * 40
    assert decode(images.paths[8], reading).valid is None
