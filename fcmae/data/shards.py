"""Images in tar and zip files, read by offset: any of them at once, in any order.

An index of the members is made once and kept beside the shard, or in a cache folder where the
shard's cannot be written. It is mapped into memory, so that all readers share one copy.
"""

import functools
import hashlib
import io
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fcmae.data.accounting import Problem
from fcmae.data.kinds import SHARD_EXTENSIONS, extension_of
from fcmae.data.path_list import PathList
from fcmae.data.shard_scan import Contents, DamagedShardError, Member, content_of, key_of, scan
from fcmae.runs.durable import write_atomically

INDEX_SUFFIX = ".fcmae-index"
MAGIC = b"FCMAE shard index 1\n"
SEPARATOR = "::"  # between a shard and a member of it
OPEN_SHARDS = 64  # per reader
WHERE_TYPE = np.dtype([("offset", "<i8"), ("size", "<i8"), ("label", "<i4"), ("method", "u1")])


@dataclass(frozen=True)
class ShardIndex:
    """What is in a shard and where.

    Attributes:
        path: of the shard.
        names: of its images, sorted by bytes.
        where: [N] of WHERE_TYPE; label is a place in `labels`, -1 without one.
        labels: the texts of .cls and .json members; None when there are none.
        state: size and time (ns) of the shard when the index was made.
        no_images, problems, repeated: of all other members.
    """

    path: str
    names: PathList
    where: np.ndarray
    labels: tuple[str, ...] | None
    state: tuple[int, int]
    no_images: Counter[str]
    problems: tuple[Problem, ...]
    repeated: int

    def find(self, name: str) -> Member | None:
        """Return the member of that name, None if there is none."""
        wanted = name.encode("utf-8", "surrogateescape")
        low, high = 0, len(self.names)
        while low < high:
            middle = (low + high) // 2
            if self.names.raw_at(middle) < wanted:
                low = middle + 1
            else:
                high = middle
        if low == len(self.names) or self.names.raw_at(low) != wanted:
            return None
        row = self.where[low]
        return Member(name, int(row["offset"]), int(row["size"]), int(row["method"]))


def is_shard(path: str) -> bool:
    """Whether a file's name is that of a shard."""
    return extension_of(path) in SHARD_EXTENSIONS


def split_member(path: str) -> tuple[str, str] | None:
    """Return (shard, member) of SHARD::MEMBER, None for any other path."""
    shard, separator, member = path.partition(SEPARATOR)
    if not separator or not is_shard(shard) or os.path.lexists(path):
        return None
    return shard, member


def open_member(shard: str, name: str) -> io.BytesIO:
    """Return the content of a member of a shard as a file in memory.

    Raises:
        DamagedShardError: the shard changed, or is damaged, or has no such member.
        OSError: it cannot be read.
    """
    index, descriptor = _opened(shard, os.getpid())
    status = os.stat(shard)
    if (status.st_size, status.st_mtime_ns) != index.state:
        raise DamagedShardError("the shard has changed since the run began; start it again")
    member = index.find(name)
    if member is None:
        raise DamagedShardError("the shard has no such member (any more)")
    return io.BytesIO(content_of(member, descriptor.number))


def has_member(shard: str, name: str) -> bool:
    """Whether there is a shard with an image of that name."""
    try:
        return _opened(shard, os.getpid())[0].find(name) is not None
    except (OSError, DamagedShardError):
        return False


