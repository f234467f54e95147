"""From a file to a tensor with the channels asked for; anything else is an error with a reason.

The content decides what a file is, not its name. Nothing is random here.
"""

from __future__ import annotations

import logging
import math
import os
import stat
import warnings
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fcmae.data.parts import SIDEWAYS, Choose, Part, cut
from fcmae.errors import DataError

# Pixel formats only: others that Pillow knows start programs (EPS) or draw vectors (WMF).
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
JPEG = ("JPEG", "MPO")  # MPO: several JPEGs in one file, as some cameras write them
NUMPY_MAGIC = b"\x93NUMPY"
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's conversion to grey
EXIF_ORIENTATION = 0x0112
ROUNDING = 1e-3  # floats may leave 0..1 by this much

# Pillow reports some damage through logging as well; the error here says it once.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class UndecodableImageError(DataError):
    """This one file cannot be used; `path` and `reason` say which and why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class _UnusableError(Exception):
    """A reason in plain words, on its way to UndecodableImageError."""


def decode_image(
    path: str,
    in_chans: int,
    value_range: tuple[float, float] | None = None,
    choose: Choose | None = None,
) -> Tensor:
    """Return the image as [in_chans, H, W]: uint8 in 0..255, or float32 in 0..1 if finer.

    With `choose`, only the part of it that `choose` wants. `to_float` brings both ranges to 0..1.
    The rules:
        * Colours: for 1 and 3 channels any picture is converted: grey is repeated, colours become
          luma (BT.601), palettes and CMYK become RGB, transparent pixels are laid over black. For
          other counts the bands must be there: a .npy array, a picture with that many bands
          (RGBA for 4), or a TIFF with one grey page per channel.
        * Arrays (.npy): (H, W), (H, W, C) or (C, H, W); channels last if both would fit.
        * Range: 8-bit values are 0..255, 16-bit ones (and integers stored wider) 0..65535, floats
          0..1. Values outside are an error, unless `value_range` = (black, white) says what the
          file's own values mean (12-bit cameras, reflectances, Hounsfield units); then they are
          clipped to it. Pillow itself reduces 16-bit colour PNGs to 8 bit.
        * Animations and other TIFFs of several pages: the first. EXIF orientation is applied.
        * Parts: `choose` is called once, before the pixels are decoded where the format allows,
          and a JPEG is decoded at 1/2, 1/4 or 1/8 where the part will be scaled down further.
          The whole file is decoded in any case: one that is cut short is found out.

    Raises:
        UndecodableImageError: missing, empty, truncated, damaged, no picture, larger than
            `PIL.Image.MAX_IMAGE_PIXELS`, no such channels, or values out of range.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise _UnusableError("is not a regular file")
        if status.st_size == 0:
            raise _UnusableError("the file is empty")
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            is_array = file.read(len(NUMPY_MAGIC)) == NUMPY_MAGIC
            file.seek(0)
            if is_array:
                return cut(_read_array(file, status.st_size, in_chans, value_range), choose)
            return _read_picture(file, in_chans, value_range, choose)
    except Exception as error:  # damaged files make Pillow raise anything
        raise UndecodableImageError(path, _reason(error)) from error


def to_float(image: Tensor) -> Tensor:
    """Return the image as float32 in 0..1, same shape; uint8 is divided by 255."""
    if image.dtype == torch.uint8:
        return image.float().div_(255)
    return image.clamp(0, 1)  # bicubic resizing overshoots


def _read_picture(
    file: BinaryIO,
    in_chans: int,
    value_range: tuple[float, float] | None,
    choose: Choose | None,
) -> Tensor:
    with Image.open(file, formats=FORMATS) as picture:
        if in_chans not in (1, 3) and picture.format == "TIFF" and _is_grey(picture):
            return cut(_stack_pages(picture, in_chans, value_range), choose)
        part = None
        if choose is not None and picture.format in JPEG:
            part = _reduce(picture, _stored_part(picture, choose), in_chans)
        picture.load()
        orientation = _orientation(picture)  # Pillow turns TIFFs when it loads, and drops the tag
        if choose is not None and part is None and not _is_fine(picture):
            part = _stored_part(picture, choose)
        if part is None:
            return cut(_upright(_to_tensor(picture, in_chans, value_range), orientation), choose)
        top, left, height, width, _ = part
        cropped = picture.crop((left, top, left + width, top + height))
        return _upright(_to_tensor(cropped, in_chans, value_range), orientation)


def _orientation(picture: Image.Image) -> object:
    return picture.getexif().get(EXIF_ORIENTATION, 1)


def _stored_part(picture: Image.Image, choose: Choose) -> Part:
    width, height = picture.size
    orientation = _orientation(picture)
    seen = (width, height) if orientation in SIDEWAYS else (height, width)
    return choose(*seen).as_stored(orientation, height, width)


