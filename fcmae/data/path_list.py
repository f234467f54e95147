"""Paths and labels of very many images as arrays of bytes and numbers.

A tuple of a million texts takes 150 MB, and every forked reader soon has a copy of its own, since
counting a reference writes to it. An array is shared for as long as nobody writes to it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

CHUNK = 8192  # paths at a time, where many are copied or decoded


class PathList(Sequence[str]):
    """An unchanging sequence of paths in one array of bytes, equal to any sequence of the same.

    Undecodable names carry surrogate escapes, as everywhere in Python; which ones are, is for the
    locale of the process to say, wherever a path came from.
    """

    def __init__(self, paths: Iterable[str] = ()) -> None:
        blob = bytearray()
        ends: list[int] = []
        for path in paths:
            blob += path.encode("utf-8", "surrogateescape")
            ends.append(len(blob))
        self._set(np.frombuffer(bytes(blob), np.uint8), np.array([0, *ends], np.int64))

    @classmethod
    def of_bytes(cls, blob: bytes | bytearray | np.ndarray, starts: Any) -> PathList:
        """Return the list whose path i is blob[starts[i] : starts[i + 1]], UTF-8."""
        made = cls.__new__(cls)
        array = blob if isinstance(blob, np.ndarray) else np.frombuffer(blob, np.uint8)
        made._set(array, np.asarray(starts, np.int64))
        return made

    def _set(self, blob: np.ndarray, starts: np.ndarray) -> None:
        self._blob, self._starts = blob, starts

    @property
    def num_bytes(self) -> int:
        """Memory that the list takes."""
        return self._blob.nbytes + self._starts.nbytes

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what `of_bytes` takes: the bytes [B] uint8 and the starts [N + 1] int64."""
        return self._blob, self._starts

    def raw_at(self, index: int) -> bytes:
        """Return the bytes of path `index`, 0 or more."""
        return self._blob[self._starts[index] : self._starts[index + 1]].tobytes()

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> PathList: ...

    def __getitem__(self, index: int | slice) -> str | PathList:
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        place = range(len(self))[index]  # counts negative ones from the end, refuses others
        return os.fsdecode(self.raw_at(place))

    def __iter__(self) -> Iterator[str]:
        yield from map(os.fsdecode, self.raw())

    def raw(self) -> Iterator[bytes]:
        """Yield the bytes of each path."""
        for first in range(0, len(self), CHUNK):
            starts = self._starts[first : first + CHUNK + 1]
            content = self._blob[starts[0] : starts[-1]].tobytes()
            places = (starts - starts[0]).tolist()
            yield from (content[a:b] for a, b in itertools.pairwise(places))

    def select(self, indices: Iterable[int] | np.ndarray) -> PathList:
        """Return the paths at `indices`, in that order."""
        chosen = as_indices(indices)
        lengths = np.diff(self._starts)[chosen]
        starts = np.zeros(len(chosen) + 1, np.int64)
        np.cumsum(lengths, out=starts[1:])
        blob = np.empty(int(starts[-1]), np.uint8)
        for first in range(0, len(chosen), CHUNK):
            part = slice(first, first + CHUNK)
            shift = np.repeat(self._starts[chosen[part]] - starts[:-1][part], lengths[part])
            begin, end = starts[first], starts[min(first + CHUNK, len(chosen))]
            blob[begin:end] = self._blob[np.arange(begin, end) + shift]
        return PathList.of_bytes(blob, starts)

    def __add__(self, other: Iterable[str]) -> PathList:
        more = other if isinstance(other, PathList) else PathList(other)
        starts = np.concatenate([self._starts, more._starts[1:] + self._starts[-1]])
        return PathList.of_bytes(np.concatenate([self._blob, more._blob]), starts)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PathList):
            same_ends = np.array_equal(self._starts, other._starts)
            return same_ends and np.array_equal(self._blob, other._blob)
        if isinstance(other, (tuple, list)):
            return len(self) == len(other) and all(map(str.__eq__, self, other))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # equal to tuples, which hash otherwise

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"PathList([{shown}{', ...' if len(self) > 3 else ''}], {len(self)} paths)"


class Labels(Sequence[int]):
    """An unchanging sequence of class numbers in one array, equal to any sequence of the same."""

    def __init__(self, labels: Iterable[int] | np.ndarray = ()) -> None:
        array = labels if isinstance(labels, np.ndarray) else np.fromiter(labels, np.int32)
        self.array = array.astype(np.int32, copy=False)

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> Labels: ...

    def __getitem__(self, index: int | slice) -> int | Labels:
        if isinstance(index, slice):
            return Labels(self.array[index])
        return int(self.array[index])

    def __iter__(self) -> Iterator[int]:
        return iter(self.array.tolist())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (Labels, tuple, list)):
            array = other.array if isinstance(other, Labels) else np.asarray(other)
            return np.array_equal(self.array, array)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Labels({self.array[:6].tolist()}{'...' if len(self) > 6 else ''}, {len(self)})"


def as_indices(indices: Iterable[int] | np.ndarray) -> np.ndarray:
    """Return indices as an array."""
    if isinstance(indices, range):
        return np.arange(indices.start, indices.stop, indices.step)
    if isinstance(indices, np.ndarray):
        return indices.astype(np.int64, copy=False)
    return np.fromiter(indices, np.int64)