class _Descriptor:
    """An open file that is closed when nobody needs it any more."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self.number)


@functools.lru_cache(maxsize=OPEN_SHARDS)
def _opened(shard: str, process: int) -> tuple[ShardIndex, _Descriptor]:
    del process  # a forked reader opens its own
    return open_shard(shard), _Descriptor(shard)


def open_shard(path: str) -> ShardIndex:
    """Return the index of a shard; make it, and keep it, where there is none of today's shard.

    Raises:
        DamagedShardError: truncated, damaged, or compressed as a whole.
        OSError: the shard cannot be read.
    """
    kept = kept_index(path)
    return make_index(path) if kept is None else kept


def kept_index(path: str) -> ShardIndex | None:
    """Return the index that is kept of a shard; None if there is none, or one of another state."""
    status = os.stat(path)
    for file in _index_files(path):
        try:
            index = _load(path, file)
        except (OSError, ValueError, KeyError):
            continue  # none there, or damaged: it is made anew
        if index.state == (status.st_size, status.st_mtime_ns):
            return index
    return None


def make_index(path: str) -> ShardIndex:
    """Read the headers of a shard, keep the index where that can be done, and return it.

    Raises:
        As `open_shard`.
    """
    status = os.stat(path)
    content = _to_bytes(scan(path), (status.st_size, status.st_mtime_ns))
    for file in _index_files(path):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, lambda partial: partial.write_bytes(content))
            return _load(path, file)
        except OSError:
            continue
    return _parse(path, np.frombuffer(content, np.uint8))


def _index_files(path: str) -> Iterator[Path]:
    """Yield where the index of a shard may lie: beside it, then in cache folders."""
    yield Path(path + INDEX_SUFFIX)
    name = hashlib.blake2b(os.fsencode(os.path.realpath(path)), digest_size=16).hexdigest()
    caches = [os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")]
    caches.append(os.path.join(tempfile.gettempdir(), f"cache-{os.getuid()}"))
    for cache in caches:
        if os.path.isabs(cache):
            yield Path(cache) / "fcmae" / (name + INDEX_SUFFIX)


def _to_bytes(contents: Contents, state: tuple[int, int]) -> bytes:
    labels = sorted(set(contents.labels.values()))
    number = {text: place for place, text in enumerate(labels)}
    where = np.zeros(len(contents.images), WHERE_TYPE)
    for row, member in enumerate(contents.images):
        label = contents.labels.get(key_of(member.name))
        where[row] = member.offset, member.size, number.get(label or "", -1), member.method
    blob, starts = PathList(member.name for member in contents.images).arrays()
    header: dict[str, Any] = {
        "state": state,
        "images": len(contents.images),
        "name_bytes": len(blob),
        "labels": labels or None,
        "no_images": contents.no_images,
        "problems": contents.problems,
        "repeated": contents.repeated,
    }
    text = json.dumps(header).encode("ascii")
    parts = [MAGIC, len(text).to_bytes(8, "little"), text]
    parts.append(b"\0" * (-sum(map(len, parts)) % 8))  # numbers begin at multiples of 8
    return b"".join([*parts, starts.astype("<i8").tobytes(), where.tobytes(), blob.tobytes()])


def _load(path: str, file: Path) -> ShardIndex:
    return _parse(path, np.memmap(file, np.uint8, "r"))


def _parse(path: str, content: np.ndarray) -> ShardIndex:
    begin = len(MAGIC) + 8
    if content[: len(MAGIC)].tobytes() != MAGIC:
        raise ValueError("no index of a shard")
    end = begin + int.from_bytes(content[len(MAGIC) : begin].tobytes(), "little")
    header = json.loads(content[begin:end].tobytes())
    end += -end % 8
    count, name_bytes = header["images"], header["name_bytes"]
    sizes = (8 * (count + 1), WHERE_TYPE.itemsize * count, name_bytes)
    if len(content) != end + sum(sizes):
        raise ValueError("the index is not complete")
    starts = content[end : end + sizes[0]].view("<i8")
    where = content[end + sizes[0] : end + sizes[0] + sizes[1]].view(WHERE_TYPE)
    labels = header["labels"]
    return ShardIndex(
        path,
        PathList.of_bytes(content[end + sizes[0] + sizes[1] :], starts),
        where,
        None if labels is None else tuple(labels),
        tuple(header["state"]),
        Counter(header["no_images"]),
        tuple((name, reason) for name, reason in header["problems"]),
        header["repeated"],
    )