def _reduce(picture: Image.Image, part: Part, in_chans: int) -> Part:
    """Have a JPEG decoded as small as `part` allows; return where the part lies then."""
    width, height = picture.size
    factor = part.reduction()
    mode = "L" if in_chans == 1 and picture.mode == "RGB" else None  # its luma, without colours
    drafted = picture.draft(mode, (max(1, width // factor), max(1, height // factor)))
    factor_taken = width / drafted[1][2] if drafted is not None else 1
    return part.within(factor_taken, picture.height, picture.width)


def _stack_pages(
    picture: Image.Image, in_chans: int, value_range: tuple[float, float] | None
) -> Tensor:
    num_pages = getattr(picture, "n_frames", 1)
    if num_pages != in_chans:
        raise _UnusableError(
            f"has {num_pages} grey pages where {in_chans} (data.in_chans) are expected"
        )
    pages = []
    for page in range(num_pages):
        picture.seek(page)
        pages.append(_to_tensor(picture, 1, value_range))
    if len({(page.shape, page.dtype) for page in pages}) > 1:
        raise _UnusableError("its pages differ in size or depth")
    return torch.cat(pages)


def _is_grey(picture: Image.Image) -> bool:
    return len(picture.getbands()) == 1 and picture.mode != "P"


def _is_fine(picture: Image.Image) -> bool:
    """Whether its values are finer than 8 bit; then all of them are checked, not a part."""
    return picture.mode in ("I", "F") or picture.mode.startswith("I;16")


def _to_tensor(
    picture: Image.Image, in_chans: int, value_range: tuple[float, float] | None
) -> Tensor:
    """Decode the current page to [in_chans, H, W]."""
    picture.load()
    if _is_fine(picture):
        values = _scale(np.array(picture), value_range)
        return _with_channels(torch.from_numpy(values)[None], in_chans)
    converted = picture
    if in_chans in (1, 3):
        if picture.has_transparency_data:
            coloured = picture.convert("RGBA")
            black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
            converted = Image.alpha_composite(black, coloured)
        wanted = "L" if in_chans == 1 else "RGB"
        if converted.mode != wanted:  # else Pillow would copy
            converted = converted.convert(wanted)
    values = np.asarray(converted)  # bytes of its own, not Pillow's memory
    image = torch.from_numpy(_scale(values if values.ndim == 3 else values[..., None], None))
    return _with_channels(image.permute(2, 0, 1), in_chans)  # [C, H, W] on (H, W, C) memory


def _upright(image: Tensor, orientation: object) -> Tensor:
    """Turn [C, H, W] as the EXIF orientation 1..8 says; other values mean nothing."""
    if orientation in SIDEWAYS:
        image = image.transpose(1, 2)
    mirrored = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}
    dims = mirrored.get(orientation) if isinstance(orientation, int) else None
    return image if dims is None else image.flip(dims)


def _read_array(
    file: BinaryIO, size_bytes: int, in_chans: int, value_range: tuple[float, float] | None
) -> Tensor:
    """Read a .npy file; the header is checked first so that a false one costs no memory."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
    if dtype.kind not in "biuf":
        raise _UnusableError(f"an array of type {dtype} is no image")
    if math.prod(shape) * dtype.itemsize > size_bytes - file.tell():
        raise _UnusableError(f"the file is truncated: too short for its shape {shape}")
    if len(shape) not in (2, 3) or 0 in shape:
        raise _UnusableError(_bad_shape(shape, in_chans))
    limit = Image.MAX_IMAGE_PIXELS
    accepted = (1, 3) if in_chans in (1, 3) else (in_chans,)
    is_channels_last = len(shape) == 3 and shape[2] in accepted
    if len(shape) == 3 and not is_channels_last and shape[0] not in accepted:
        raise _UnusableError(_bad_shape(shape, in_chans))
    height, width = shape[-2:] if len(shape) == 2 or not is_channels_last else shape[:2]
    if limit is not None and height * width > limit:
        raise Image.DecompressionBombError(f"{height} x {width} px")
    file.seek(0)
    values = _scale(np.load(file, allow_pickle=False), value_range)
    image = torch.from_numpy(np.ascontiguousarray(values))
    if image.ndim == 2:
        image = image[None]
    elif is_channels_last:
        image = image.permute(2, 0, 1)
    return _with_channels(image, in_chans)


def _bad_shape(shape: tuple[int, ...], in_chans: int) -> str:
    return (
        f"an array of shape {shape}, where (H, W), (H, W, C) or (C, H, W) with C = {in_chans} "
        "(data.in_chans) is expected"
    )


def _scale(values: np.ndarray, value_range: tuple[float, float] | None) -> np.ndarray:
    """Return uint8 as it is, bool as 0 and 255, all else as float32 in 0..1."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise _UnusableError("holds NaN or infinite values")
    if value_range is not None:
        black, white = value_range
    else:
        is_float = values.dtype.kind == "f"
        black, white = 0.0, 1.0 if is_float else min(np.iinfo(values.dtype).max, 65535)
        rounding = ROUNDING if is_float else 0
        lowest, highest = values.min(), values.max()
        if lowest < -rounding or highest > white + rounding:
            raise _UnusableError(
                f"{values.dtype} values from {lowest:g} to {highest:g}, where 0 to {white:g} is "
                "expected; set data.value_range to the values that mean black and white"
            )
    scaled = (values.astype(np.float32) - np.float32(black)) / np.float32(white - black)
    return scaled.clip(0, 1)


def _with_channels(image: Tensor, in_chans: int) -> Tensor:
    """Return [in_chans, H, W]: grey repeated to 3, three colours weighed to 1, else unchanged."""
    channels = image.shape[0]
    if channels == in_chans:
        return image
    if (channels, in_chans) == (1, 3):
        return image.repeat(3, 1, 1)
    if (channels, in_chans) == (3, 1):
        luma = torch.tensordot(torch.tensor(LUMA), image.float(), dims=1)[None]
        return luma if image.is_floating_point() else luma.round().to(image.dtype)
    raise _UnusableError(f"has {channels} channels where {in_chans} (data.in_chans) are expected")


def _reason(error: Exception) -> str:
    """Put what went wrong into one short line without the path."""
    if isinstance(error, _UnusableError):
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
