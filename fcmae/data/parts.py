"""Which pixels of a file a crop needs: in the picture as seen, as stored, and as reduced."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

JPEG_REDUCTIONS = (8, 4, 2)  # that libjpeg decodes at; see docs/performance.md for the likeness
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations


class Part(NamedTuple):
    """A rectangle of a picture, px, and the (height, width), px, that it will be scaled to.

    With `scaled_to` None its pixels are wanted as they are in the file, at any size.
    """

    top: int
    left: int
    height: int
    width: int
    scaled_to: tuple[int, int] | None

    def as_stored(self, orientation: object, height: int, width: int) -> Part:
        """Return where it lies in a file of height x width px, which is seen turned.

        It inverts the turn of the EXIF orientation 1..8: sideways, then mirrored.
        """
        is_sideways = orientation in SIDEWAYS
        seen_height, seen_width = (width, height) if is_sideways else (height, width)
        top, left, part_height, part_width, scaled_to = self
        if orientation in (3, 4, 7, 8):
            top = seen_height - top - part_height
        if orientation in (2, 3, 6, 7):
            left = seen_width - left - part_width
        if is_sideways:
            return Part(left, top, part_width, part_height, scaled_to and scaled_to[::-1])
        return Part(top, left, part_height, part_width, self.scaled_to)

    def reduction(self) -> int:
        """Return by how much the decoder may divide both sides, 1, 2, 4 or 8: none is enlarged."""
        if self.scaled_to is None:
            return 1
        height, width = self.scaled_to
        for factor in JPEG_REDUCTIONS:
            if self.height >= factor * height and self.width >= factor * width:
                return factor
        return 1

    def within(self, factor: float, height: int, width: int) -> Part:
        """Return the part, rounded to whole pixels, of the picture reduced to height x width px."""
        top, bottom = _rounded(self.top, self.height, factor, height)
        left, right = _rounded(self.left, self.width, factor, width)
        return Part(top, left, bottom - top, right - left, self.scaled_to)


Choose = Callable[[int, int], Part]
"""(height, width) of a picture as it is seen, px -> the part of it that is needed."""


def cut(image: Tensor, choose: Choose | None) -> Tensor:
    """Return the part [C, h, w] of a decoded image [C, H, W] that is wanted; all by default."""
    if choose is None:
        return image
    top, left, height, width, _ = choose(*image.shape[1:])
    return image[:, top : top + height, left : left + width]


def _rounded(start: int, length: int, factor: float, limit: int) -> tuple[int, int]:
    first = min(round(start / factor), limit - 1)
    return first, max(first + 1, min(round((start + length) / factor), limit))
