"""Which pixels of a TIFF have no content, as GDAL says: by a value, a page or a file beside."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from fcmae.data.kinds import MASK_SUFFIX
from fcmae.data.readers.contract import Source, UnreadableError

GDAL_NODATA, NEW_SUBFILE_TYPE = 42113, 254
MASK_PAGE = 4  # a bit of NewSubfileType: says where another page has content


def nodata_of(page: Any, dtype: np.dtype) -> float | None:
    """Return the value of pixels without content in the type of the values; None without one.

    A value that the type cannot hold (-9999 of uint8) is no pixel's. tifffile takes 0 for it, and
    for the lowest float32, which is what many elevation models have.
    """
    tag = page.tags.get(GDAL_NODATA)
    text = "" if tag is None else str(tag.value).strip(" \0").replace(",", ".")
    try:
        value: float = int(text)
    except ValueError:
        try:
            value = float(text)
        except ValueError:
            return None
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            held = float(dtype.type(value))
        return None if math.isinf(held) and not math.isinf(value) else held
    if not math.isfinite(value) or value != int(value):
        return None
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return int(value) if low <= value <= high else None


@contextlib.contextmanager
def mask_of(file: Any, page: Any, source: Source) -> Iterator[Any]:
    """Give the page that is 0 where `page` has no content, None without one.

    It lies behind it, or in a file beside that has the picture's whole name and .msk.

    Raises:
        UnreadableError: a mask beside cannot be read, or has another size.
    """
    from tifffile import TiffFile

    inside = _mask_page(file, page)
    beside = source.path + MASK_SUFFIX
    if inside is not None or not _has_mask_beside(source):
        yield inside
        return
    with contextlib.ExitStack() as stack:
        try:
            mask = stack.enter_context(TiffFile(beside)).pages[0]
        except Exception as error:  # whatever a damaged file makes the library raise
            detail = "no TIFF" if not isinstance(error, OSError) else error.strerror
            raise UnreadableError(f"its mask {beside!r}: {detail}") from error
        if (mask.imagelength, mask.imagewidth) != (page.imagelength, page.imagewidth):
            raise UnreadableError(
                f"its mask {beside!r} is {mask.imagelength} x {mask.imagewidth} px, and the "
                f"picture {page.imagelength} x {page.imagewidth} px"
            )
        yield mask


def has_mask(file: Any, page: Any, source: Source) -> bool:
    """Whether there is such a page, without opening a file beside."""
    return _mask_page(file, page) is not None or _has_mask_beside(source)


def _has_mask_beside(source: Source) -> bool:
    return source.is_on_disk and os.path.exists(source.path + MASK_SUFFIX)


def _mask_page(file: Any, page: Any) -> Any:
    if len(file.pages) < 2:
        return None
    second = file.pages[1]
    tag = getattr(second, "tags", {}).get(NEW_SUBFILE_TYPE)
    if tag is None or not int(tag.value) & MASK_PAGE:
        return None
    same = (second.imagelength, second.imagewidth) == (page.imagelength, page.imagewidth)
    return second if same else None
