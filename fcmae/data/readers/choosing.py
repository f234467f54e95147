"""Which reader reads a file: the first that knows its content. Nothing here knows a format."""

import contextlib
import os
import stat
import warnings
from collections.abc import Collection, Iterator

from fcmae.data.readers.array_stores import ZARR_FILES, Hdf5Reader, ZarrReader, is_zarr
from fcmae.data.readers.contract import (
    HEAD_BYTES,
    Description,
    Pixels,
    Reader,
    Source,
    UnreadableError,
    Wanted,
)
from fcmae.data.readers.dicom import DicomReader
from fcmae.data.readers.numpy_files import NpyReader, NpzReader
from fcmae.data.readers.own import read_own
from fcmae.data.readers.pictures import PictureReader
from fcmae.data.readers.saved_datasets import (
    DATASET_FILES,
    SavedDatasetReader,
    is_saved_dataset,
)
from fcmae.data.readers.tiff import TiffReader
from fcmae.data.shards import open_member, split_member

# DICOM before TIFF: some files are both, and the TIFF in them is often empty.
READERS: tuple[Reader, ...] = (
    PictureReader(),
    DicomReader(),
    TiffReader(),
    NpyReader(),
    NpzReader(),
    Hdf5Reader(),
    ZarrReader(),
    SavedDatasetReader(lambda source: reader_of(source)),
)
STORE_FILES = (*ZARR_FILES, *DATASET_FILES)
SEPARATOR = "::"  # between a file and what is named in it

EVERYTHING = Wanted()


def is_store(folder: str, names: Collection[bytes] | None = None) -> bool:
    """Whether a folder is one file in fact: a Zarr store, or a data set saved by Hugging Face.

    Args:
        folder: its path.
        names: of all that lies in it, where they are known already.
    """
    if names is not None and not any(name.encode() in names for name in STORE_FILES):
        return False
    return is_zarr(folder) or is_saved_dataset(folder)


def split_item(path: str) -> tuple[str, str]:
    """Return the file and which image in it a path names: "a.npy::12" -> ("a.npy", "12").

    A file whose own name holds "::" is that file.
    """
    if SEPARATOR not in path or os.path.lexists(path):
        return path, ""
    parts = path.split(SEPARATOR)
    for count in range(1, len(parts)):
        file = SEPARATOR.join(parts[:count])
        if os.path.lexists(file):
            return file, SEPARATOR.join(parts[count:])
    return parts[0], SEPARATOR.join(parts[1:])


@contextlib.contextmanager
def opened(path: str) -> Iterator[Source]:
    """Open what a path names: a file, a folder that is one, FILE::ITEM, or SHARD::MEMBER.

    Raises:
        UnreadableError: it is no file (nor a Zarr store), or empty.
        OSError: it cannot be opened.
    """
    if (member := split_member(path)) is not None:
        with open_member(*member) as content:
            head = content.read(HEAD_BYTES)
            content.seek(0)
            yield Source(member[1], "", head, content, len(content.getbuffer()))
        return
    name, item = split_item(path)
    status = os.stat(name)
    if stat.S_ISDIR(status.st_mode) and is_store(name):
        yield Source(name, item, b"", None, 0)
        return
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableError("is not a regular file")
    if status.st_size == 0:
        raise UnreadableError("the file is empty")
    with open(name, "rb") as file:
        head = file.read(HEAD_BYTES)
        file.seek(0)
        yield Source(name, item, head, file, status.st_size, is_on_disk=True)


def reader_of(source: Source) -> tuple[Reader, str]:
    """Return the reader of an open file and the kind of the file.

    Raises:
        UnreadableError: no reader knows it.
    """
    for reader in READERS:
        kind = reader.kind_of(source)
        if source.file is not None:
            source.file.seek(0)
        if kind is not None:
            return reader, kind
    raise UnreadableError("no picture in a format that can be read here")


def kind_of(path: str) -> str | None:
    """Return the kind of a file by its content, None for what no reader knows.

    Raises:
        OSError: it cannot be opened.
    """
    try:
        with opened(path) as source:
            return reader_of(source)[1]
    except UnreadableError:
        return None


def describe(path: str, wanted: Wanted = EVERYTHING, own: str | None = None) -> Description:
    """Return what a file holds without decoding its pixels.

    Args:
        path: a file, or FILE::ITEM.
        wanted: what would be asked of it, which decides what the shape of an array means.
        own: a reader of the user's (`data.reader`), which decodes.

    Raises:
        UnreadableError: it cannot be read; anything that libraries raise about damaged files.
    """
    if own is not None and (pixels := read_own(own, path, wanted)) is not None:
        return pixels.about
    with warnings.catch_warnings(), opened(path) as source:
        warnings.simplefilter("ignore")
        reader, _ = reader_of(source)
        return reader.describe(source, wanted)


def read(path: str, wanted: Wanted = EVERYTHING, own: str | None = None) -> Pixels:
    """Return the pixels of what `describe` describes, or of the part that is wanted.

    Raises:
        UnreadableError: it cannot be read; anything that libraries raise about damaged files.
    """
    if own is not None and (pixels := read_own(own, path, wanted)) is not None:
        return pixels
    with opened(path) as source:
        reader, _ = reader_of(source)
        return reader.read(source, wanted)


def items(path: str, wanted: Wanted = EVERYTHING) -> list[str]:
    """Return every image of a file by name: [path], or FILE::ITEM of each, in their order.

    Raises:
        UnreadableError: it cannot be read; anything that libraries raise about damaged files.
    """
    with warnings.catch_warnings(), opened(path) as source:
        warnings.simplefilter("ignore")
        reader, _ = reader_of(source)
        return [
            path if item == "" else f"{path}{SEPARATOR}{item}"
            for item in reader.items(source, wanted)
        ]
