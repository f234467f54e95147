"""Looks at every file of a set: headers of all, pixels of a sample, on all cores."""

import concurrent.futures
import contextlib
import hashlib
import math
import multiprocessing
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np
import torch

from fcmae.data.decoding import UndecodableImageError, describe_image, read_pixels
from fcmae.data.parts import Part
from fcmae.data.perceptual_hash import Fingerprint, fingerprint
from fcmae.data.readers import Description, Pixels, split_item
from fcmae.errors import DataError
from fcmae.runs.terminal import progress_bar

GRID_PX = 64  # of the pixels that are kept of a picture, about as many in each direction
DECODED_PX = 256  # the shorter side that a picture may be reduced to where it costs nothing
LARGEST_PX = 4096  # per side that are decoded of a huge picture, from its middle
FILES_AT_A_TIME = 32


@dataclass(frozen=True)
class Look:
    """What was seen of one file.

    Attributes:
        path: of the file.
        num_bytes: of the file, of which it may hold one of many images.
        about: its header; None where that cannot be read.
        reason: why it cannot be used; "" where nothing speaks against it.
        pixels: some of its pixels in the file's own values, [h, w, bands]; None if not sampled.
        valid_share: of the decoded pixels, those that have content.
        is_constant: all its decoded pixels have the same value.
        fingerprint: what pictures that look alike share but for a few bits; None if unknown.
    """

    path: str
    num_bytes: int
    about: Description | None
    reason: str = ""
    pixels: Pixels | None = None
    valid_share: float = 1.0
    is_constant: bool = False
    fingerprint: Fingerprint | None = None


def survey(paths: Sequence[str], *, sampled: Iterable[int], workers: int) -> list[Look]:
    """Return a look at each path, in order, with pixels of those whose index is `sampled`.

    Args:
        paths: files, or what is named in them.
        sampled: indices of those to decode.
        workers: processes; 0 looks in this one.

    Raises:
        DataError: a process died, as on a file that crashes a library.
    """
    chosen = set(sampled)
    jobs = [
        [(paths[i], i in chosen) for i in range(first, min(first + FILES_AT_A_TIME, len(paths)))]
        for first in range(0, len(paths), FILES_AT_A_TIME)
    ]
    looks: list[Look] = []
    with progress_bar(range(len(paths)), unit="file", total=len(paths), title="inspect") as bar:
        for part in _worked_on(jobs, min(workers, len(jobs))):
            looks += part
            bar.update(len(part))
    return looks


def _worked_on(jobs: list[list[tuple[str, bool]]], workers: int) -> Iterator[list[Look]]:
    if workers <= 1:
        yield from map(_look_at_all, jobs)
        return
    method = "fork" if sys.platform == "linux" else None  # as the readers of a training
    pool = concurrent.futures.ProcessPoolExecutor(
        workers,
        multiprocessing.get_context(method),
        initializer=torch.set_num_threads,
        initargs=(1,),
    )
    try:
        with pool:
            yield from pool.map(_look_at_all, jobs)
    except BrokenProcessPool as error:
        raise DataError(
            "a process that looked at files died, perhaps of a damaged file or of too little "
            "memory; --workers 0 shows where."
        ) from error


def _look_at_all(job: list[tuple[str, bool]]) -> list[Look]:
    return [look_at(path, with_pixels=with_pixels) for path, with_pixels in job]


def look_at(path: str, *, with_pixels: bool) -> Look:
    """Return what can be seen of one file, whatever is wrong with it."""
    try:
        num_bytes = os.stat(split_item(path)[0]).st_size
    except OSError as error:
        return Look(path, 0, None, f"cannot be read ({error.strerror})")
    try:
        about = describe_image(path)
    except UndecodableImageError as error:
        return Look(path, num_bytes, None, error.reason)
    if not with_pixels:
        return Look(path, num_bytes, about)
    try:
        pixels = read_pixels(path, _middle)
    except UndecodableImageError as error:
        return Look(path, num_bytes, about, error.reason)
    values, valid, _ = pixels
    known = values if valid is None else values[valid]
    is_constant = not known.size or bool((known.min(axis=0) == known.max(axis=0)).all())
    step = max(1, math.ceil(max(values.shape[:2]) / GRID_PX))
    kept = Pixels(
        np.array(values[::step, ::step]),
        None if valid is None else np.array(valid[::step, ::step]),
        pixels.about,
    )
    return Look(
        path,
        num_bytes,
        about,
        pixels=kept,
        valid_share=1.0 if valid is None else float(valid.mean()),
        is_constant=is_constant,
        fingerprint=None if is_constant else fingerprint(values),
    )


def _middle(height: int, width: int) -> Part:
    """Return the whole picture, or the middle of a huge one, reduced where that is free."""
    rows, columns = min(height, LARGEST_PX), min(width, LARGEST_PX)
    scale = min(1.0, DECODED_PX / min(rows, columns))
    to = math.ceil(rows * scale), math.ceil(columns * scale)
    return Part((height - rows) // 2, (width - columns) // 2, rows, columns, to)


def equal_files(paths: Sequence[str]) -> list[list[str]]:
    """Return groups of files of the same content; only files of one size are compared.

    One image of several in a file, and a file that cannot be read, are equal to none.
    """
    by_size: defaultdict[int, list[str]] = defaultdict(list)
    for path in paths:
        if split_item(path)[1] == "":
            with contextlib.suppress(OSError):
                by_size[os.stat(path).st_size].append(path)
    by_content: defaultdict[bytes, list[str]] = defaultdict(list)
    candidates = [p for size, alike in by_size.items() if len(alike) > 1 and size for p in alike]
    for path in progress_bar(candidates, unit="file", title="comparing files", is_brief=True):
        by_content[_digest(path)].append(path)
    return [alike for alike in by_content.values() if len(alike) > 1]


def _digest(path: str) -> bytes:
    try:
        digest = hashlib.blake2b()
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.digest()
    except OSError:
        return os.urandom(64)  # equal to none
