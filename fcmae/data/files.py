"""Find images in folders, lists of paths, tables of labels and shards; nothing is decoded here."""

import array
import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from fcmae.data.accounting import Accounting, Problem, kinds_sentence
from fcmae.data.class_folders import Tree, read_tree
from fcmae.data.image_list import ImageList
from fcmae.data.kinds import PICTURE_EXTENSIONS, SHARD_EXTENSIONS, extension_of, is_picture
from fcmae.data.label_table import TABLE_EXTENSION, read_label_table
from fcmae.data.listing import LIST_EXTENSION, kept_indices, read_lines
from fcmae.data.path_list import Labels, PathList
from fcmae.data.patterns import expand
from fcmae.data.readers import EVERYTHING, Wanted, is_saved_dataset, is_store, split_item
from fcmae.data.saved_labels import read_saved
from fcmae.data.shard_sets import images_of_shards, member_paths, open_shards
from fcmae.data.shards import is_shard
from fcmae.data.stacks import spread
from fcmae.data.walking import Visited, walk, why_no_file
from fcmae.errors import ConfigError

__all__ = ["PICTURE_EXTENSIONS", "ImageList", "Problem", "find_images"]

ALONE = "is one file; labels come from class folders, or from a CSV"
_PATTERN = re.compile(r"[*?\[{]")  # where a pattern begins
SEVERAL = "is several paths; labels come from the class folders of one folder, or from a CSV"


def find_images(
    paths: str | Sequence[str],
    where: str = "data.path",
    exclude: str | Sequence[str] | None = None,
    wanted: Wanted = EVERYTHING,
) -> ImageList:
    """Return every image under `paths`: folders (searched to any depth), image files, text files.

    A text file (.txt) names one image or folder per line, relative to its own folder; empty lines
    and lines that begin with '#' are skipped. A table (.csv) has the columns path and label.
    Images of a folder are sorted by the bytes of their path; paths and lines keep their order; an
    image found twice counts once. Patterns ({000..099}, {a,b}, *) stand for several paths. Images
    of shards (.tar, .zip) are named SHARD::MEMBER, and those of several shards are sorted by
    MEMBER. Names that begin with a dot are skipped. Links are followed, each folder is entered
    once, so loops end. A file is an image by its suffix, or, where the suffix is missing or says
    nothing, by its first bytes; a folder that is a Zarr store or a data set saved by Hugging Face
    is one file. `accounting` has every other file. A file with several images stands for all of
    them, FILE::NUMBER, see `stacks.spread`.

    Images have labels when `paths` is one folder with one folder per class, as `read_tree` says,
    one table, or shards with labels or such folders in them.

    Args:
        paths: what the user wrote.
        where: the setting or argument it was written in, for messages.
        exclude: patterns of paths, and text files that name images, to leave out.
        wanted: how the images will be read, which decides what the shape of an array means.

    Raises:
        ConfigError: a path does not exist or is of no known kind, or no image was found.
    """
    written = [paths] if isinstance(paths, str) else paths
    given = [path for pattern in written for path in expand(pattern, where)]
    if not given:
        raise ConfigError(f"{where}: no path was given; name a folder with images.")
    accounting = Accounting()
    roots = written_roots(written)
    if all(is_shard(path) and os.path.isfile(path) for path in given):
        indices = open_shards(given, where, accounting)
        images = dataclasses.replace(images_of_shards(indices, accounting), roots=roots)
        return _without(images, given, where, exclude)
    if len(given) == 1 and extension_of(given[0]) == TABLE_EXTENSION and os.path.isfile(given[0]):
        table = _of_table(given[0], where, exclude, wanted, accounting)
        return dataclasses.replace(table, roots=roots)
    visited: Visited = set()
    root = given[0] if len(given) == 1 and os.path.isdir(given[0]) else None
    saved = None
    if root is not None and is_store(root):
        saved = read_saved(root, where) if is_saved_dataset(root) else None
        root = None
    found = _collect(
        item for path in given for item in _images_at(path, where, visited, accounting)
    )
    if root is None and (first := _first_of_each(found, accounting)) is not None:
        found = found.select(first)
    several = spread(found, wanted, accounting)
    if several is not None and root is None:  # a file and one of its images, both named
        first = _first_of_each(several.paths, accounting)
        several = several if first is None else several.select(first)
    paths = found if several is None else several.paths
    kept = kept_indices(paths, exclude) if len(paths) else None
    if kept is not None:
        accounting.excluded += len(paths) - len(kept)
        paths = paths.select(kept)
    if not paths:
        raise ConfigError(_nothing_found(given, where, accounting))
    accounting.num_images = len(paths)
    if saved is not None:
        tree = saved if kept is None else saved.select(kept)
    elif root is None:
        tree = Tree(why_unlabelled=SEVERAL if len(given) > 1 else ALONE)
    elif several is None:
        tree = read_tree(root, paths)
    else:  # folders are those of files; what is named in a file may hold slashes, too
        file_of = several.file_of if kept is None else several.file_of[kept]
        files, again = np.unique(file_of, return_inverse=True)
        tree = read_tree(root, found.select(files)).select(again)
    return ImageList(
        paths,
        tree.labels,
        tree.classes,
        root,
        accounting.told(),
        accounting,
        tree.parts,
        tree.part_of,
        tree.why_unlabelled,
        roots,
    )


