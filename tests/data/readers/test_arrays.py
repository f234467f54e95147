"""Files of arrays: one image or many, each by its name, and of each only the part wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import zarr

import fcmae
from fcmae.data import Reading, UndecodableImageError, decode, find_images
from fcmae.data.parts import Part
from fcmae.data.readers import Wanted, describe, items, kind_of

SUFFIXES = ["npy", "npz", "packed.npz", "h5", "zarr"]


def write(folder: Path, suffix: str, arrays: dict[str, np.ndarray]) -> str:
    path = folder / f"a.{suffix}"
    if suffix == "npy":
        (array,) = arrays.values()
        np.save(path, array)
    elif suffix.endswith("npz"):
        save: Any = np.savez if suffix == "npz" else np.savez_compressed
        save(path, **arrays)
    elif suffix == "h5":
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array, compression="gzip")
    else:
        zarr.open_group(str(path), mode="w")
        for name, array in arrays.items():
            add_to_zarr(path, name, array)
    return str(path)


def add_to_zarr(path: Path, name: str, array: np.ndarray) -> None:
    """By what versions 2 and 3 of zarr share."""
    options: dict[str, Any] = {"shape": array.shape, "dtype": array.dtype}
    zarr.open_array(str(path), path=name, mode="w", **options)[...] = array


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(1, 65536, shape, dtype=np.uint16)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("shape", "in_chans", "number"),
    [
        ((20, 30), 1, 1),
        ((20, 30, 3), 3, 1),
        ((3, 20, 30), 3, 1),
        ((5, 20, 30), 5, 1),
        ((40, 20, 30), 1, 40),
        ((40, 20, 30), 40, 1),
        ((7, 20, 30, 3), 3, 7),
        ((7, 3, 20, 30), 3, 7),
        ((7, 20, 30, 1), 1, 7),
    ],
)
def test_the_shape_says_how_many_images_a_file_holds(
    suffix: str, shape: tuple[int, ...], in_chans: int, number: int, tmp_path: Path
) -> None:
    values = random(*shape)
    path = write(tmp_path, suffix, {"data": values})
    wanted = Wanted(in_chans=in_chans)
    named = items(path, wanted)
    assert len(named) == number == describe(path, wanted).images
    assert named == ([path] if number == 1 else [f"{path}::{n}" for n in range(number)])
    one = values if number == 1 else values[-1]
    if one.ndim == 2:
        one = one[..., None]
    elif one.shape[-1] != in_chans:
        one = np.moveaxis(one, 0, -1)
    reading = Reading(in_chans=in_chans)
    image, _ = decode(named[-1], reading)
    torch.testing.assert_close(image, torch.from_numpy(one / 65535).float().permute(2, 0, 1))
    part, _ = decode(named[-1], reading, lambda *_: Part(3, 5, 11, 17, (11, 17)))
    assert torch.equal(part, image[:, 3:14, 5:22])
    if number > 1:
        with pytest.raises(UndecodableImageError, match=f"name one of its {number} by FILE::0"):
            decode(path, reading)
        with pytest.raises(UndecodableImageError, match=f"holds no image '{number}'"):
            decode(f"{path}::{number}", reading)


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_arrays_of_a_file_are_named(suffix: str, tmp_path: Path) -> None:
    arrays = {"a": random(20, 30), "b": random(40, 20, 30), "labels": random(40)}
    path = write(tmp_path, suffix, arrays)
    assert items(path) == [f"{path}::a", *(f"{path}::b::{n}" for n in range(40))]
    assert np.array_equal(fcmae.read_image(f"{path}::a")[..., 0], arrays["a"])
    assert np.array_equal(fcmae.read_image(f"{path}::b::17")[..., 0], arrays["b"][17])
    with pytest.raises(UndecodableImageError, match="several arrays; name one by FILE::NAME: a, b"):
        fcmae.read_image(path)
    with pytest.raises(UndecodableImageError, match="holds no array 'c', only a, b"):
        fcmae.read_image(f"{path}::c")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_integers_as_wide_as_64_bits_are_never_black(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path, suffix, {"data": random(20, 30).astype(np.int64) % 256})
    with pytest.raises(UndecodableImageError, match="does not say which value is white"):
        decode(path, Reading(in_chans=1))
    image, _ = decode(path, Reading(in_chans=1, value_range=(0, 255)))
    assert 0.4 < image.mean() < 0.6


def test_a_name_with_two_colons_is_a_file_where_there_is_one(tmp_path: Path) -> None:
    values = random(20, 30)
    np.save(tmp_path / "a::b.npy", values)
    assert np.array_equal(fcmae.read_image(tmp_path / "a::b.npy")[..., 0], values)
    np.save(tmp_path / "a::c.npy", random(40, 20, 30))
    assert fcmae.read_image(f"{tmp_path}/a::c.npy::3").shape == (20, 30, 1)


def test_nan_is_where_there_is_no_pixel(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((6, 8, 3))
    values[2, 3, 1] = np.nan
    np.save(tmp_path / "a.npy", values)
    _, valid = decode(str(tmp_path / "a.npy"), Reading(in_chans=3))
    assert valid is not None
    assert (~valid[0]).nonzero().tolist() == [[2, 3]]


def test_a_pyramid_of_zarr_gives_its_full_resolution(tmp_path: Path) -> None:
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    full = random(1, 3, 1, 40, 60)
    for name, array in (("0", full), ("1", full[..., ::2, ::2])):
        add_to_zarr(tmp_path / "a.zarr", name, array)
    group.attrs["multiscales"] = [{"datasets": [{"path": "0"}, {"path": "1"}]}]
    path = str(tmp_path / "a.zarr")
    assert kind_of(path) == "Zarr"
    assert items(path) == [path]
    values = fcmae.read_image(path)  # three channels of one time and depth
    assert np.array_equal(values, np.moveaxis(full[0, :, 0], 0, -1))


@pytest.mark.parametrize("suffix", ["npz", "h5"])
def test_a_file_that_is_cut_short_is_refused(suffix: str, tmp_path: Path) -> None:
    path = Path(write(tmp_path, suffix, {"data": random(200, 300)}))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UndecodableImageError):
        decode(str(path), Reading(in_chans=1))


def test_a_text_file_names_images_of_a_file(tmp_path: Path) -> None:
    write(tmp_path, "npy", {"data": random(40, 20, 30)})
    write(tmp_path, "zarr", {"data": random(20, 30)})
    (tmp_path / "list.txt").write_text("a.npy::3\na.zarr\na.npy::11\ngone.npy::1\n")
    images = find_images(str(tmp_path / "list.txt"))
    assert [Path(path).name for path in images.paths] == ["a.npy::3", "a.zarr", "a.npy::11"]
    assert [Path(path).name for path, _ in images.problems] == ["gone.npy::1"]
