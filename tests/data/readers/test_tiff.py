"""TIFF as tifffile reads it, whatever its layout, and of a part only the tiles it touches."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from format_cases import packed_tiff

import fcmae
from fcmae.data import Reading, UndecodableImageError, decode
from fcmae.data.parts import Part
from fcmae.data.readers import Wanted, describe, items, read

COMPRESSIONS = [None, "lzw", "deflate", "zstd", "packbits", "lzma"]
TYPES = ["bool", "uint8", "uint16", "uint32", "int8", "int16", "float32", "float16", "packed 12"]
LAYOUTS = ["grey", "white is zero", "RGB", "RGB planar", "5 bands", "5 bands planar", "4 pages"]
FILES_EACH = 6
STORED = [
    {"byteorder": "<"},
    {"byteorder": ">"},
    {"byteorder": "<", "tile": (32, 48)},
    {"byteorder": ">", "tile": (16, 16)},
    {"byteorder": "<", "rowsperstrip": 7, "bigtiff": True},
]


def matrix() -> list[tuple[str, str, str | None, dict[str, Any]]]:
    """Every type with every layout, with the ways to store and compress in turn; 300 and more."""
    ways = itertools.cycle(itertools.product(COMPRESSIONS, STORED))
    cases = []
    for kind, layout in itertools.product(TYPES, LAYOUTS):
        for compression, stored in itertools.islice(ways, FILES_EACH):
            if kind == "packed 12":  # tifffile writes no others
                compression = None
            cases.append((kind, layout, compression, stored))
        next(ways)  # so that the next layout meets other ways
    return cases


MATRIX = matrix()


def values_of(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(len(shape) + shape[0])
    if kind == "bool":
        return rng.random(shape) > 0.5
    if kind.startswith("float"):
        return rng.random(shape).astype(kind)
    if kind == "packed 12":
        return rng.integers(0, 4096, shape, dtype=np.uint16)
    limits = np.iinfo(kind)
    return rng.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)


def write(path: Path, kind: str, layout: str, compression: str | None, stored: Any) -> None:
    height, width = 50, 70
    shape, options = {
        "grey": ((height, width), {"photometric": "minisblack"}),
        "white is zero": ((height, width), {"photometric": "miniswhite"}),
        "RGB": ((height, width, 3), {"photometric": "rgb"}),
        "RGB planar": ((3, height, width), {"photometric": "rgb", "planarconfig": "separate"}),
        "5 bands": ((height, width, 5), {"photometric": "minisblack", "planarconfig": "contig"}),
        "5 bands planar": (
            (5, height, width),
            {"photometric": "minisblack", "planarconfig": "separate"},
        ),
        "4 pages": ((4, height, width), {"photometric": "minisblack", "metadata": None}),
    }[layout]
    values, options = values_of(kind, shape), {**options, **stored}
    if kind == "packed 12":
        path.write_bytes(packed_tiff(values, 12, **options))
    else:
        tifffile.imwrite(path, values, compression=compression, **options)


def channels_last(values: np.ndarray) -> np.ndarray:
    if values.ndim == 2:
        return values[..., None]
    return values if values.shape[-1] in (3, 5) else np.moveaxis(values, 0, -1)


def test_the_matrix_has_at_least_300_files_that_differ() -> None:
    assert len({repr(case) for case in MATRIX}) >= 300
    assert {case[2] for case in MATRIX} == set(COMPRESSIONS)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_parts_are_those_of_tifffile(kind: str, layout: str, tmp_path: Path) -> None:
    checked = 0
    for number, case in enumerate(MATRIX):
        if case[:2] != (kind, layout):
            continue
        path = tmp_path / f"{number}.tif"
        write(path, *case)
        expected = channels_last(tifffile.imread(path))
        values = fcmae.read_image(path)
        assert values.dtype == expected.dtype, case
        assert np.array_equal(values, expected), case
        about = describe(str(path))
        assert (about.height, about.width, about.bands) == expected.shape, case
        part = read(str(path), Wanted(choose=lambda *_: Part(13, 21, 30, 41, (30, 41)))).values
        assert np.array_equal(part, expected[13:43, 21:62]), case
        checked += 1
    assert checked == FILES_EACH


def decoded(path: Path, in_chans: int, **options: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    image, valid = decode(str(path), Reading(in_chans=in_chans, **options))
    return image, None if valid is None else valid[0]


def test_nodata_of_a_geotiff_is_no_content(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1, 255, (30, 40, 3), dtype=np.uint8)
    values[3:9, 5:20] = 0
    values[0, 0] = (0, 7, 9)  # black in one band alone is a colour
    nodata = [(42113, "s", 0, "0", True)]
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extratags=nodata)
    image, valid = decoded(tmp_path / "a.tif", 3)
    assert torch.equal(image, torch.from_numpy(values).permute(2, 0, 1))
    assert valid is not None
    assert torch.equal(valid, torch.from_numpy((values != 0).any(-1)))
    about = describe(str(tmp_path / "a.tif"))
    assert (about.nodata, about.has_mask) == (0, True)


def test_nodata_outside_the_range_of_floats_is_no_error(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((30, 40), dtype=np.float32)
    values[3:9, 5:20] = -9999
    nodata = [(42113, "s", 0, "-9999", True)]
    tifffile.imwrite(tmp_path / "a.tif", values, extratags=nodata)
    image, valid = decoded(tmp_path / "a.tif", 1)
    assert valid is not None
    assert int((~valid).sum()) == 6 * 15
    assert image.isfinite().all()
    torch.testing.assert_close(image[0][valid], torch.from_numpy(values)[valid])


def test_a_mask_that_gdal_writes_behind_the_picture_is_used(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (64, 48, 3), dtype=np.uint8)
    mask = np.ones((64, 48), bool)
    mask[10:30, 4:9] = False
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(values, photometric="rgb", metadata=None)
        file.write(mask, photometric="mask", subfiletype=4, metadata=None)
    image, valid = decoded(tmp_path / "a.tif", 3)
    assert torch.equal(image, torch.from_numpy(values * mask[..., None]).permute(2, 0, 1))
    assert valid is not None
    assert torch.equal(valid, torch.from_numpy(mask))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_turns_parts_and_masks_alike(orientation: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1, 255, (64, 48), dtype=np.uint8)
    values[10:30, 4:9] = 0
    tags = [(42113, "s", 0, "0", True), (274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", values, tile=(16, 16), extratags=tags)
    image, valid = decoded(tmp_path / "a.tif", 1)
    assert valid is not None
    assert torch.equal(valid, image[0] != 0)
    sides = (64, 48) if orientation < 5 else (48, 64)
    assert image.shape[1:] == sides
    part, seen = decode(
        str(tmp_path / "a.tif"), Reading(in_chans=1), lambda *_: Part(2, 3, 33, 40, (33, 40))
    )
    assert torch.equal(part, image[:, 2:35, 3:43])
    seen = torch.ones(33, 40, dtype=torch.bool) if seen is None else seen[0]
    assert torch.equal(seen, valid[2:35, 3:43])


def test_pages_of_colours_are_images_and_the_first_is_meant(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (3, 20, 30, 3), dtype=np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="rgb")
    assert items(str(path)) == [f"{path}::{number}" for number in range(3)]
    assert describe(str(path)).note == "one of 3 images in its pages"
    for name, page in ((str(path), 0), (f"{path}::0", 0), (f"{path}::2", 2)):
        assert np.array_equal(fcmae.read_image(name), values[page])


def test_times_and_depths_of_a_microscope_are_images_and_channels_are_bands(
    tmp_path: Path,
) -> None:
    values = np.random.default_rng(0).integers(0, 65535, (2, 3, 4, 20, 30), dtype=np.uint16)
    path = tmp_path / "a.ome.tif"
    for options in ({"ome": True}, {"imagej": True}):
        order = "TCZYX" if "ome" in options else "TZCYX"
        stored = values if "ome" in options else values.swapaxes(1, 2)
        tifffile.imwrite(
            path, stored, metadata={"axes": order}, photometric="minisblack", **options
        )
        assert len(items(str(path))) == 8
        found = fcmae.read_image(f"{path}::7")
        assert np.array_equal(found, values[1, :, 3].transpose(1, 2, 0))


def test_a_file_that_ends_too_early_is_found_out_outside_the_part_too(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (300, 200), dtype=np.uint8)
    for name, options in (("a", {}), ("b", {"compression": "zlib", "tile": (64, 64)})):
        path = tmp_path / name
        tifffile.imwrite(path, values, **options)
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(UndecodableImageError, match="truncated: it ends before its pixels"):
            decode(str(path), Reading(in_chans=1), lambda *_: Part(0, 0, 5, 5, (5, 5)))


def test_a_part_too_large_to_hold_is_averaged_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fcmae.data.readers import tiff_pixels

    values = np.random.default_rng(0).integers(1, 255, (250, 330, 3), dtype=np.uint8)
    values[:90, :80] = 0
    nodata = [(42113, "s", 0, "0", True)]
    tifffile.imwrite(
        tmp_path / "a.tif",
        values,
        tile=(32, 48),
        compression="zlib",
        photometric="rgb",
        extratags=nodata,
    )
    monkeypatch.setattr(tiff_pixels, "HELD_VALUES", 20_000)
    image, valid = decode(
        str(tmp_path / "a.tif"), Reading(in_chans=3), lambda *_: Part(10, 20, 240, 300, (60, 50))
    )
    assert image.shape == (3, 60, 75)  # a quarter, which is never smaller than 60 x 50
    blocks = values[10:250, 20:320].reshape(60, 4, 75, 4, 3)
    counted = (blocks != 0).any(-1)
    means = blocks.sum((1, 3)) / np.maximum(counted.sum((1, 3)), 1)[..., None]
    assert valid is not None
    has_data = torch.from_numpy(counted.mean((1, 3)) >= 0.5)
    assert torch.equal(valid[0], has_data)
    whole = torch.from_numpy(means).permute(2, 0, 1) * has_data
    torch.testing.assert_close(image.double(), whole, rtol=0, atol=0.51)


def test_crops_of_8000_x_8000_tiles_are_read_at_20_times_the_rate_of_all(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "a.tif"
    tile = rng.integers(0, 16, (256, 256), dtype=np.uint8)
    tifffile.imwrite(
        path,
        np.tile(tile, (32, 32))[:8000, :8000],
        tile=(256, 256),
        compression="zlib",
        compressionargs={"level": 1},
    )

    def seconds(choose: Any) -> float:
        started = time.process_time()  # of this process: other work does not count
        decode(str(path), Reading(in_chans=1), choose)
        return time.process_time() - started

    crops = [(17, 900), (4000, 4100), (7000, 30), (7776, 7776)]
    whole = min(seconds(None) for _ in range(2))
    part = min(
        seconds(lambda *_, top=top, left=left: Part(top, left, 224, 224, (224, 224)))
        for top, left in crops * 2
    )
    assert whole > 20 * part, f"{whole:.3f} s for all, {part:.4f} s for a crop"
