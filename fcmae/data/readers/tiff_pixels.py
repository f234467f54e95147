"""Pixels of a part of a TIFF: of mapped values, of the tiles or strips it touches, or of all.

A part too large to hold is averaged down while it is read, rows of tiles at a time.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fcmae.data.parts import Part
from fcmae.data.readers.contract import UnreadableError
from fcmae.data.readers.layout import check_size
from fcmae.data.readers.tiff_axes import Axes

HELD_VALUES = 2**25  # of a part that is read as it is; a larger one is averaged down
JPEGS = {6, 7, 34892, 33007}  # compressions that need tables beside the data

ReadRows = Callable[[int, int, int, int], np.ndarray]
"""(top, left, height, width), px, as stored -> [height, width, bands]."""


def read_part(
    series: Any, axes: Axes, part: Part | None, nodata: float | None, mask: Any
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the pixels [h, w, bands] of a part as it is stored, and where they are valid.

    Args:
        series: of tifffile.
        axes: the roles of its axes.
        part: as it is stored; None: all.
        nodata: the value of all bands where a pixel has no content, or None.
        mask: a page that is 0 where there is no content, or None.
    """
    read = _reader(series, axes, 0 if nodata is None else nodata)
    read_mask = None if mask is None else _page_reader(mask, 0)

    def both(top: int, left: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray | None]:
        values = read(top, left, height, width)
        valid = _validity(values, nodata)
        if read_mask is not None:
            has_content = (read_mask(top, left, height, width) != 0).any(-1)
            valid = has_content if valid is None else valid & has_content
        return values, valid

    if part is None:
        part = Part(0, 0, axes.height, axes.width, None)
    factor = 1
    if part.scaled_to is not None and part.height * part.width * axes.bands > HELD_VALUES:
        to_height, to_width = part.scaled_to
        factor = max(1, min(part.height // to_height, part.width // to_width))
    if factor == 1:
        check_size(part.height, part.width)
        values, valid = both(part.top, part.left, part.height, part.width)
    else:
        values, valid = _averaged(both, part, factor, axes.bands)
    return values, None if valid is None or valid.all() else valid


def _validity(values: np.ndarray, nodata: float | None) -> np.ndarray | None:
    """Return where a pixel has content: not all bands nodata, no band NaN."""
    valid = None
    if nodata is not None and not math.isnan(nodata):
        valid = (values != values.dtype.type(nodata)).any(-1)
    if values.dtype.kind == "f":
        is_missing = np.isnan(values).any(-1)
        if is_missing.any():
            valid = ~is_missing if valid is None else valid & ~is_missing
    return valid


def _averaged(
    read: Callable[..., tuple[np.ndarray, np.ndarray | None]], part: Part, factor: int, bands: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the means of squares of factor x factor valid pixels; a rest is left at the edges."""
    height, width = part.height // factor, part.width // factor
    check_size(height, width)
    held = max(1, HELD_VALUES // 4 // (part.width * bands * factor))  # rows of squares
    rows, validity = [], []
    for row in range(0, height, held):
        count = min(held, height - row)
        values, valid = read(part.top + row * factor, part.left, count * factor, width * factor)
        shape = (count, factor, width, factor)
        squares = values.reshape(*shape, bands)
        if valid is None:
            means = squares.mean((1, 3), dtype=np.float32)
            share = np.ones((count, width), np.float32)
        else:
            counted = valid.reshape(shape)
            share = counted.mean((1, 3), dtype=np.float32)
            cleared = np.where(counted[..., None], squares, 0)
            means = cleared.mean((1, 3), dtype=np.float32) / np.maximum(share, 1e-9)[..., None]
        rows.append(_as_type(means, values.dtype))
        validity.append(share >= 0.5)
    return np.concatenate(rows), np.concatenate(validity)


def _as_type(means: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "f":
        return means.astype(dtype)
    return means.round().astype(dtype) if dtype.kind != "b" else means >= 0.5


def _reader(series: Any, axes: Axes, left_out: float) -> ReadRows:
    """Return what reads rows and columns of the image in the cheapest way that its file allows.

    `left_out` is the value of tiles and strips that are not in the file.
    """
    offset = series.dataoffset
    if offset is not None:
        file = series.parent.filehandle
        dtype = series.dtype.newbyteorder(series.parent.byteorder)
        if offset + math.prod(axes.shape) * dtype.itemsize > file.size:
            raise UnreadableError("the file is truncated: it ends before its pixels do")
        mapped = np.memmap(file.path, dtype, "r", offset, axes.shape)
        return _array_reader(mapped, axes)
    pages = _pages_of(series, axes)
    if pages is not None:
        readers = [_page_reader(page, left_out) for page in pages]
        if len(readers) == 1:
            return readers[0]
        return lambda *window: np.concatenate([read(*window) for read in readers], -1)
    check_size(axes.height, axes.width)
    return _array_reader(series.asarray(), axes)


def _array_reader(array: np.ndarray, axes: Axes) -> ReadRows:
    index: list[Any] = [slice(None)] * len(axes.shape)
    numbers = np.unravel_index(axes.number, [axes.shape[axis] for axis in axes.image_axes] or [1])
    for axis, number in zip(axes.image_axes, numbers, strict=False):
        index[axis] = int(number)
    left_over = [axis for axis in range(len(axes.shape)) if axis not in axes.image_axes]
    order = [left_over.index(axis) for axis in (axes.rows, axes.columns, *axes.band_axes)]

    def read(top: int, left: int, height: int, width: int) -> np.ndarray:
        index[axes.rows] = slice(top, top + height)
        index[axes.columns] = slice(left, left + width)
        values = np.array(array[tuple(index)]).transpose(order).reshape(height, width, -1)
        return values.astype(values.dtype.newbyteorder("="), copy=False)

    return read


def _pages_of(series: Any, axes: Axes) -> list[Any] | None:
    """Return the pages of the image in the order of its bands; None where pages are more."""
    page = series.keyframe
    inner = len(page.shape)
    leading = axes.shape[: len(axes.shape) - inner]
    if tuple(axes.shape[len(leading) :]) != tuple(page.shape) or page.imagedepth > 1:
        return None
    if len(series.pages) != math.prod(leading) or min(axes.rows, axes.columns) < len(leading):
        return None
    numbers = np.unravel_index(axes.number, [axes.shape[axis] for axis in axes.image_axes] or [1])
    wanted = np.arange(math.prod(leading)).reshape(leading)
    index: list[Any] = [slice(None)] * len(leading)
    for axis, number in zip(axes.image_axes, numbers, strict=False):
        index[axis] = int(number)
    band_axes = [axis for axis in axes.band_axes if axis < len(leading)]
    left_over = [axis for axis in range(len(leading)) if axis not in axes.image_axes]
    order = [left_over.index(axis) for axis in band_axes]
    chosen = wanted[tuple(index)].transpose(order).reshape(-1)
    return [series.pages[int(number)] for number in chosen]


def _page_reader(page: Any, left_out: float) -> ReadRows:
    """Read the tiles or strips of a page that a window touches."""
    key, file = page.keyframe, page.parent.filehandle
    offsets, counts = page.dataoffsets, page.databytecounts
    if any(offset + count > file.size for offset, count in zip(offsets, counts, strict=False)):
        raise UnreadableError("the file is truncated: it ends before its pixels do")
    is_planar = key.planarconfig == 2 and key.samplesperpixel > 1
    planes = key.samplesperpixel if is_planar else 1
    samples = 1 if is_planar else key.samplesperpixel
    if key.is_tiled:
        rows, columns = key.tilelength, key.tilewidth
    else:
        rows, columns = min(key.rowsperstrip, key.imagelength), key.imagewidth
    check_size(rows, columns)
    down, across = math.ceil(key.imagelength / rows), math.ceil(key.imagewidth / columns)
    options: dict[str, Any] = {"_fullsize": key.is_tiled}
    if key.compression in JPEGS:
        options |= {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader}
    if len(offsets) < planes * down * across:
        raise UnreadableError("damaged: it names fewer tiles or strips than its size needs")

    def read(top: int, left: int, height: int, width: int) -> np.ndarray:
        values = np.full((height, width, planes * samples), left_out, key.dtype)
        for plane in range(planes):
            for row in range(top // rows, -(-(top + height) // rows)):
                for column in range(left // columns, -(-(left + width) // columns)):
                    number = (plane * down + row) * across + column
                    if counts[number] == 0:
                        continue  # a sparse file: nothing but nodata there
                    file.seek(offsets[number])
                    data = file.read(counts[number])
                    segment, _, _ = key.decode(data, number, **options)
                    if segment is None:
                        continue
                    _paste(
                        segment[0],
                        values[..., plane * samples : (plane + 1) * samples],
                        row * rows - top,
                        column * columns - left,
                    )
        return values

    return read


def _paste(segment: np.ndarray, values: np.ndarray, top: int, left: int) -> None:
    """Put a segment [h, w, samples] into values at (top, left), which may lie outside."""
    first_row, first_column = max(0, -top), max(0, -left)
    piece = segment[first_row : values.shape[0] - top, first_column : values.shape[1] - left]
    top, left = max(0, top), max(0, left)
    values[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
