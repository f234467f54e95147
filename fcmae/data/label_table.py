"""Labels from a table: a CSV with the columns path and label."""

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fcmae.data.accounting import Accounting
from fcmae.data.listing import read_lines
from fcmae.data.path_list import Labels, PathList
from fcmae.data.readers import is_store, split_item
from fcmae.data.walking import why_no_file
from fcmae.errors import ConfigError

TABLE_EXTENSION = ".csv"
PATH, LABEL = "path", "label"


@dataclass(frozen=True)
class LabelTable:
    """Images with the labels of a table; see ImageList."""

    paths: PathList
    labels: Labels | None
    classes: tuple[str, ...] | None
    why_unlabelled: str = ""


def read_label_table(path: str, where: str, accounting: Accounting) -> LabelTable:
    """Return the images that a table names, in its order.

    The first line names the columns: `path` (relative to the folder of the table) and `label` (the
    name of the class; empty for an image without one), in any order, others beside them. A file
    named twice counts once.

    Raises:
        ConfigError: it cannot be read, a column or a field is missing, or a file has two labels.
    """
    lines = [os.fsdecode(line) for line in read_lines(path, where)]
    rows = csv.reader(lines)
    header = [name.strip().lower() for name in next(rows, [])]
    if PATH not in header or LABEL not in header:
        raise ConfigError(
            f"{where}: {path!r} begins with {','.join(header)[:80]!r}, expected a first line that "
            "names the columns: path,label."
        )
    columns = header.index(PATH), header.index(LABEL)
    folder = os.path.dirname(path)
    found: dict[str, str] = {}
    for row in rows:
        if not row:
            continue
        if len(row) <= max(columns):
            raise ConfigError(
                f"{where}: {path!r} has {len(row)} fields in line {rows.line_num}, expected "
                f"{len(header)} as in its first line."
            )
        name, label = (row[column].strip() for column in columns)
        file = os.path.join(folder, name)
        if not (os.path.isfile(file) or is_store(file) or os.path.isfile(split_item(file)[0])):
            reason = f"{why_no_file(file)} (line {rows.line_num} of {path})"
            accounting.problems.append((file, reason))
        elif found.setdefault(file, label) != label:
            raise ConfigError(
                f"{where}: {path!r} gives {name!r} two labels, {found[file]!r} and {label!r}; "
                "remove one of the lines."
            )
        else:
            accounting.num_images += 1
    accounting.repeated += accounting.num_images - len(found)
    classes = ordered_classes(found.values())
    if len(classes) < 2:
        why = f"has {len(classes)} label{'s' * (len(classes) != 1)} in its column; two are needed"
        return LabelTable(PathList(found), None, None, why)
    number = {name: index for index, name in enumerate(classes)}
    labels = np.fromiter((number.get(label, -1) for label in found.values()), np.int32, len(found))
    return LabelTable(PathList(found), Labels(labels), classes)


def ordered_classes(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the names of classes, whole numbers by size, others by their bytes; no empty one."""
    names = set(labels) - {""}
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names, key=os.fsencode))
