"""From a file to a tensor with the channels asked for; anything else is an error with a reason.

The content decides what a file is, not its name. Nothing is random here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fcmae.data.channels import pick, to_channels
from fcmae.data.holes import fill, mask_of, read_mask, valid_pixels
from fcmae.data.parts import Choose, Part
from fcmae.data.readers import Description, Pixels, UnreadableError, Wanted, describe, read
from fcmae.data.readers.choosing import EVERYTHING
from fcmae.data.reading import Reading
from fcmae.data.shard_scan import DamagedShardError
from fcmae.errors import ConfigError, DataError, descriptor_advice, lacks_descriptors


class UndecodableImageError(DataError):
    """This one file cannot be used; `path` and `reason` say which and why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Decoded(NamedTuple):
    """An image, or the part of it that was asked for.

    image: [in_chans, h, w], uint8 in 0..255, or float32 in 0..1 of finer files; 0 where there is
        no data.
    valid: bool [1, h, w], False where there is no data, as `Reading` says; None where all is.
    """

    image: Tensor
    valid: Tensor | None = None


def decode_image(
    path: str,
    in_chans: int,
    value_range: tuple[float, float] | None = None,
    choose: Choose | None = None,
) -> Tensor:
    """Return the image as [in_chans, H, W] by the rules of `decode`; NaN is refused."""
    return decode_all(path, Reading(in_chans=in_chans, value_range=value_range), choose)


def decode_all(path: str, reading: Reading, choose: Choose | None = None) -> Tensor:
    """Return the image as `decode` does, for callers to whom every pixel counts.

    Raises:
        UndecodableImageError: as `decode`; it holds NaN.
    """
    exact = dataclasses.replace(reading, holes=False, invalid=None, valid_mask=None)
    return decode(path, exact, choose).image


def decode(path: str, reading: Reading, choose: Choose | None = None) -> Decoded:
    """Return the image and where it has data; with `choose`, the part that it wants.

    `to_float` brings both ranges of values to 0..1. The rules:
        * Bands: `reading.bands` picks and orders them, and nothing else happens to them. Without
          it, for 1 and 3 channels any picture is converted: grey is repeated, colours become luma
          (BT.601), palettes and CMYK become RGB. For other counts the file must have as many
          bands; the four inks of CMYK are none.
        * Transparency: pixels are laid over `reading.background` in formats whose last band is
          transparency and nothing else (PNG, WebP, GIF, AVIF, BMP), for 1 and 3 channels. No
          colour of a TIFF or JPEG 2000 is ever multiplied by anything: bands after the colours
          are left out. Where no background is given, pixels with an alpha of 0 are without data
          (`reading.holes`) and black lies below the others. A picture that consists of its
          transparency alone is refused where the background has its colour.
        * Range: `reading.value_range` = (black, white) counts for every type and clips to it.
          Without it, the bits that the file states are filled: 8-bit values are 0..255, packed
          12-bit ones 0..4095, 16-bit ones 0..65535 and signed ones 0..32767; floats are 0..1;
          DICOM has its window. Values outside are an error, and so are wider integers, whose type
          does not say what is white. One bit is black and white. Where 0 is white (TIFF's
          MinIsWhite, DICOM's MONOCHROME1), the range is turned round, `value_range` too.
        * Arrays (.npy, .npz, HDF5, Zarr): see `readers.layout.layout_of`.
        * Pixels without data: as `reading.holes`, `invalid` and `valid_mask` say. Their values
          need not be in any range.
        * Animations: the first frame. Orientation (EXIF, TIFF) is applied.
        * Parts: `choose` is called once, before the pixels are decoded where the format allows;
          a JPEG is decoded at 1/2, 1/4 or 1/8 where the part will be scaled down further, and of
          a TIFF only the tiles or strips of the part. A file that is cut short is found out.
          Where values are compared (`invalid`) or a mask lies beside, nothing is reduced.

    Raises:
        UndecodableImageError: missing, empty, truncated, damaged, no picture, larger than
            `PIL.Image.MAX_IMAGE_PIXELS`, no such channels, values out of range, or a mask beside
            it that is missing, cannot be read or has another size.
    """
    with told_of(path):
        once = None if choose is None else _Once(choose, is_exact=reading.needs_exact_pixels)
        pixels = read(path, reading.wanted(once), reading.reader)
        has_data = valid_pixels(pixels, reading)
        mask = mask_of(path, reading)
        if mask is not None:
            unmasked = _read_mask(mask, once, pixels.values.shape[:2])
            has_data = unmasked if has_data is None else has_data & unmasked
        image = to_channels(pixels._replace(valid=has_data), reading)
    if has_data is None or has_data.all():
        return Decoded(image)
    valid = torch.from_numpy(has_data.copy())[None]
    return Decoded(fill(image, valid), valid)


