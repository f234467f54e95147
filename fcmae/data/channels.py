"""From a file's own values to the channels of a model: bands, colours, transparency, range."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fcmae.data.readers import Description, Pixels, UnreadableError
from fcmae.data.readers.contract import BLACK, only_transparency
from fcmae.data.reading import Reading

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's conversion to grey
ROUNDING = 1e-3  # floats may leave 0..1 by this much


def to_channels(pixels: Pixels, reading: Reading) -> Tensor:
    """Return the image [in_chans, h, w]: uint8 in 0..255, or float32 in 0..1 if finer.

    Pixels that are not valid may hold anything; what they become means nothing.

    Raises:
        UnreadableError: the file has not the bands that are needed, or values out of range.
    """
    values, valid, about = pixels
    in_chans = reading.in_chans
    if reading.bands is not None:
        scaled = _scale(pick(values, reading.bands), valid, about, reading.value_range)
    elif in_chans in (1, 3) and about.colour in ("grey", "rgb") and about.alpha is not None:
        scaled = _laid_over(pixels, about.alpha, reading)
    elif in_chans in (1, 3) and about.colour in ("grey", "rgb", "cmyk"):
        scaled = _scale(values, valid, about, reading.value_range)
        if about.colour == "cmyk":
            scaled = _colours_of_inks(scaled)
        scaled = scaled[..., : 1 if about.colour == "grey" else 3]
    elif about.bands == in_chans and about.colour not in ("cmyk", "other"):
        scaled = _scale(values, valid, about, reading.value_range)
    else:
        raise UnreadableError(_no_such_channels(about, in_chans))
    if min(scaled.strides) < 0:  # turned upright; torch knows no such arrays
        scaled = scaled.copy()
    return _with_channels(torch.from_numpy(scaled).permute(2, 0, 1), in_chans)


def pick(values: np.ndarray, bands: Sequence[int]) -> np.ndarray:
    """Return some bands of [h, w, bands], counted from 0, in the order given.

    Raises:
        UnreadableError: there is no such band.
    """
    count = values.shape[-1]
    if max(bands) >= count:
        raise UnreadableError(
            f"has {count} band{'s' * (count != 1)}, and data.bands asks for number {max(bands)}, "
            "counted from 0"
        )
    return values[..., list(bands)]


def _no_such_channels(about: Description, in_chans: int) -> str:
    expected = f"where {in_chans} (data.in_chans) are expected"
    if about.colour == "cmyk":
        return f"has four inks (CMYK) {expected}: set data.in_chans to 3, or name them: data.bands"
    reason = f"has {about.bands} channels {expected}"
    if about.colour == "other":
        photometric = about.facts.get("photometric", "no colours")
        reason = f"its values are {photometric}, no grey or RGB, {expected}"
    reason += f"; {about.note}" if about.note else ""
    return f"{reason}; name some with data.bands" if about.bands >= in_chans else reason


def _scale(
    values: np.ndarray,
    valid: np.ndarray | None,
    about: Description,
    value_range: tuple[float, float] | None,
) -> np.ndarray:
    """Return 8 bits as uint8 in 0..255, one bit as 0 and 255, all else as float32 in 0..1."""
    black, white = about.black, about.white
    is_inverted = black is not None and white is not None and black > white
    if about.bits == 1 and black is not None:
        return values.astype(np.uint8) * 255 if not is_inverted else (values == 0) * np.uint8(255)
    if value_range is not None:
        black, white = value_range[::-1] if is_inverted else value_range
    if black is None or white is None:
        raise UnreadableError(
            f"{values.dtype} values from {values.min()} to {values.max()}: a type this wide does "
            "not say which value is white; set data.value_range to the values that mean black and "
            "white"
        )
    if values.dtype == np.uint8:
        if (black, white) == (0, 255):
            return values
        if (black, white) == (255, 0):
            return 255 - values
        if black == 0 and white in (3, 15):  # 2 and 4 bits fill 8 evenly
            return values * np.uint8(255 // white)
    is_float = values.dtype.kind == "f"
    counted = values if valid is None else values[valid]
    if is_float and not np.isfinite(counted).all():
        raise UnreadableError("holds NaN or infinite values")
    if value_range is None and not about.clips and counted.size:
        low, high = min(black, white), max(black, white)
        rounding = ROUNDING if is_float else 0
        lowest, highest = counted.min(), counted.max()
        if lowest < low - rounding or highest > high + rounding:
            raise UnreadableError(
                f"{values.dtype} values from {lowest:g} to {highest:g}, where {low:g} to {high:g} "
                "is expected; set data.value_range to the values that mean black and white"
            )
    scaled = (values.astype(np.float32) - np.float32(black)) / np.float32(white - black)
    return scaled.clip(0, 1)


def _laid_over(pixels: Pixels, alpha: int, reading: Reading) -> np.ndarray:
    """Return the scaled colours laid over the background; 8 bits as Pillow does.

    Transparency fills its own range, whatever `value_range` the colours have.
    """
    values, valid, about = pixels
    colours = _scale(values[..., :alpha], valid, about, reading.value_range)
    opacity = values[..., alpha : alpha + 1]
    below = np.array(reading.background or BLACK, np.float32)
    if alpha == 1 and reading.in_chans == 3:
        colours = colours.repeat(3, axis=2)
    elif alpha == 1:
        below = np.array([np.dot(LUMA, below)], np.float32)
    if colours.dtype == np.uint8 and values.dtype == np.uint8:
        whole, shown = (255 * below).round().astype(np.int32), opacity.astype(np.int32)
        laid = colours * shown + whole * (255 - shown) + 128
        laid = (((laid >> 8) + laid) >> 8).astype(np.uint8)
    else:
        share = opacity.astype(np.float32) / np.float32(about.white or 1)
        laid = (colours * share + below * (1 - share)).astype(np.float32)
    if opacity.min() < opacity.max() and np.ptp(laid, axis=(0, 1)).max() == 0:
        raise UnreadableError(only_transparency(reading.background))
    return laid


def _colours_of_inks(values: np.ndarray) -> np.ndarray:
    """Return red, green and blue of cyan, magenta, yellow and black; 8 bits as Pillow does."""
    if values.dtype != np.uint8:
        return (1 - values[..., :3]) * (1 - values[..., 3:4])
    light = 255 - values[..., 3:4].astype(np.int32)
    product = values[..., :3] * light + 128
    return (light - (((product >> 8) + product) >> 8)).clip(0, 255).astype(np.uint8)


def _with_channels(image: Tensor, in_chans: int) -> Tensor:
    """Return [in_chans, H, W]: grey repeated to 3, three colours weighed to 1, else unchanged."""
    channels = image.shape[0]
    if channels == in_chans:
        return image
    if channels == 1:
        return image.repeat(3, 1, 1)
    if not image.is_floating_point():
        luma = torch.tensordot(torch.tensor(LUMA), image.float(), dims=1)[None]
        return luma.round().to(image.dtype)
    # Sums of products of matrices round by where a pixel lies; a part must be that of the whole.
    red, green, blue = (weight * band for weight, band in zip(LUMA, image, strict=True))
    return (red + green + blue)[None]
