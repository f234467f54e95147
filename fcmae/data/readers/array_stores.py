"""Reads HDF5 files and Zarr folders with h5py and zarr (the extra `arrays`).

Every array of two to four axes is an image or many, see `layout.layout_of`; of an OME-Zarr
pyramid the full resolution alone.
"""

import functools
import math
import os
from typing import Any

from fcmae.data.readers.contract import Description, Pixels, Source, UnreadableError, Wanted
from fcmae.data.readers.named_arrays import NamedArrays

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")
OPEN_STORES = 16  # per process


class Hdf5Reader:
    """Reads the arrays of an HDF5 file, and of them only what is wanted."""

    def kind_of(self, source: Source) -> str | None:
        """Return "HDF5" by the first bytes."""
        return "HDF5" if source.head.startswith(HDF5_MAGIC) else None

    def items(self, source: Source, wanted: Wanted) -> list[str]:
        """Return NAME, NUMBER or NAME::NUMBER of every image."""
        with _hdf5(source) as file:
            return _in_hdf5(file).items(wanted)

    def describe(self, source: Source, wanted: Wanted) -> Description:
        """Return what shape and type of the array say that is named, or of the first."""
        with _hdf5(source) as file:
            return _in_hdf5(file).describe(source.item, wanted)

    def read(self, source: Source, wanted: Wanted) -> Pixels:
        """Return the part of one image that is wanted."""
        with _hdf5(source) as file:
            return _in_hdf5(file).read(source.item, wanted)


class ZarrReader:
    """Reads the arrays of a Zarr store that is a folder, and of them only what is wanted."""

    def kind_of(self, source: Source) -> str | None:
        """Return "Zarr" for a folder with the files of a store."""
        return "Zarr" if source.file is None and is_zarr(source.path) else None

    def items(self, source: Source, wanted: Wanted) -> list[str]:
        """Return NAME, NUMBER or NAME::NUMBER of every image."""
        return _in_zarr(source).items(wanted)

    def describe(self, source: Source, wanted: Wanted) -> Description:
        """Return what shape and type of the array say that is named, or of the first."""
        return _in_zarr(source).describe(source.item, wanted)

    def read(self, source: Source, wanted: Wanted) -> Pixels:
        """Return the part of one image that is wanted."""
        return _in_zarr(source).read(source.item, wanted)


def is_zarr(folder: str) -> bool:
    """Whether a folder is a Zarr store."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in ZARR_FILES)


class _Without:
    """An array without axes of one entry, as microscopes write for time and depth."""

    def __init__(self, array: Any) -> None:
        self._array, self.dtype = array, array.dtype
        sides = tuple(array.shape)
        self._kept = list(range(len(sides)))
        for axis in range(len(sides) - 2):
            if sides[axis] == 1 and len(self._kept) > 3:
                self._kept.remove(axis)
        self.shape = tuple(sides[axis] for axis in self._kept)

    def __getitem__(self, index: tuple[Any, ...]) -> Any:
        whole: list[Any] = [0] * len(self._array.shape)
        for axis, part in zip(self._kept, index, strict=True):
            whole[axis] = part
        return self._array[tuple(whole)]


def _is_image(array: Any) -> bool:
    return array.dtype.kind in "biuf" and len(_Without(array).shape) in (2, 3, 4)


def _hdf5(source: Source) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise UnreadableError(_needs("HDF5", "h5py")) from error
    return h5py.File(source.path, "r", locking=False)


def _in_hdf5(file: Any) -> NamedArrays:
    import h5py

    names: list[str] = []

    def look_at(name: str, found: Any) -> None:
        if isinstance(found, h5py.Dataset) and found.shape and _is_image(found):
            names.append(name)

    file.visititems(look_at)
    return NamedArrays("HDF5", names, lambda name: _Without(file[name]))


def _in_zarr(source: Source) -> NamedArrays:
    try:
        import zarr  # noqa: F401
    except ImportError as error:
        raise UnreadableError(_needs("Zarr", "zarr")) from error
    found = _arrays(source.path, os.getpid(), _changed_ns(source.path))
    images = [name for name, array in found.items() if _is_image(array)]

    def whole(name: str) -> _Without:
        if name not in found.whole:  # the chunks are counted once: there may be a million
            _check_chunks(found[name])
            found.whole.add(name)
        return _Without(found[name])

    return NamedArrays("Zarr", images, whole)


class _Arrays(dict[str, Any]):
    """The arrays of a store by their paths; `whole` names those whose chunks are all there."""

    def __init__(self) -> None:
        self.whole: set[str] = set()


@functools.lru_cache(maxsize=OPEN_STORES)
def _arrays(folder: str, process: int, changed_ns: int) -> _Arrays:
    del process, changed_ns  # a forked reader opens its own, and so does a later look
    import zarr

    found = _Arrays()
    _gather(zarr.open(folder, mode="r"), "", found)
    return found


def _changed_ns(folder: str) -> int:
    """Return when the description of a store changed last."""
    files = (os.path.join(folder, name) for name in ZARR_FILES)
    return max(os.stat(file).st_mtime_ns for file in files if os.path.exists(file))


def _gather(node: Any, name: str, found: dict[str, Any]) -> None:
    """Collect the arrays of a group by their path, of a pyramid the full resolution."""
    if hasattr(node, "shape"):
        found[name or "array"] = node
        return
    attributes = dict(node.attrs)
    pyramids = attributes.get("multiscales") or attributes.get("ome", {}).get("multiscales")
    if pyramids:
        path = pyramids[0]["datasets"][0]["path"]
        found["/".join(filter(None, (name, path)))] = node[path]
        return
    for key in sorted(node.keys()):
        _gather(node[key], "/".join(filter(None, (name, key))), found)


def _check_chunks(array: Any) -> None:
    """Raise UnreadableError when chunks of a Zarr array are missing.

    Zarr reads what is missing as 0, which would be pixels.
    """
    stored = getattr(array, "nchunks_initialized", None)
    if callable(stored):  # a method in some versions
        stored = stored()
    expected = getattr(array, "nchunks", None)
    if array.fill_value is None or stored is None or expected is None:
        return
    if 0 < stored < expected or (stored == 0 and math.prod(array.shape) > 0):
        raise UnreadableError(f"has {stored} of its {expected} chunks; copy the folder again")


def _needs(kind: str, package: str) -> str:
    return f"is {kind}, which needs the package {package}: pip install 'fcmae[arrays]'"