def _read_mask(mask: str, once: _Once | None, size: tuple[int, ...]) -> np.ndarray:
    """Return the same part of a mask as of its picture, [h, w] of that size, or say what is wrong.

    Raises:
        UnreadableError: it cannot be read, or has another size than the picture.
    """
    seen: list[tuple[int, int]] = []

    def choose(height: int, width: int) -> Part:
        assert once is not None
        seen.append((height, width))
        return once(height, width)

    try:
        found = read_mask(mask, None if once is None else choose)
    except Exception as error:
        raise UnreadableError(f"its mask {mask!r}: {_reason(error)}") from error
    theirs, ours = (seen[0], once.seen) if once is not None else (found.shape, size)
    if theirs != ours:
        raise UnreadableError(
            f"its mask {mask!r} is {theirs[0]} x {theirs[1]} px, and the picture {ours[0]} x "
            f"{ours[1]} px"
        )
    return found


def read_image(
    path: str | os.PathLike[str], bands: Sequence[int] | None = None, reader: str | None = None
) -> np.ndarray:
    """Return the pixels [H, W, C] of a file in its own values and type.

    Nothing is scaled, inverted or laid over anything: 12-bit values are 0..4095, CMYK has its
    inks, the bands of a TIFF are all there. Palettes come as their colours, orientation is
    applied, DICOM values are rescaled to their unit.

    Args:
        path: any file that pretraining reads; one of several images in it is FILE::NUMBER (or
            FILE::NAME, FILE::NAME::NUMBER where arrays have names).
        bands: which to return, from 0, in this order; None: all.
        reader: your own, MODULE:FUNCTION, as `data.reader`.

    Raises:
        UndecodableImageError: missing, damaged, no image, no such bands; its `reason` says why.
        ConfigError: no such reader.
    """
    with told_of(os.fspath(path)):
        values = read(os.fspath(path), own=reader).values
        return values if bands is None else pick(values, bands)


def describe_image(path: str, reading: Reading | None = None) -> Description:
    """Return what the header of a file says, without decoding its pixels.

    Raises:
        UndecodableImageError: as `read_image`, as far as a header shows it.
    """
    with told_of(path):
        return describe(path, EVERYTHING if reading is None else reading.wanted())


def read_pixels(path: str, choose: Choose) -> Pixels:
    """Return the part that `choose` wants in the file's own values; raises as `read_image`."""
    with told_of(path):
        return read(path, Wanted(choose=_Once(choose)))


@contextlib.contextmanager
def told_of(path: str) -> Iterator[None]:
    """Turn whatever a damaged file makes the libraries raise into UndecodableImageError.

    Raises:
        DataError: this process has too many files open, which says nothing about the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except ConfigError:  # of a reader of the user's
        raise
    except Exception as error:
        if lacks_descriptors(error):  # no fault of the file's, which must not be left out for it
            raise DataError(
                f"{path!r}: too many files are open to read it; {descriptor_advice()}, or use "
                "fewer data.workers."
            ) from error
        raise UndecodableImageError(path, _reason(error)) from error


class _Once:
    """Calls `choose` once for a file, whose readers may begin twice: it draws random numbers.

    Attributes:
        seen: (height, width) of the file's picture, px.
    """

    def __init__(self, choose: Choose, *, is_exact: bool = False) -> None:
        self._choose = choose
        self._is_exact = is_exact
        self._chosen: Part | None = None
        self.seen = (0, 0)

    def __call__(self, height: int, width: int) -> Part:
        if self._chosen is None:
            part = self._choose(height, width)
            if self._is_exact:
                part = part._replace(scaled_to=None)
            self._chosen, self.seen = part, (height, width)
        return self._chosen


def to_float(image: Tensor) -> Tensor:
    """Return the image as float32 in 0..1, same shape; uint8 is divided by 255."""
    if image.dtype == torch.uint8:
        return image.float().div_(255)
    return image.clamp(0, 1)  # bicubic resizing overshoots


def _reason(error: Exception) -> str:
    """Put what went wrong into one short line without the path."""
    if isinstance(error, UnreadableError | DamagedShardError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more pixels than the limit of {Image.MAX_IMAGE_PIXELS}; cut it into tiles"
    if isinstance(error, Image.UnidentifiedImageError):
        return "no picture in a format that can be read here"
    if isinstance(error, FileNotFoundError):
        return "the file does not exist (any more)"
    if isinstance(error, MemoryError):
        return "more memory is needed than there is"
    if isinstance(error, OSError) and error.strerror:  # the system's own: permission, I/O, ...
        return f"cannot be read ({error.strerror})"
    detail = " ".join(str(error).split()) or "no details"
    return f"damaged or incomplete ({type(error).__name__}: {detail[:200]})"
