"""TIFF as tifffile reads it, whatever its layout, and of a part only the tiles it touches."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import fcmae
from fcmae.data.parts import Part
from fcmae.data.readers import Wanted, describe, read

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
    if kind == "packed 12":
        options = {**options, "bitspersample": 12}
    tifffile.imwrite(path, values_of(kind, shape), compression=compression, **options, **stored)


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
