"""Images decoded and reduced once, kept in one large file: for sets whose decoding takes the time.

A sample is the same whether its image lies in the file or is decoded and reduced again: a missing,
outdated or full cache costs time and changes nothing. pixels-KIND.bin holds the images one after
another, index-KIND.bin one RECORD each, written when the pixels are on disk.
"""

import contextlib
import dataclasses
import errno
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fcmae.data.augmentation import resize_picture
from fcmae.data.decoding import Decoded, UndecodableImageError, decode
from fcmae.data.holes import none_if_all
from fcmae.data.parts import Choose, Part
from fcmae.data.readers import split_item
from fcmae.data.reading import Reading
from fcmae.errors import ConfigError
from fcmae.runs.durable import write_bytes
from fcmae.runs.locks import take_lock
from fcmae.runs.terminal import progress_bar

VERSION = 2  # of the files and of how images are reduced
# Version 2 holds pictures with transparency that were laid over their ground in a wrong way where
# values are compared, picked or given a range; other caches of it are as good as ever.
VERSION_BY_VALUES = 3
RECORD = np.dtype(
    [
        *(("path", "V16"), ("file_bytes", "<i8"), ("changed_ns", "<i8")),
        *(("offset", "<i8"), ("height", "<i4"), ("width", "<i4"), ("flags", "u1")),
    ]
)
IS_FLOAT, HAS_HOLES = 1, 2  # bits of flags: 4 bytes per value; a bit per pixel follows the pixels
KEEP_FREE_SHARE, KEEP_FREE_BYTES = 0.05, 20e9  # of the disk: the smaller is left to checkpoints
COMMIT_BYTES = 256 * 2**20  # pixels that a kill while filling may lose


