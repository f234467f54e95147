"""The labels and parts of a data set that Hugging Face's `datasets` saved on disk."""

import numpy as np

from fcmae.data.class_folders import PART_NAMES, Part, Tree
from fcmae.data.label_table import ordered_classes
from fcmae.data.path_list import Labels
from fcmae.data.readers import UnreadableError, open_dataset
from fcmae.errors import ConfigError


def read_saved(folder: str, where: str) -> Tree:
    """Return classes and parts of the rows of all splits, in the order of the reader's items.

    Splits named train, validation, test, ... are parts of the set, as folders of these names are.
    Classes are sorted as everywhere, whatever their numbers in the data set.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        splits = open_dataset(folder)
    except (UnreadableError, OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{where}: {folder!r} {error}.") from error
    parts: dict[Part, str] = {}
    for rows in splits:
        if rows.name.lower() in PART_NAMES:
            parts.setdefault(PART_NAMES[rows.name.lower()], rows.name)
    parts = {part: parts[part] for part in ("train", "validation", "test") if part in parts}
    order = list(parts.values())
    part_of = np.concatenate(
        [
            np.full(len(rows.images), order.index(rows.name) if rows.name in order else -1, np.int8)
            for rows in splits
        ]
    )
    cut = Tree(parts=parts, part_of=part_of if parts else None)
    classes = ordered_classes(name for rows in splits for name in rows.classes)
    if len(classes) < 2:
        why = "has no column of class labels" if not classes else "has one class alone"
        return Tree(parts=cut.parts, part_of=cut.part_of, why_unlabelled=why)
    place = {name: number for number, name in enumerate(classes)}
    numbers = []
    for rows in splits:
        table = np.array([*(place[name] for name in rows.classes), -1], np.int32)
        none = np.full(len(rows.images), -1)
        numbers.append(table[none if rows.labels is None else rows.labels])
    return Tree(classes, Labels(np.concatenate(numbers)), cut.parts, cut.part_of)
