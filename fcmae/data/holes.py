"""Pixels without data: which ones they are, and what cropping and scaling makes of them.

`valid` is bool [1, H, W] beside an image [C, H, W], False where the image has no data, or None
where all of it has. Pixels without data hold 0, so that nothing of theirs can spread.
"""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fcmae.data.image_list import ImageList
from fcmae.data.parcels import stack
from fcmae.data.parts import Choose
from fcmae.data.readers import SEPARATOR, Pixels, UnreadableError, Wanted, read, split_item
from fcmae.data.reading import Reading
from fcmae.data.shards import has_member, split_member
from fcmae.errors import ConfigError

EDGE_PX = 1e-6  # this near its end the kernel is 0
CUBIC_REACH = 2  # px of the bicubic kernel to either side, in the coarser of the two pictures


def mask_of(path: str, reading: Reading) -> str | None:
    """Return where the mask of a picture lies, None without masks.

    The mask of one of several images in a file is the image of that number or name in the mask;
    that of a member of a shard is a member of the same shard.
    """
    if reading.valid_mask is None:
        return None
    if (packed := split_member(path)) is not None:
        shard, member = packed
        return f"{shard}{SEPARATOR}{_beside(member, reading.valid_mask)}"
    file, item = split_item(path)
    mask = _beside(file, reading.valid_mask)
    return f"{mask}{SEPARATOR}{item}" if item else mask


def _beside(file: str, pattern: str) -> str:
    """Return the path of what lies beside a file by a pattern with {stem} or {name} in it."""
    folder, name = os.path.split(file)
    stem = os.path.splitext(name)[0]
    place = pattern.replace("{stem}", stem).replace("{name}", name)
    return os.path.normpath(os.path.join(folder, place))


def valid_pixels(pixels: Pixels, reading: Reading) -> np.ndarray | None:
    """Return which pixels of a file have data, apart from a mask beside it: bool [h, w] or None.

    Raises:
        UnreadableError: data.invalid has one value per band of another number of bands.
    """
    valid = pixels.valid if reading.holes else None
    if reading.invalid is None:
        return valid
    values, alpha = pixels.values, pixels.about.alpha
    bands = np.delete(np.arange(values.shape[2]), [] if alpha is None else alpha)
    wanted = np.asarray(reading.invalid, np.float64)
    if wanted.size not in (1, len(bands)):
        raise UnreadableError(
            f"data.invalid has {wanted.size} values for {len(bands)} bands; give one per band, or "
            "one for all"
        )
    with np.errstate(over="ignore"):  # the value as the file's type holds it: 0.1 is none
        wanted = wanted.astype(values.dtype) if values.dtype.kind == "f" else wanted
    has_data = (values[..., bands] != wanted).any(axis=2)
    return has_data if valid is None else valid & has_data


def read_mask(mask: str, choose: Choose | None) -> np.ndarray:
    """Return where a mask is not 0, in any of its bands: bool [h, w].

    Raises:
        UnreadableError, and whatever its reader raises: it cannot be read.
    """
    values, _, about = read(mask, Wanted(in_chans=1, is_exact=True, choose=choose))
    bands = np.delete(np.arange(values.shape[2]), [] if about.alpha is None else about.alpha)
    return (values[..., bands] != 0).any(axis=2)


def fill(image: Tensor, valid: Tensor | None) -> Tensor:
    """Return the image [..., C, H, W] with 0 where it has no data."""
    return image if valid is None else image.masked_fill(~valid, 0)


def none_if_all(valid: Tensor | None) -> Tensor | None:
    """Return None for a mask without holes."""
    return None if valid is None or bool(valid.all()) else valid


def resize_valid(valid: Tensor, size: tuple[int, int]) -> Tensor:
    """Return which pixels of a picture scaled to `size` (bicubic, smoothed) have data.

    bool [1, H, W] -> bool [1, *size]. One whose kernel touches a pixel without data has none: it
    would be made of it.
    """
    is_hole = ~valid
    for axis, target in ((1, size[0]), (2, size[1])):
        is_hole = _touched(is_hole, axis, target)
    return ~is_hole


def _touched(is_hole: Tensor, axis: int, target: int) -> Tensor:
    """Return which of `target` pixels along an axis are made of a hole, by running sums.

    Pixel o reaches from (o + 1/2) s - r to (o + 1/2) s + r, where s is the scale and r the reach
    of the kernel, which is stretched where the picture shrinks: torch's antialiased bicubic.
    """
    length = is_hole.shape[axis]
    if target == length:  # every pixel is itself
        return is_hole
    scale = length / target
    reach = CUBIC_REACH * max(scale, 1.0)
    centres = (torch.arange(target, dtype=torch.float64) + 0.5) * scale
    # Pixel i counts when its centre i + 1/2 is nearer than the reach, where the kernel is 0.
    first = (centres - reach + 0.5 + EDGE_PX).floor().long().clamp(0, length)
    last = (centres + reach - 0.5 - EDGE_PX).ceil().long().clamp(0, length)
    counts = is_hole.cumsum(axis, dtype=torch.int32)
    zeros = torch.zeros_like(counts.narrow(axis, 0, 1))
    counts = torch.cat([zeros, counts], dim=axis)
    return counts.index_select(axis, last) > counts.index_select(axis, first)


def stack_valid(masks: Sequence[Tensor | None]) -> Tensor | None:
    """Return the masks of a batch as bool [N, 1, H, W], None when no image has holes."""
    known = next((valid for valid in masks if valid is not None), None)
    if known is None:
        return None
    whole = torch.ones_like(known)
    return stack([whole if valid is None else valid for valid in masks])


def has_masks(images: ImageList, reading: Reading) -> bool:
    """Return whether an image has a mask where `reading` says that masks lie."""
    return reading.valid_mask is not None and any(map(_is_there, _masks_of(images, reading)))


def _is_there(path: str) -> bool:
    if (packed := split_member(path)) is not None:
        return has_member(*packed)
    return os.path.exists(path)


def _masks_of(images: ImageList, reading: Reading) -> list[str]:
    """Return the file, or the member of a shard, that holds the mask of each image."""
    return [_file_of(mask_of(path, reading) or "") for path in images.paths]


def _file_of(path: str) -> str:
    return path if split_member(path) is not None else split_item(path)[0]


def without_masks(images: ImageList, reading: Reading) -> ImageList:
    """Return the images that are not the mask of another one; labels only of two classes or more.

    Raises:
        ConfigError: no image has a mask where the setting says.
    """
    if reading.valid_mask is None:
        return images
    masks = _masks_of(images, reading)
    if not has_masks(images, reading):
        raise ConfigError(
            f"data.valid_mask: none of the {len(images)} images has a mask at "
            f"{reading.valid_mask!r}; the first would be {masks[0]!r}."
        )
    known = set(masks)
    kept = images.select(
        place
        for place, path in enumerate(images.paths)
        if os.path.normpath(_file_of(path)) not in known
    )
    if kept.accounting is not None:
        count = len(images) - len(kept)
        counts = dataclasses.replace(
            kept.accounting,
            num_images=kept.accounting.num_images - count,
            masks=kept.accounting.masks + count,
        )
        kept = dataclasses.replace(kept, accounting=counts)
    if kept.labels is not None and len(set(kept.labels)) < 2:
        reason = "has one class beside its folder of masks"
        return dataclasses.replace(kept, labels=None, classes=None, why_unlabelled=reason)
    return kept
