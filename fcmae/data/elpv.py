"""Reader of the quickstart's pictures: 2,624 photographs of solar cells, 300 x 300 px, grey.

They come with the PyPI package `elpv-dataset` under CC BY-NC-SA 4.0 (share alike, not for
commercial use) and are read where the package put them, never copied.
"""

import importlib.util
import os

from fcmae.data.accounting import Accounting
from fcmae.data.image_list import ImageList
from fcmae.errors import ConfigError, DataError

# data.label -> class names; a probability of defect above 0.5 counts as defective.
CLASSES = {"type": ("mono", "poly"), "defect": ("functional", "defective")}


def open_elpv(label: str | None = None) -> ImageList:
    """Return the photographs with the label asked for: "type" (None means it) or "defect".

    Raises:
        ConfigError: unknown label, or the package is not installed.
        DataError: the package has no readable table of labels.
    """
    label = "type" if label is None else label
    if label not in CLASSES:
        raise ConfigError(
            f"data.label: {label!r} is not known for data.path elpv; use {' or '.join(CLASSES)}."
        )
    # Importing the package would load its own image stack; the table needs none of it.
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "data.path: elpv needs the package elpv-dataset; install it with "
            "pip install -e '.[quickstart]' (its pictures are CC BY-NC-SA 4.0), or name a folder."
        )
    folder = os.path.join(next(iter(spec.submodule_search_locations)), "data")
    table = os.path.join(folder, "labels.csv")
    try:
        with open(table, encoding="utf-8") as file:
            rows = [line.split() for line in file if line.strip()]
        paths = tuple(os.path.join(folder, *name.split("/")) for name, _, _ in rows)
        is_defective = tuple(int(float(probability) > 0.5) for _, probability, _ in rows)
        cell_type = tuple(CLASSES["type"].index(kind) for _, _, kind in rows)
    except (OSError, ValueError) as error:
        raise DataError(
            f"data.path: elpv: {table} cannot be used ({error}); "
            "install it again: pip install --force-reinstall elpv-dataset."
        ) from error
    labels = is_defective if label == "defect" else cell_type
    accounting = Accounting(num_images=len(paths))
    return ImageList(paths, labels, CLASSES[label], root=folder, accounting=accounting)
