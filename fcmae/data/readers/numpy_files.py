"""Reads NumPy's own files: .npy and .npz, one image or many in an array."""

import math
import zipfile
from typing import BinaryIO

import numpy as np

from fcmae.data.readers import layout as layouts
from fcmae.data.readers.contract import Description, Pixels, Source, UnreadableError, Wanted
from fcmae.data.readers.named_arrays import NamedArrays, cut_out

NPY_MAGIC = b"\x93NUMPY"
ZIP_MAGIC = b"PK\x03\x04"
LOCAL_HEADER_BYTES = 30  # of a zip's member, before its name
MOST_UNPACKED_BYTES = 2**30  # of a compressed member, which is unpacked as a whole

# Members that were unpacked last, MOST_UNPACKED_BYTES of them: images are asked for in any order.
_unpacked: dict[tuple[str, int, str], np.ndarray] = {}


class NpyReader:
    """Reads one array per file, and of it only what is wanted."""

    def kind_of(self, source: Source) -> str | None:
        """Return "NPY" by the file's first bytes."""
        return "NPY" if source.head.startswith(NPY_MAGIC) else None

    def items(self, source: Source, wanted: Wanted) -> list[str]:
        """Return the numbers of the images along the first axis, [""] for one image."""
        images = self.describe(source, wanted).images
        return [""] if images == 1 else [str(number) for number in range(images)]

    def describe(self, source: Source, wanted: Wanted) -> Description:
        """Return what shape and type say."""
        array = _mapped(source.opened(), source.size)
        return layouts.describe("NPY", layouts.layout_of(array.shape, wanted), array.dtype)

    def read(self, source: Source, wanted: Wanted) -> Pixels:
        """Return the part of one image that is wanted."""
        return cut_out("NPY", _mapped(source.opened(), source.size), source.item, wanted)


class NpzReader:
    """Reads archives of arrays; those written without compression are read like .npy files."""

    def kind_of(self, source: Source) -> str | None:
        """Return "NPZ" for a zip archive that holds .npy members and nothing else."""
        if not source.head.startswith(ZIP_MAGIC):
            return None
        try:
            names = zipfile.ZipFile(source.opened()).namelist()
        except zipfile.BadZipFile:
            return "NPZ" if source.suffix == ".npz" else None
        return "NPZ" if names and all(name.endswith(".npy") for name in names) else None

    def items(self, source: Source, wanted: Wanted) -> list[str]:
        """Return ARRAY, NUMBER or ARRAY::NUMBER of every image."""
        return _arrays_of(source).items(wanted)

    def describe(self, source: Source, wanted: Wanted) -> Description:
        """Return what shape and type of the array say that is named, or of the first."""
        return _arrays_of(source).describe(source.item, wanted)

    def read(self, source: Source, wanted: Wanted) -> Pixels:
        """Return the part of one image that is wanted."""
        return _arrays_of(source).read(source.item, wanted)


def _mapped(file: BinaryIO, size_bytes: int, start: int = 0) -> np.ndarray:
    """Return the array of a .npy file; the header is checked, since a false one costs memory."""
    file.seek(start)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    shape, is_fortran, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(
        file
    )
    layouts.check_type(dtype)
    if math.prod(shape) * dtype.itemsize > size_bytes - file.tell():
        raise UnreadableError(f"the file is truncated: too short for its shape {shape}")
    if len(shape) not in (2, 3, 4) or 0 in shape:
        return np.empty(shape, dtype)
    order = "F" if is_fortran else "C"
    return np.memmap(file, dtype, "r", file.tell(), shape, order)  # type: ignore[call-overload]


def _arrays_of(source: Source) -> NamedArrays:
    with zipfile.ZipFile(source.opened()) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
    arrays = {name: _member(source, name) for name in names}
    images = [name for name in names if arrays[name].ndim in (2, 3, 4)]
    return NamedArrays("NPZ", images, arrays.__getitem__)


def _member(source: Source, name: str) -> np.ndarray:
    """Return an array of an archive, mapped where it is not compressed."""
    with zipfile.ZipFile(source.opened()) as archive:
        member = archive.getinfo(name + ".npy")
        if member.compress_type == zipfile.ZIP_STORED:
            file = source.opened()
            file.seek(member.header_offset)
            header = file.read(LOCAL_HEADER_BYTES)
            lengths = [int.from_bytes(header[at : at + 2], "little") for at in (26, 28)]
            start = member.header_offset + LOCAL_HEADER_BYTES + sum(lengths)
            return _mapped(file, start + member.file_size, start)
        if member.file_size > MOST_UNPACKED_BYTES:
            raise UnreadableError(
                f"its array {name!r} unpacks to {member.file_size / 2**30:.1f} GiB; "
                "write it with numpy.savez, which does not compress, or as .npy"
            )
        key = (source.path, member.CRC, name)
        if key not in _unpacked:
            with archive.open(member) as content:
                array = np.lib.format.read_array(content, allow_pickle=False)
            _make_room(array.nbytes)
            _unpacked[key] = array
        return _unpacked[key]


def _make_room(num_bytes: int) -> None:
    """Forget the arrays that were unpacked first until there is room for so many bytes."""
    while _unpacked and num_bytes + sum(a.nbytes for a in _unpacked.values()) > MOST_UNPACKED_BYTES:
        del _unpacked[next(iter(_unpacked))]
