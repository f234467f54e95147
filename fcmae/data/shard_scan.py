"""What lies in a tar or zip file and where: one pass over its headers, no pixel is read."""

import collections
import json
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from fcmae.data.accounting import Problem
from fcmae.data.kinds import (
    HEAD_BYTES,
    HIDDEN,
    OTHER_EXTENSIONS,
    PICTURE_EXTENSIONS,
    begins_like_a_picture,
    extension_of,
    kind_of,
)

RAW, STORED, DEFLATED = 255, 0, 8  # in a tar; zip's numbers
LABEL_KEYS = ("label", "cls", "class", "class_name", "target")  # of a .json member
LARGEST_LABEL_BYTES = 1 << 20
BLOCK_BYTES = 512  # of a tar
CHUNK_BYTES = 1 << 20


class DamagedShardError(Exception):
    """Why an archive cannot be used, as the end of a sentence that begins with its name."""


@dataclass(frozen=True)
class Member:
    """A file in a shard.

    Attributes:
        name: its path in the shard.
        offset: of its content in a tar, of its local header in a zip.
        size: bytes that it takes in the shard.
        method: how it is kept: RAW in a tar, STORED or DEFLATED in a zip.
    """

    name: str
    offset: int
    size: int
    method: int = RAW


@dataclass
class Contents:
    """The images of a shard and the count of everything else.

    Attributes:
        images: sorted by the bytes of their names; of two of one name the last.
        labels: {key of a member: label}, of its .cls and .json members; see `key_of`.
        no_images: {kind: count} of other members.
        problems: (member, reason) of those that cannot be read.
        repeated: members whose name a later one has.
    """

    images: list[Member] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    no_images: collections.Counter[str] = field(default_factory=collections.Counter)
    problems: list[Problem] = field(default_factory=list)
    repeated: int = 0


def scan(path: str) -> Contents:
    """Return what a tar or zip file holds.

    Raises:
        DamagedShardError: it is neither, compressed as a whole, truncated, or damaged.
        OSError: it cannot be read.
    """
    contents = Contents()
    images: dict[str, Member] = {}
    with open(path, "rb") as file:
        is_zip = extension_of(path) == ".zip"
        members = _zip_members(file, contents) if is_zip else _tar_members(file, contents)
        for member in members:
            _sort_in(member, file, images, contents)
    contents.images = sorted(images.values(), key=lambda member: _raw(member.name))
    return contents


def key_of(name: str) -> str:
    """Return what members of one sample share: the path up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _raw(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _sort_in(member: Member, file: BinaryIO, images: dict[str, Member], contents: Contents) -> None:
    name, extension = member.name, extension_of(member.name)
    if any(part.startswith(".") and part not in (".", "..") for part in name.split("/")):
        contents.no_images[HIDDEN] += 1
        return
    if extension in (".cls", ".json"):
        label = _label(content_of(member, file.fileno()), extension)
        if label is not None:
            contents.labels.setdefault(key_of(name), label)
    elif extension in PICTURE_EXTENSIONS or (
        extension not in OTHER_EXTENSIONS
        and begins_like_a_picture(content_of(member, file.fileno(), HEAD_BYTES))
    ):
        contents.repeated += name in images
        images[name] = member
        return
    contents.no_images[kind_of(name)] += 1


def _label(content: bytes, extension: str) -> str | None:
    text = content[:LARGEST_LABEL_BYTES].decode("utf-8", "replace").strip()
    if extension == ".cls":
        return text or None
    try:
        read = json.loads(text)
    except ValueError:
        return None
    if not isinstance(read, dict):
        return None
    value = next((read[key] for key in LABEL_KEYS if key in read), None)
    is_label = isinstance(value, (str, int)) and not isinstance(value, bool)
    return str(value).strip() if is_label else None


def _tar_members(file: BinaryIO, contents: Contents) -> Iterator[Member]:
    """Yield the regular files of a tar."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    mark, last = 0, ""
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                archive.members = []  # type: ignore[attr-defined]  # else all stay in memory
                mark, last = archive.offset, info.name
                if info.isreg() and not info.issparse() and info.offset_data + info.size > size:
                    raise DamagedShardError(f"is truncated: {info.name!r} is not complete")
                if info.isreg() and not info.issparse():
                    yield Member(info.name.removeprefix("./"), info.offset_data, info.size)
                elif not info.isdir():
                    contents.problems.append((info.name, "is a link or no regular file"))
    except tarfile.TarError as error:
        file.seek(0)
        if file.read(3) in (b"\x1f\x8b\x08", b"BZh", b"\xfd7z"):
            raise DamagedShardError(
                "is compressed as a whole, so that nothing in it can be reached by itself; "
                "unpack it, or pack it again without compression (pictures have their own)"
            ) from error
        raise DamagedShardError(f"is damaged or truncated ({error})") from error
    if size < mark + BLOCK_BYTES:
        raise DamagedShardError("is truncated: the mark at its end is missing")
    _check_end(file, mark, last)


