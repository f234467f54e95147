"""Masks that name a class for every pixel: from a file's values or colours to class numbers.

Not to be confused with masks of pixels without data, see holes.py. The values of a palette are its
indices, unless classes are colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from fcmae.data.decoding import UndecodableImageError, told_of
from fcmae.data.readers import UnreadableError, Wanted, read
from fcmae.data.readers.choosing import opened, reader_of
from fcmae.errors import DataError

IGNORED = -1  # class number of pixels that are neither learned nor scored
ROWS_AT_ONCE = 256  # bounds memory
MOST_VALUES = 4096  # different ones in a mask; a photograph has more
INDEXED_KINDS = ("PNG", "GIF", "BMP", "TGA")  # of which palettes are read as their indices

Value = int | tuple[int, int, int]


@dataclass(frozen=True)
class MaskClasses:
    """What stands for each class in the files of masks.

    Attributes:
        names: of the classes.
        values: of each class, numbers or colours (red, green, blue).
        ignored: the value of pixels without a class, or None.
    """

    names: tuple[str, ...]
    values: tuple[Value, ...]
    ignored: Value | None = None

    @classmethod
    def of_settings(
        cls, classes: Mapping[str, Any] | Sequence[str] | None, ignore_index: Any
    ) -> MaskClasses | None:
        """Return what data.classes and data.ignore_index say; None where masks must tell it."""
        if classes is None:
            return None
        values = classes.values() if isinstance(classes, Mapping) else range(len(classes))
        return cls(tuple(classes), tuple(map(as_value, values)), as_value(ignore_index))

    @classmethod
    def of_values(cls, found: Sequence[int], ignore_index: Any) -> MaskClasses:
        """Return a class for every value that masks hold, but the ignored one.

        Raises:
            DataError: fewer than two classes.
        """
        values = tuple(sorted(set(found) - {ignore_index}))
        if len(values) < 2:
            raise DataError(
                f"data.masks: all pixels of all masks have the value {values[0] if values else ''}"
                ", one class only; expected two or more, see data.classes."
            )
        return cls(tuple(map(str, values)), values, as_value(ignore_index))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def are_coloured(self) -> bool:
        """Whether masks are read by their colours."""
        return isinstance(self.values[0], tuple)

    def number_of(self, code: int) -> int | None:
        """Return the class number of a pixel's code, IGNORED, or None where nothing says it."""
        return self._numbers.get(code)

    @property
    def _numbers(self) -> dict[int, int]:
        known = {code_of(value): number for number, value in enumerate(self.values)}
        return known if self.ignored is None else {**known, code_of(self.ignored): IGNORED}

    def numbers(self, codes: np.ndarray) -> np.ndarray:
        """Return int16 class numbers of the codes of `read_codes`, same shape.

        Raises:
            UnreadableError: a value that is no class's.
        """
        known = self._numbers
        values = np.array(sorted(known))
        of_values = np.array([known[int(value)] for value in values], np.int16)
        numbers = np.empty(codes.shape, np.int16)
        for top in range(0, len(codes), ROWS_AT_ONCE):
            rows = codes[top : top + ROWS_AT_ONCE]
            places = np.searchsorted(values, rows).clip(0, len(values) - 1)
            is_unknown = values[places] != rows
            if is_unknown.any():
                code = int(rows[is_unknown][0])
                raise UnreadableError(self.unknown(code, int((codes == code).sum())))
            numbers[top : top + ROWS_AT_ONCE] = of_values[places]
        return numbers

    def unknown(self, code: int, count: int) -> str:
        """Say that a code is no class's."""
        what = "colour" if self.are_coloured else "value"
        spelt = shown(code, self.are_coloured)
        return f"has {count:,} pixels of the {what} {spelt}, which is no class"


def as_value(value: Any) -> Any:
    """Return a setting as a Value."""
    return tuple(value) if isinstance(value, list) else value


def code_of(value: Value) -> int:
    """Return the number that stands for a value, or for a colour."""
    if isinstance(value, tuple):
        red, green, blue = value
        return red << 16 | green << 8 | blue
    return value


def shown(code: int, is_coloured: bool) -> str:
    """Return a code as the settings spell it."""
    return str([code >> 16, code >> 8 & 255, code & 255] if is_coloured else code)


def read_codes(path: str, *, are_coloured: bool) -> np.ndarray:
    """Return the code of every pixel of a mask, [H, W] whole numbers, upright.

    Raises:
        UndecodableImageError: it cannot be read, is a JPEG, has fractions or too many bands.
        DataError: too many open files.
    """
    with told_of(path):
        values = _indices(path) if not are_coloured else None
        if values is None:
            values = _values(path, are_coloured)
        return values


def _indices(path: str) -> np.ndarray | None:
    """Return the indices of a picture with a palette; None of any other file."""
    with opened(path) as source:
        if source.file is None:
            return None
        _, kind = reader_of(source)
        source.file.seek(0)
        if kind not in INDEXED_KINDS:
            return None
        with Image.open(source.file, formats=(kind,)) as picture:
            if picture.mode != "P":
                return None
            return np.asarray(ImageOps.exif_transpose(picture))


def _values(path: str, are_coloured: bool) -> np.ndarray:
    values, _, about = read(path, Wanted(in_chans=3 if are_coloured else 1, is_exact=True))
    if about.kind == "JPEG":
        raise UnreadableError("is a JPEG, which changes values; write masks as PNG, TIFF or .npy")
    bands = np.delete(np.arange(values.shape[2]), [] if about.alpha is None else about.alpha)
    values = values[..., bands]
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and (values == np.rint(values)).all()):
            raise UnreadableError("has fractions or NaN; the values of masks are whole numbers")
        values = values.astype(np.int64)
    count = values.shape[2]
    if count not in (1, 3):
        raise UnreadableError(f"has {count} bands; a mask has one, or the three of a colour")
    if are_coloured:
        if values.min(initial=0) < 0 or values.max(initial=0) > 255:
            raise UnreadableError("has values beyond 255, which are no colours of 8 bits")
        red, green, blue = (values[..., band % count].astype(np.int32) for band in range(3))
        return red << 16 | green << 8 | blue
    if count == 3 and not (values == values[..., :1]).all():
        raise UnreadableError(
            "has colours, and classes are numbers; give data.classes colours, such as "
            "{crack: [255, 0, 0], rest: [0, 0, 0]}"
        )
    return values[..., 0]


def read_mask_numbers(path: str, classes: MaskClasses) -> np.ndarray:
    """Return int16 class numbers [H, W] of a mask.

    Raises:
        UndecodableImageError: as `read_codes`; a value that is no class's.
    """
    codes = read_codes(path, are_coloured=classes.are_coloured)
    try:
        return classes.numbers(codes)
    except UnreadableError as error:
        raise UndecodableImageError(path, str(error)) from error


def count_codes(codes: np.ndarray) -> dict[int, int]:
    """Return how many pixels have each code."""
    if codes.dtype == np.uint8:
        counts = np.bincount(codes.ravel(), minlength=256)
        return {code: int(counts[code]) for code in np.flatnonzero(counts).tolist()}
    found, counts = np.unique(codes, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