class PixelCache:
    """Reduced images by their place in a list of files.

    An image is reduced (bicubic) until its shorter side has `side` px; smaller ones stay as they
    are. A file that changed since, by its size or time, is decoded anew until the next `fill`.

    Args:
        folder: where the cache lies; any runs may share it. Delete it to be rid of it.
        paths: the files.
        side: px of a reduced image's shorter side.
        reading: how values become channels.

    Raises:
        ConfigError: `folder` cannot be made or read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        paths: Sequence[str],
        *,
        side: int,
        reading: Reading,
    ) -> None:
        self.paths, self.side, self.reading = paths, side, reading
        is_by_values = reading.needs_exact_pixels or reading.value_range or reading.bands
        is_usual = not is_by_values and reading.in_chans in (1, 3)
        rules = (VERSION if is_usual else VERSION_BY_VALUES, side, *dataclasses.astuple(reading))
        kind = hashlib.blake2b(ascii(rules).encode(), digest_size=6).hexdigest()
        self.folder = Path(folder).expanduser()
        self._pixel_file = self.folder / f"pixels-{kind}.bin"
        self._index_file = self.folder / f"index-{kind}.bin"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.load()
        except OSError as error:
            raise ConfigError(
                f"data.cache: {str(self.folder)!r} cannot be used ({error.strerror}); name a "
                "folder that can be written, or null."
            ) from error

    def read(self, index: int, choose: Choose) -> Decoded:
        """Return the part of reduced image `index` that `choose` wants, as `decode` does.

        Raises:
            UndecodableImageError: the file is gone, or cannot be decoded.
        """
        stored = self._stored(index)
        if stored is None:
            image, valid = self._decode(index)
            stored = _channels_last(image).numpy(), None if valid is None else valid[0].numpy()
        pixels, has_data = stored
        top, left, height, width, _ = choose(*pixels.shape[:2])
        place = (slice(top, top + height), slice(left, left + width))
        crop = torch.from_numpy(np.array(pixels[place])).permute(2, 0, 1)
        if has_data is None:
            return Decoded(crop)
        return Decoded(crop, none_if_all(torch.from_numpy(np.array(has_data[place]))[None]))

    def load(self) -> None:
        """Take up what is in the files now: the records of complete images."""
        content = self._index_file.read_bytes() if self._index_file.exists() else b""
        size = self._pixel_file.stat().st_size if self._pixel_file.exists() else 0
        records = np.frombuffer(content, RECORD, count=len(content) // RECORD.itemsize)
        ends = records["offset"] + self._num_bytes(records)
        records = records[ends <= size]
        self._end = int(ends[ends <= size].max(initial=0))
        rows = {name.tobytes(): row for row, name in enumerate(records["path"])}  # the last wins
        self._rows = [rows.get(_name(path), -1) for path in self.paths]
        self._records = records
        self._pixels: np.ndarray | None = None

    def missing(self) -> list[int]:
        """Return the images whose file exists and is not in the cache as it is now."""
        return [
            index
            for index, path in enumerate(self.paths)
            if (state := _state(path)) is not None and state != self._kept_state(index)
        ]

    def fill(
        self,
        workers: int,
        report: Callable[[str], None],
        only: Container[int] | None = None,
    ) -> None:
        """Add the missing images. What cannot be written is told by `report`, and left out.

        Args:
            workers: processes that read.
            report: called with sentences.
            only: indices of the images to add; None: all.

        Raises:
            DataError: a reader died or is stuck.
        """
        try:
            with self._locked(report):
                self.load()  # another process may have filled it
                missing = self.missing()
                if only is not None:
                    missing = [index for index in missing if index in only]
                if missing:
                    self._add(missing, workers)
        except OSError as error:
            report(
                f"data.cache: {self.folder} cannot be written ({error.strerror or error}); what "
                "is missing in it is decoded in every epoch."
            )
        finally:
            self.load()
        kept = sum(row >= 0 for row in self._rows)
        report(
            f"data.cache: {kept} of {len(self.paths)} images are in {self.folder}, which takes "
            f"{self._end / 1e9:.2f} GB."
        )

    def _add(self, missing: list[int], workers: int) -> None:
        from fcmae.data.loading import make_loader  # which reads datasets, which read caches

        states = [_state(self.paths[index]) for index in missing]
        images = make_loader(_Reduced(self), [[index] for index in missing], workers)
        # Records whose pixels are gone would come to point into those that are added.
        write_bytes(self._index_file, self._records.tobytes())
        records: list[tuple[Any, ...]] = []
        start = end = self._end
        with self._pixel_file.open("ab") as pixel_file, self._index_file.open("ab") as index_file:
            pixel_file.truncate(end)  # pixels without a record, of a killed process
            try:
                bar = progress_bar(images, unit="image", total=len(missing), title="data.cache")
                for index, state, batch in zip(missing, states, bar, strict=True):
                    if not batch["path"] or state is None:
                        continue  # undecodable: the training says so when it meets the file
                    pixels = _channels_last(batch["image"][0]).numpy()
                    flags = IS_FLOAT if pixels.dtype != np.uint8 else 0
                    content = [pixels.data]
                    if "valid" in batch:
                        flags |= HAS_HOLES
                        content.append(np.packbits(batch["valid"][0].numpy()).data)
                    size = sum(part.nbytes for part in content)
                    self._check_space(size)
                    for part in content:
                        pixel_file.write(part)
                    name = _name(self.paths[index])
                    records.append((name, *state, end, *pixels.shape[:2], flags))
                    end += size
                    if end - start >= COMMIT_BYTES:
                        _commit(pixel_file, index_file, records)
                        start = end
            finally:
                _commit(pixel_file, index_file, records)

    def _check_space(self, wanted: int) -> None:
        disk = shutil.disk_usage(self.folder)
        kept_free = min(KEEP_FREE_SHARE * disk.total, KEEP_FREE_BYTES)
        if disk.free - wanted < kept_free:
            raise OSError(errno.ENOSPC, f"the last {kept_free / 1e9:.1f} GB are left free")

    @contextlib.contextmanager
    def _locked(self, report: Callable[[str], None]) -> Iterator[None]:
        """Fill alone; wait for another process that does."""
        with (self.folder / "lock").open("a") as lock:
            if not take_lock(lock):
                report(f"data.cache: another process fills {self.folder}; waiting for it.")
                take_lock(lock, wait=True)
            yield

    def _num_bytes(self, records: Any) -> Any:
        """Return the size of what a record describes, or of many records'."""
        return self._pixel_bytes(records) + np.where(
            records["flags"] & HAS_HOLES, -(-_num_pixels(records) // 8), 0
        )

    def _pixel_bytes(self, records: Any) -> Any:
        width = np.where(records["flags"] & IS_FLOAT, 4, 1)
        return _num_pixels(records) * self.reading.in_chans * width

    def _kept_state(self, index: int) -> tuple[int, int] | None:
        row = self._rows[index]
        if row < 0:
            return None
        record = self._records[row]
        return int(record["file_bytes"]), int(record["changed_ns"])

    def _stored(self, index: int) -> tuple[np.ndarray, np.ndarray | None] | None:
        """Return image `index` (height, width, channels) in the file, None when it has none.

        With it, which of its pixels have data, bool (height, width); None for all.
        """
        kept = self._kept_state(index)
        if kept is None or kept != _state(self.paths[index]):
            return None
        if self._pixels is None:
            self._pixels = np.memmap(self._pixel_file, np.uint8, "r")
        record = self._records[self._rows[index]]
        start, stop = int(record["offset"]), int(record["offset"] + self._num_bytes(record))
        middle = start + int(self._pixel_bytes(record))
        size = (int(record["height"]), int(record["width"]))
        kind = np.float32 if record["flags"] & IS_FLOAT else np.uint8
        pixels = self._pixels[start:middle].view(kind).reshape(*size, self.reading.in_chans)
        if not record["flags"] & HAS_HOLES:
            return pixels, None
        bits = np.unpackbits(self._pixels[middle:stop], count=size[0] * size[1])
        return pixels, bits.reshape(size).astype(bool)

    def _decode(self, index: int) -> Decoded:
        sizes: list[tuple[int, int]] = []

        def whole(height: int, width: int) -> Part:
            scale = min(1.0, self.side / min(height, width))
            sizes.append((math.ceil(height * scale), math.ceil(width * scale)))
            return Part(0, 0, height, width, sizes[0])

        picture = decode(self.paths[index], self.reading, whole)
        return resize_picture(picture, sizes[0])


class _Reduced(Dataset[dict[str, Any]]):
    """The reduced images of a cache, for `make_loader`."""

    def __init__(self, cache: PixelCache) -> None:
        self.cache = cache

    def path_of(self, key: int) -> str:
        return self.cache.paths[key]

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = {"label": -1, "index": index, "path": self.cache.paths[index], "skipped": []}
        try:
            image, valid = self.cache._decode(index)
        except UndecodableImageError:
            return {**sample, "image": torch.zeros(1), "is_usable": False}
        sample["image"] = image
        return sample if valid is None else {**sample, "valid": valid}


def _commit(pixel_file: BinaryIO, index_file: BinaryIO, records: list[tuple[Any, ...]]) -> None:
    """Put pixels on disk, then their records, and forget these."""
    pixel_file.flush()
    os.fsync(pixel_file.fileno())
    index_file.write(np.array(records, RECORD).tobytes())
    index_file.flush()
    os.fsync(index_file.fileno())
    records.clear()


def _num_pixels(records: Any) -> Any:
    return records["height"].astype(np.int64) * records["width"]


def _channels_last(image: Tensor) -> Tensor:
    return image.permute(1, 2, 0).contiguous()


def _name(path: str) -> bytes:
    return hashlib.blake2b(os.fsencode(os.path.abspath(path)), digest_size=16).digest()


def _state(path: str) -> tuple[int, int] | None:
    """Return what tells whether a file changed: its size and time; None when it is gone."""
    try:
        status = os.stat(split_item(path)[0])
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