def _check_end(file: BinaryIO, mark: int, last: str) -> None:
    """Find out whether zeros alone lie behind the last member, `last`, where tarfile has stopped.

    Raises:
        DamagedShardError: more lies there, which nobody would miss.
    """
    file.seek(mark)
    if file.read(BLOCK_BYTES).count(0) < BLOCK_BYTES:
        raise DamagedShardError(f"is damaged: behind {last!r} there is no header of a member")
    while rest := file.read(CHUNK_BYTES):
        if rest.count(0) < len(rest):
            raise DamagedShardError(
                "holds several archives, of which the first alone can be reached; join them by "
                "tar --concatenate, not by cat"
            )


def _zip_members(file: BinaryIO, contents: Contents) -> Iterator[Member]:
    """Yield the files of a zip that can be read by themselves; note the others."""
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            file.seek(0)
            begins_with_member = file.read(4) == b"PK\x03\x04"
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise DamagedShardError(f"is damaged or truncated ({error})") from error
    if begins_with_member and min((info.header_offset for info in infos), default=0) > 0:
        raise DamagedShardError(
            "holds several archives, of which the last alone can be reached; pack them as one"
        )
    for info in infos:
        if info.is_dir():
            continue
        if info.flag_bits & 1:
            contents.problems.append((info.filename, "is encrypted"))
        elif info.compress_type not in (STORED, DEFLATED):
            reason = f"is compressed by method {info.compress_type}, not deflate"
            contents.problems.append((info.filename, reason))
        else:
            yield Member(info.filename, info.header_offset, info.compress_size, info.compress_type)


def content_of(member: Member, descriptor: int, most: int | None = None) -> bytes:
    """Return the content of a member, or its first `most` bytes.

    Raises:
        DamagedShardError: it is not all there, or cannot be decompressed.
        OSError: the file cannot be read.
    """
    offset = member.offset
    if member.method != RAW:  # behind a header of its own, whose names have any length
        header = os.pread(descriptor, 30, offset)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise DamagedShardError(f"has no member {member.name!r} where its table says")
        name_length, extra_length = struct.unpack_from("<HH", header, 26)
        offset += 30 + name_length + extra_length
    is_deflated = member.method == DEFLATED
    wanted = member.size if most is None or is_deflated else min(most, member.size)
    content = os.pread(descriptor, wanted, offset)
    while len(content) < wanted and (
        more := os.pread(descriptor, wanted - len(content), offset + len(content))
    ):
        content += more
    if len(content) < wanted:
        raise DamagedShardError(f"is truncated: {member.name!r} is not complete")
    if not is_deflated:
        return content
    try:
        return zlib.decompressobj(-15).decompress(content, most or 0)
    except zlib.error as error:
        raise DamagedShardError(f"is damaged at {member.name!r} ({error})") from error
