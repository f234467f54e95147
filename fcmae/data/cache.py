"""Images decoded and reduced once, kept in one large file: for sets whose decoding takes the time.

A sample is the same whether its image lies in the file or is decoded and reduced again: a missing,
outdated or full cache costs time and changes nothing. pixels-KIND.bin holds the images one after
another, index-KIND.bin one RECORD each, written when the pixels are on disk.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fcmae.data.augmentation import resize_image
from fcmae.data.decoding import UndecodableImageError, decode_all
from fcmae.data.parts import Choose, Part
from fcmae.data.readers import split_item
from fcmae.data.reading import BLACK, Reading
from fcmae.errors import ConfigError
from fcmae.runs.durable import write_bytes
from fcmae.runs.locks import take_lock
from fcmae.runs.terminal import progress_bar

VERSION = 1  # of the files and of how images are reduced
RECORD = np.dtype(
    [
        *(("path", "V16"), ("file_bytes", "<i8"), ("changed_ns", "<i8")),
        *(("offset", "<i8"), ("height", "<i4"), ("width", "<i4"), ("is_float", "?")),
    ]
)
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
        known: tuple[Any, ...] = (VERSION, side, reading.in_chans, reading.value_range)
        others = (reading.bands, reading.background, reading.reader)
        known += others if others != (None, BLACK, None) else ()  # as caches made before say it
        kind = hashlib.blake2b(ascii(known).encode(), digest_size=6).hexdigest()
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

    def read(self, index: int, choose: Choose) -> Tensor:
        """Return the part of reduced image `index` that `choose` wants, as `decode_all` does.

        Raises:
            UndecodableImageError: the file is gone, or cannot be decoded.
        """
        pixels = self._stored(index)
        if pixels is None:
            pixels = _channels_last(self._decode(index)).numpy()
        top, left, height, width, _ = choose(*pixels.shape[:2])
        crop = np.array(pixels[top : top + height, left : left + width])
        return torch.from_numpy(crop).permute(2, 0, 1)

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

    def fill(self, workers: int, report: Callable[[str], None]) -> None:
        """Add the missing images. What cannot be written is told by `report`, and left out.

        Raises:
            DataError: a reader died or is stuck.
        """
        try:
            with self._locked(report):
                self.load()  # another process may have filled it
                if missing := self.missing():
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
                    self._check_space(pixels.nbytes)
                    pixel_file.write(pixels.data)
                    is_float = pixels.dtype != np.uint8
                    name = _name(self.paths[index])
                    records.append((name, *state, end, *pixels.shape[:2], is_float))
                    end += pixels.nbytes
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
        """Return the size of a record's pixels, or of many records'."""
        values = records["height"].astype(np.int64) * records["width"] * self.reading.in_chans
        return values * np.where(records["is_float"], 4, 1)

    def _kept_state(self, index: int) -> tuple[int, int] | None:
        row = self._rows[index]
        if row < 0:
            return None
        record = self._records[row]
        return int(record["file_bytes"]), int(record["changed_ns"])

    def _stored(self, index: int) -> np.ndarray | None:
        """Return image `index` (height, width, channels) in the file, None when it has none."""
        kept = self._kept_state(index)
        if kept is None or kept != _state(self.paths[index]):
            return None
        if self._pixels is None:
            self._pixels = np.memmap(self._pixel_file, np.uint8, "r")
        record = self._records[self._rows[index]]
        start = int(record["offset"])
        pixels = self._pixels[start : start + int(self._num_bytes(record))]
        shape = (int(record["height"]), int(record["width"]), self.reading.in_chans)
        return pixels.view(np.float32 if record["is_float"] else np.uint8).reshape(shape)

    def _decode(self, index: int) -> Tensor:
        """Return image `index`, decoded and reduced, [in_chans, height, width]."""
        sizes: list[tuple[int, int]] = []

        def whole(height: int, width: int) -> Part:
            scale = min(1.0, self.side / min(height, width))
            sizes.append((math.ceil(height * scale), math.ceil(width * scale)))
            return Part(0, 0, height, width, sizes[0])

        image = decode_all(self.paths[index], self.reading, whole)
        return resize_image(image, sizes[0])


class _Reduced(Dataset[dict[str, Any]]):
    """The reduced images of a cache, for `make_loader`."""

    def __init__(self, cache: PixelCache) -> None:
        self.cache = cache

    def path_of(self, key: int) -> str:
        return self.cache.paths[key]

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = {"label": -1, "index": index, "path": self.cache.paths[index], "skipped": []}
        try:
            return {**sample, "image": self.cache._decode(index)}
        except UndecodableImageError:
            return {**sample, "image": torch.zeros(1), "is_usable": False}


def _commit(pixel_file: BinaryIO, index_file: BinaryIO, records: list[tuple[Any, ...]]) -> None:
    """Put pixels on disk, then their records, and forget these."""
    pixel_file.flush()
    os.fsync(pixel_file.fileno())
    index_file.write(np.array(records, RECORD).tobytes())
    index_file.flush()
    os.fsync(index_file.fileno())
    records.clear()


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
