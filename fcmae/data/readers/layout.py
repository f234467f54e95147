"""What the shape of an array means: one image, or many along its first axis.

The one rule for .npy, .npz, HDF5 and Zarr; what it decides is told at the start of a run.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fcmae.data.readers.contract import Description, UnreadableError, Wanted

Window = tuple[slice, slice]  # rows and columns
MOST_BANDS = 16  # of an axis that is taken for bands where nothing says how many there are


@dataclass(frozen=True)
class Layout:
    """How images lie in an array.

    Attributes:
        height, width: px.
        bands: per pixel.
        images: along the first axis; 1 also where the array is one image.
        is_stack: whether the first axis counts images.
        bands_axis: of one image: None without such an axis, 0 or 2.
    """

    height: int
    width: int
    bands: int
    images: int
    is_stack: bool
    bands_axis: int | None

    def image_of(self, array: np.ndarray, number: int, part: Window) -> np.ndarray:
        """Return the pixels [h, w, bands] of one image, read from an array of any library."""
        rows, columns = part
        index: tuple[int | slice, ...] = (rows, columns)
        if self.bands_axis is not None:
            every = slice(None)
            index = (every, rows, columns) if self.bands_axis == 0 else (rows, columns, every)
        if self.is_stack:
            index = (number, *index)
        values = np.array(array[index])
        if self.bands_axis is None:
            return values[..., None]
        return np.moveaxis(values, 0, 2) if self.bands_axis == 0 else values


def layout_of(shape: tuple[int, ...], wanted: Wanted) -> Layout:
    """Return what an array of that shape holds.

    (H, W) is one image. An axis at the end or the front with as many entries as the channels
    wanted (1 or 3, where either will do) is the bands of one image: (H, W, C), (C, H, W). Where
    the number is not known or fits neither, an axis of up to 16, smaller than both others, is;
    else (N, H, W) are N grey images. Four axes are N images of (H, W, C) or (C, H, W).

    Raises:
        UnreadableError: the shape means nothing of that.
    """
    if 0 in shape or len(shape) not in (2, 3, 4):
        raise UnreadableError(bad_shape(shape, wanted))
    if len(shape) == 2:
        return Layout(*shape, 1, 1, False, None)
    image = shape[-3:]
    axis = _bands_axis(image, wanted)
    images = shape[0] if len(shape) == 4 else 1
    if axis is None:
        if len(shape) == 4:
            raise UnreadableError(bad_shape(shape, wanted))
        return Layout(shape[1], shape[2], 1, shape[0], True, None)
    height, width = image[1:] if axis == 0 else image[:2]
    layout = Layout(height, width, image[axis], images, len(shape) == 4, axis)
    if wanted.bands is None and wanted.in_chans is not None:
        accepted = (1, 3) if wanted.in_chans in (1, 3) else (wanted.in_chans,)
        if layout.bands not in accepted:
            raise UnreadableError(bad_shape(shape, wanted))
    return layout


def _bands_axis(shape: tuple[int, ...], wanted: Wanted) -> int | None:
    """Return which axis of (a, b, c) is the bands, None where they are images."""
    if wanted.bands is None and wanted.in_chans is not None:
        accepted = (1, 3) if wanted.in_chans in (1, 3) else (wanted.in_chans,)
        for axis in (2, 0):
            if shape[axis] in accepted:
                return axis
    for axis in (2, 0):
        others = [side for place, side in enumerate(shape) if place != axis]
        if shape[axis] <= MOST_BANDS and shape[axis] < min(others):
            return axis
    return None


def bad_shape(shape: tuple[int, ...], wanted: Wanted) -> str:
    """Return the reason why an array of that shape is refused."""
    channels = "" if wanted.in_chans is None else f" with C = {wanted.in_chans} (data.in_chans)"
    if wanted.bands is not None:
        channels = f" with C above {max(wanted.bands)} (data.bands)"
    return (
        f"an array of shape {shape}, where (H, W), (H, W, C) or (C, H, W){channels}, or several "
        "such along a first axis, is expected"
    )


def check_type(dtype: np.dtype) -> None:
    """Raise UnreadableError unless values of that type can be pixels."""
    if dtype.kind not in "biuf":
        raise UnreadableError(f"an array of type {dtype} is no image")


def describe(
    kind: str, layout: Layout, dtype: np.dtype, note: str = "", *, has_mask: bool = False
) -> Description:
    """Return the description of an array's images. Bands mean colours where there are three."""
    black, white = range_of(dtype)
    return Description(
        kind=kind,
        height=layout.height,
        width=layout.width,
        bands=layout.bands,
        dtype=dtype.newbyteorder("="),
        bits=1 if dtype.kind == "b" else 8 * dtype.itemsize,
        colour={1: "grey", 3: "rgb"}.get(layout.bands, "bands"),  # type: ignore[arg-type]
        black=black,
        white=white,
        has_mask=has_mask or dtype.kind == "f",
        images=layout.images,
        note=note,
    )


def range_of(dtype: np.dtype) -> tuple[float | None, float | None]:
    """Return the values that mean black and white in a type: 0 and its largest, 1.0 of floats.

    (None, None) for integers wider than 16 bits, which nobody fills.
    """
    if dtype.kind == "b" or dtype.kind == "f":
        return 0.0, 1.0
    if dtype.itemsize > 2:
        return None, None
    return 0.0, float(np.iinfo(dtype).max)


def number_of(item: str, images: int) -> int:
    """Return which of an array's images `item` names.

    Raises:
        UnreadableError: no number in the range, or none where there are several.
    """
    if item == "" and images == 1:
        return 0
    if not item.isdecimal() or int(item) >= images:
        named = f"no image {item!r}" if item else "several images"
        raise UnreadableError(
            f"holds {named}: name one of its {images} by FILE::0 to FILE::{images - 1}"
        )
    return int(item)


def check_size(height: int, width: int) -> None:
    """Raise Pillow's DecompressionBombError for more pixels than its limit."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and math.prod((height, width)) > limit:
        raise Image.DecompressionBombError(f"{height} x {width} px")


def validity(values: np.ndarray) -> np.ndarray | None:
    """Return where no band of [h, w, bands] is NaN, None where none is anywhere."""
    if values.dtype.kind != "f":
        return None
    is_missing = np.isnan(values)
    return ~is_missing.any(-1) if is_missing.any() else None