def written_roots(written: str | Sequence[str]) -> tuple[str, ...]:
    """Return a folder for each path of the user: itself, or that of a file, list or pattern.

    What does not exist any more is a folder unless its name has the form of a file or pattern.
    """
    roots = []
    for path in [written] if isinstance(written, str) else written:
        path = os.path.expanduser(path)
        start = _PATTERN.search(path)
        if start is not None and not os.path.lexists(path):
            roots.append(os.path.dirname(path[: start.start()]))
        elif not is_store(path) and (os.path.isdir(path) or not os.path.splitext(path)[1]):
            roots.append(path)
        else:
            roots.append(os.path.dirname(path))
    return tuple(roots)


def _images_at(path: str, where: str, visited: Visited, accounting: Accounting) -> Iterator[bytes]:
    """Yield the images that one path of the user stands for."""
    if os.path.isdir(path):
        yield from walk(path, visited, accounting)
    elif not os.path.lexists(path):
        raise ConfigError(
            f"{where}: {path!r} does not exist (looked for it from {os.getcwd()}); "
            "name a folder with images, an image, a text file of paths, or shards."
        )
    elif is_shard(path):
        yield from member_paths(open_shards([path], where, accounting))
    elif extension_of(path) == LIST_EXTENSION:
        yield from _listed(path, where, visited, accounting)
    elif os.path.isfile(path) and _is_picture(path):
        yield os.fsencode(path)
    else:
        raise ConfigError(
            f"{where}: {path!r} is neither a folder, an image "
            f"({' '.join(PICTURE_EXTENSIONS)}) nor a text file of paths ({LIST_EXTENSION})."
        )


def _is_picture(path: str) -> bool:
    try:
        return is_picture(path)
    except OSError:
        return False


def _listed(
    list_path: str, where: str, visited: Visited, accounting: Accounting
) -> Iterator[bytes]:
    """Yield the images that a text file names, in its order."""
    folder = os.path.dirname(list_path)
    for number, line in enumerate(read_lines(list_path, where), start=1):
        name = os.fsdecode(line.strip())
        if not name or name.startswith("#"):
            continue
        path = os.path.join(folder, name)
        file, item = split_item(path)
        if is_store(file) or (item and os.path.isfile(file)):  # an image of several: FILE::ITEM
            yield os.fsencode(path)
        elif os.path.isdir(path):
            yield from walk(path, visited, accounting)
        elif is_shard(path) and os.path.isfile(path):
            yield from member_paths(open_shards([path], where, accounting))
        elif os.path.isfile(path):  # whatever its extension: its name was written on purpose
            yield os.fsencode(path)
        else:
            reason = f"{why_no_file(path)} (line {number} of {list_path})"
            accounting.problems.append((path, reason))


def _collect(found: Iterable[bytes]) -> PathList:
    blob, starts = bytearray(), array.array("q", [0])
    for path in found:
        blob += path
        starts.append(len(blob))
    return PathList.of_bytes(blob, starts)


def _first_of_each(paths: PathList, accounting: Accounting) -> np.ndarray | None:
    """Return the indices of the paths without those named before; None where each is new."""
    keys = np.fromiter(map(hash, paths.raw()), np.int64, len(paths))
    if len(np.unique(keys)) == len(keys):
        return None
    seen: set[bytes] = set()
    kept = [
        index
        for index, path in enumerate(paths.raw())
        if not (path in seen or seen.add(path))  # type: ignore[func-returns-value]
    ]
    accounting.repeated += len(paths) - len(kept)
    return np.array(kept, np.int64)


def _of_table(
    path: str,
    where: str,
    exclude: str | Sequence[str] | None,
    wanted: Wanted,
    accounting: Accounting,
) -> ImageList:
    """Return the images of a table of paths and labels; those of one file share its label."""
    table = read_label_table(path, where, accounting)
    several = spread(table.paths, wanted, accounting)
    labels = table.labels
    if several is not None and labels is not None:
        labels = Labels(labels.array[several.file_of])
    images = ImageList(
        table.paths if several is None else several.paths,
        labels,
        table.classes,
        None,
        accounting.told(),
        accounting,
        why_unlabelled=table.why_unlabelled,
    )
    return _without(images, [path], where, exclude)


def _without(
    images: ImageList, given: list[str], where: str, exclude: str | Sequence[str] | None
) -> ImageList:
    """Return the images without those that are left out, counted; raise if none is left."""
    assert isinstance(images.paths, PathList)
    accounting = images.accounting
    assert accounting is not None
    kept = kept_indices(images.paths, exclude) if len(images) else None
    if kept is not None:
        accounting.excluded += len(images) - len(kept)
        images = images.select(kept)
    if not len(images):
        raise ConfigError(_nothing_found(given, where, accounting))
    accounting.num_images = len(images)
    return images


def _nothing_found(given: list[str], where: str, accounting: Accounting) -> str:
    message = (
        f"{where}: no images in {', '.join(map(repr, given))}; files with these extensions are "
        f"recognised: {' '.join(PICTURE_EXTENSIONS)}, and those that begin like one."
    )
    if problems := accounting.told():
        path, reason = problems[0]
        message += f" {len(problems)} could not be read, the first is {path!r}: {reason}."
    if accounting.no_images:
        message += f" Files found there: {kinds_sentence(accounting.no_images)}."
    if any(accounting.no_images[extension] for extension in SHARD_EXTENSIONS):
        message += (
            " Shards are named themselves, such as 'FOLDER/{000..099}.tar' or 'FOLDER/*.zip'."
        )
    if accounting.excluded:
        message += f" data.exclude left {accounting.excluded} out."
    return message
