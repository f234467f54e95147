"""Finds pictures that look alike: 64 bits of each find candidates, 256 decide.

Source: the difference hash of N. Krawetz (2013): is a cell brighter than its neighbour?
Deviation: 64 bits alone take objects of one build for copies; finer ones tell them apart. Held by
test_copies_are_found_and_pictures_of_one_build_are_told_apart.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fcmae.runs.terminal import progress_bar

SHORT, LONG = 8, 16  # cells per side of 64 and 256 bits
MOST_BITS = 3  # of 64 that differ between pictures taken for near duplicates
MOST_LONG_BITS = 16  # of 256
BANDS, BAND_BITS = 4, 16  # two of 64 bits that differ in 3 or fewer share one band at least
LARGEST_BUCKET = 200  # of different hashes with a band in common that are compared with each other
LEAST_BITS = 6  # set, and unset: a picture of one smooth ramp looks like all others


class Fingerprint(NamedTuple):
    """What stays of a picture that is compressed or scaled: 64 bits, and 256 finer ones."""

    short: int
    long: int


def fingerprint(values: np.ndarray) -> Fingerprint | None:
    """Return that of a picture [h, w, bands]; None for one that is too small or too plain."""
    if min(values.shape[:2]) <= LONG:
        return None
    grey = np.nan_to_num(values.astype(np.float32).mean(axis=2), posinf=0, neginf=0)
    short, long = _bits(grey, SHORT), _bits(grey, LONG)
    if not LEAST_BITS <= int(short.sum()) <= len(short) - LEAST_BITS:
        return None
    return Fingerprint(*(int.from_bytes(np.packbits(b).tobytes(), "big") for b in (short, long)))


def _bits(grey: np.ndarray, side: int) -> np.ndarray:
    """Return for side x side cells whether the next one to the right is brighter."""
    rows = np.linspace(0, grey.shape[0], side + 1).astype(int)
    columns = np.linspace(0, grey.shape[1], side + 2).astype(int)
    sums = np.add.reduceat(np.add.reduceat(grey, rows[:-1], axis=0), columns[:-1], axis=1)
    cells = sums / np.outer(np.diff(rows), np.diff(columns))
    return (cells[:, 1:] > cells[:, :-1]).ravel()


def near_duplicates(prints: Sequence[Fingerprint | None]) -> list[list[int]]:
    """Return groups of indices whose fingerprints differ in few bits, in chains.

    Two such hashes have one of four bands of 16 bits in common, so that only hashes with a common
    band are compared; of very many with the same band the first LARGEST_BUCKET.
    """
    members: defaultdict[Fingerprint, list[int]] = defaultdict(list)
    for index, value in enumerate(prints):
        if value is not None:
            members[value].append(index)
    parent = {value: value for value in members}

    def root(value: Fingerprint) -> Fingerprint:
        while parent[value] != value:
            parent[value] = value = parent[parent[value]]
        return value

    buckets: defaultdict[tuple[int, int], list[Fingerprint]] = defaultdict(list)
    for band in range(BANDS):
        for value in members:
            bits = value.short >> (band * BAND_BITS) & (1 << BAND_BITS) - 1
            buckets[band, bits].append(value)
    full = [bucket[:LARGEST_BUCKET] for bucket in buckets.values() if len(bucket) > 1]
    for some in progress_bar(full, unit="bucket", title="near duplicates", is_brief=True):
        for place, left in enumerate(some):
            for right in some[place + 1 :]:
                if _are_alike(left, right):
                    parent[root(left)] = root(right)
    groups: defaultdict[Fingerprint, list[int]] = defaultdict(list)
    for value, indices in members.items():
        groups[root(value)] += indices
    return [sorted(indices) for indices in groups.values() if len(indices) > 1]


def _are_alike(left: Fingerprint, right: Fingerprint) -> bool:
    if (left.short ^ right.short).bit_count() > MOST_BITS:
        return False
    return (left.long ^ right.long).bit_count() <= MOST_LONG_BITS
