"""Files that hold arrays by name: which image an item means, in .npz, HDF5 and Zarr alike."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fcmae.data.readers import layout as layouts
from fcmae.data.readers.contract import Description, Pixels, UnreadableError, Wanted

SHOWN_NAMES = 5


class NamedArrays:
    """Arrays of one file that may be images; an item is NAME, NUMBER or NAME::NUMBER.

    Args:
        kind: of the file.
        names: of its arrays, in their order.
        get: array by name, of any library that has shape, dtype and slices.
    """

    def __init__(self, kind: str, names: Sequence[str], get: Callable[[str], Any]) -> None:
        if not names:
            raise UnreadableError("holds no array of two to four axes")
        self.kind, self.names, self._get = kind, list(names), get

    def items(self, wanted: Wanted) -> list[str]:
        """Return every image by name; NAME is left out where there is one array."""
        found = []
        for name in self.names:
            array = self._get(name)
            layouts.check_type(array.dtype)
            images = layouts.layout_of(tuple(array.shape), wanted).images
            prefix = [] if len(self.names) == 1 else [name]
            numbers: list[list[str]] = [[]]
            if images > 1:
                numbers = [[str(number)] for number in range(images)]
            found += ["::".join(prefix + number) for number in numbers]
        return found

    def describe(self, item: str, wanted: Wanted) -> Description:
        """Return what shape and type say of the array that is named, or of the first."""
        array, _ = self._named(item)
        layouts.check_type(array.dtype)
        note = f"one of {len(self.names)} arrays" if len(self.names) > 1 else ""
        layout = layouts.layout_of(tuple(array.shape), wanted)
        return layouts.describe(self.kind, layout, array.dtype, note)

    def read(self, item: str, wanted: Wanted) -> Pixels:
        """Return the part of one image that is wanted."""
        if len(self.names) > 1 and not item:
            raise UnreadableError(f"holds several arrays; name one by FILE::NAME: {self._shown()}")
        array, number = self._named(item)
        return cut_out(self.kind, array, number, wanted)

    def _named(self, item: str) -> tuple[Any, str]:
        """Return the array that an item names, or the first, and the rest of the item."""
        for name in sorted(self.names, key=len, reverse=True):
            if item == name or item.startswith(name + "::"):
                return self._get(name), item[len(name) + 2 :]
        if item and len(self.names) > 1:
            raise UnreadableError(f"holds no array {item!r}, only {self._shown()}")
        return self._get(self.names[0]), item

    def _shown(self) -> str:
        more = ", ..." if len(self.names) > SHOWN_NAMES else ""
        return ", ".join(self.names[:SHOWN_NAMES]) + more


def cut_out(kind: str, array: Any, item: str, wanted: Wanted) -> Pixels:
    """Return the part that is wanted of one image of an array, of any library."""
    layouts.check_type(array.dtype)
    layout = layouts.layout_of(tuple(array.shape), wanted)
    layouts.check_size(layout.height, layout.width)
    number = layouts.number_of(item, layout.images)
    rows, columns = slice(0, layout.height), slice(0, layout.width)
    if wanted.choose is not None:
        top, left, height, width, _ = wanted.choose(layout.height, layout.width)
        rows, columns = slice(top, top + height), slice(left, left + width)
    values = layout.image_of(array, number, (rows, columns))
    values = np.asarray(values, values.dtype.newbyteorder("="))
    return Pixels(values, layouts.validity(values), layouts.describe(kind, layout, values.dtype))
