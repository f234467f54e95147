"""What GDAL says of a TIFF: nodata in the band's own type, tiles left out, masks in files beside.

The cases are those that rasterio's own test files hold; its reading of them was compared.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from fcmae.data import Reading, UndecodableImageError, decode, find_images
from fcmae.data.parts import Part
from fcmae.data.readers import Pixels, Wanted, describe, read

HOLE = (slice(3, 9), slice(5, 20))


def write(path: Path, dtype: str, nodata: str, hole: float) -> np.ndarray:
    """Write 30 x 40 values, 0 among them, with `hole` in HOLE."""
    rng = np.random.default_rng(0)
    values = rng.random((30, 40)) if dtype.startswith("f") else rng.integers(0, 100, (30, 40))
    values = values.astype(dtype)
    values[0, :7] = 0
    values[HOLE] = hole
    tifffile.imwrite(path, values, extratags=[(42113, "s", 0, nodata, True)])
    return values


def pixels_of(path: Path) -> Pixels:
    return read(str(path), Wanted())


@pytest.mark.parametrize(
    ("dtype", "nodata", "hole"),
    [
        ("float32", "-3.4028234663852886e+38", np.finfo(np.float32).min),  # as ESRI's tools write
        ("float32", "-3.4028235e+38", np.finfo(np.float32).min),
        ("float32", "-3.3999999521443642e+38", np.float32(-3.4e38)),
        ("float32", "1.1754943508222875e-38", np.finfo(np.float32).tiny),
        ("float64", "-1.7976931348623157e+308", np.finfo(np.float64).min),
        ("float32", "0.1", np.float32(0.1)),
        ("float32", "-9999,5", -9999.5),  # a decimal comma
        ("int16", "-32768", -32768),
        ("int16", "-32768.0", -32768),
        ("uint16", "65535", 65535),
        ("uint8", "2.55e2", 255),
    ],
)
def test_nodata_is_the_value_that_the_type_holds(
    dtype: str, nodata: str, hole: float, tmp_path: Path
) -> None:
    values = write(tmp_path / "a.tif", dtype, nodata, hole)
    found = pixels_of(tmp_path / "a.tif")
    assert found.valid is not None
    assert np.array_equal(found.valid, values != values.dtype.type(hole))
    assert int((~found.valid).sum()) == 6 * 15
    assert found.about.nodata == pytest.approx(float(hole), rel=1e-6)


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [
        *(("uint8", text) for text in ("-9999", "256", "nan", "0.5", "none", "1e400")),
        *(("int16", text) for text in ("-3.4028234663852886e+38", "32768", "")),
        *(("float32", text) for text in ("1e39", "nothing")),
    ],
)
def test_nodata_that_the_type_cannot_hold_marks_no_pixel(
    dtype: str, nodata: str, tmp_path: Path
) -> None:
    """Zeros are values there, and those of a type that wraps round are, too."""
    values = write(tmp_path / "a.tif", dtype, nodata, 0)
    found = pixels_of(tmp_path / "a.tif")
    assert found.valid is None
    assert np.array_equal(found.values[..., 0], values)
    assert found.about.nodata is None


def without_first_tile(path: Path) -> None:
    """Say in the tags that the first tile is not there, as GDAL's SPARSE_OK leaves it out."""
    with tifffile.TiffFile(path) as file:
        tags = file.pages[0].tags
        places = [
            (tags[code].valueoffset, {3: "<H", 4: "<I"}[tags[code].dtype]) for code in (324, 325)
        ]
    with open(path, "r+b") as file:
        for place, number in places:
            file.seek(place)
            file.write(struct.pack(number, 0))


@pytest.mark.parametrize(
    ("nodata", "filled"), [("-3.4028234663852886e+38", -3.4028235e38), ("nan", np.nan), (None, 0)]
)
def test_a_tile_that_is_left_out_holds_nodata(
    nodata: str | None, filled: float, tmp_path: Path
) -> None:
    values = np.random.default_rng(0).random((64, 48), dtype=np.float32)
    tags = [] if nodata is None else [(42113, "s", 0, nodata, True)]
    tifffile.imwrite(tmp_path / "a.tif", values, tile=(32, 32), compression="zlib", extratags=tags)
    without_first_tile(tmp_path / "a.tif")
    found = pixels_of(tmp_path / "a.tif")
    expected = values.copy()
    expected[:32, :32] = filled
    assert np.array_equal(found.values[..., 0], expected, equal_nan=True)
    if nodata is None:
        assert found.valid is None
    else:
        assert found.valid is not None
        assert np.array_equal(found.valid, expected == values)


# Masks in files beside


def write_with_mask(
    folder: Path, size: tuple[int, int] = (64, 48)
) -> tuple[np.ndarray, np.ndarray]:
    values = np.random.default_rng(0).integers(0, 255, (64, 48, 3), dtype=np.uint8)
    mask = np.full(size, 255, np.uint8)
    mask[10:30, 4:9] = 0
    tifffile.imwrite(folder / "a.tif", values, photometric="rgb", tile=(16, 16))
    mask_file = folder / "a.tif.msk"
    tifffile.imwrite(mask_file, mask, photometric="minisblack", compression="zlib", tile=(16, 16))
    return values, mask


def test_a_mask_file_of_gdal_beside_a_tiff_is_its_mask_and_no_image(tmp_path: Path) -> None:
    values, mask = write_with_mask(tmp_path)
    images = find_images(str(tmp_path))
    assert [Path(path).name for path in images.paths] == ["a.tif"]
    assert images.accounting is not None
    assert images.accounting.no_images == {".msk": 1}
    path = str(tmp_path / "a.tif")
    assert describe(path).has_mask
    image, valid = decode(path, Reading(in_chans=3))
    assert valid is not None
    assert torch.equal(valid[0], torch.from_numpy(mask != 0))
    shown = values * (mask != 0)[..., None]
    assert torch.equal(image, torch.from_numpy(shown).permute(2, 0, 1))
    part, seen = decode(path, Reading(in_chans=3), lambda *_: Part(5, 2, 17, 30, (17, 30)))
    assert torch.equal(part, image[:, 5:22, 2:32])
    assert seen is not None
    assert torch.equal(seen, valid[:, 5:22, 2:32])
    assert decode(path, Reading(in_chans=3, holes=False)).valid is None


def test_a_mask_inside_comes_before_one_beside(tmp_path: Path) -> None:
    values, mask = write_with_mask(tmp_path)
    inside = np.ones((64, 48), bool)
    inside[50:, 40:] = False
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(values, photometric="rgb", metadata=None)
        file.write(inside, photometric="mask", subfiletype=4, metadata=None)
    found = pixels_of(tmp_path / "a.tif")
    assert found.valid is not None
    assert np.array_equal(found.valid, inside)
    assert not np.array_equal(inside, mask != 0)


def test_a_mask_beside_that_does_not_fit_is_a_reason(tmp_path: Path) -> None:
    write_with_mask(tmp_path, (64, 47))
    reason = r"its mask '.*a\.tif\.msk' is 64 x 47 px, and the picture 64 x 48 px"
    with pytest.raises(UndecodableImageError, match=reason):
        decode(str(tmp_path / "a.tif"), Reading(in_chans=3))
    (tmp_path / "a.tif.msk").write_bytes(b"no TIFF")
    with pytest.raises(UndecodableImageError, match=r"its mask '.*a\.tif\.msk': no TIFF"):
        decode(str(tmp_path / "a.tif"), Reading(in_chans=3))
