"""Text files of paths, and what a user leaves out by patterns or by such files."""

import codecs
import fnmatch
import os
import re
from collections.abc import Sequence

import numpy as np

from fcmae.data.path_list import PathList
from fcmae.data.readers import SEPARATOR, split_item
from fcmae.errors import ConfigError

LIST_EXTENSION = ".txt"


def read_lines(path: str, where: str) -> list[bytes]:
    """Return the lines of a text file in UTF-8, or in any encoding that extends ASCII.

    Raises:
        ConfigError: it cannot be read, or is UTF-16.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise ConfigError(f"{where}: {path!r} cannot be read ({error.strerror}).") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ConfigError(
            f"{where}: {path!r} is encoded as UTF-16, expected UTF-8; save it again as UTF-8."
        )
    return content.removeprefix(codecs.BOM_UTF8).splitlines()


def kept_indices(paths: PathList, exclude: str | Sequence[str] | None) -> np.ndarray | None:
    """Return the indices of the paths that `exclude` leaves, None when it leaves all.

    Args:
        paths: all of them.
        exclude: patterns of whole paths such as */docs/* (* stands for anything, slashes too) and
            text files (.txt) with a path per line, relative to the file's folder or to the working
            directory; what stands behind a tab is a remark, as in skipped_files.txt. Who names a
            file means all images in it.

    Raises:
        ConfigError: a text file cannot be read, or what is given leaves out nothing.
    """
    given = [exclude] if isinstance(exclude, str) else list(exclude or ())
    if not given:
        return None
    patterns = [item for item in given if not item.endswith(LIST_EXTENSION)]
    left_out = np.zeros(len(paths), bool)
    if patterns:
        joined = "|".join(f"(?:{fnmatch.translate(pattern)})" for pattern in patterns)
        matches = re.compile(os.fsencode(joined), re.DOTALL).match
        left_out |= np.fromiter(
            (any(map(matches, _with_file(path))) for path in paths.raw()), bool, len(paths)
        )
    named: set[bytes] = set()
    for listing in given:
        if listing.endswith(LIST_EXTENSION):
            named |= _named(os.path.expanduser(listing))
    if named:
        here = os.fsencode(os.getcwd())

        def is_named(path: bytes) -> bool:
            absolute = (os.path.normpath(os.path.join(here, name)) for name in _with_file(path))
            return not named.isdisjoint(absolute)

        left_out |= np.fromiter(map(is_named, paths.raw()), bool, len(paths))
    if not left_out.any():
        raise ConfigError(
            f"data.exclude: {', '.join(given)} leaves out none of {len(paths)} images; expected "
            "patterns of whole paths such as '*/docs/*', or text files of paths."
        )
    return np.flatnonzero(~left_out)


def _with_file(path: bytes) -> tuple[bytes, ...]:
    """Return a path and, of one image of several in a file (FILE::ITEM), that of the file."""
    if SEPARATOR.encode() not in path:
        return (path,)
    file, item = split_item(os.fsdecode(path))
    return (path, os.fsencode(file)) if item else (path,)


def _named(listing: str) -> set[bytes]:
    """Return the absolute paths that the lines of a file may stand for."""
    folders = [os.fsencode(os.path.abspath(os.path.dirname(listing))), os.fsencode(os.getcwd())]
    lines = (line.split(b"\t")[0].strip() for line in read_lines(listing, "data.exclude"))
    return {
        os.path.normpath(os.path.join(folder, line))
        for line in lines
        if line and not line.startswith(b"#")
        for folder in folders
    }
