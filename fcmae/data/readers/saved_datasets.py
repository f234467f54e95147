"""Reads data sets that Hugging Face's `datasets` saved on disk (the extra `huggingface`).

A row is an image: a file's bytes, its path, or an array. Rows are mapped, not loaded, and are read
in any order; what is in a row's bytes is left to the reader of its kind.
"""

import functools
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fcmae.data.readers import layout as layouts
from fcmae.data.readers.contract import (
    HEAD_BYTES,
    Description,
    Pixels,
    Reader,
    Source,
    UnreadableError,
    Wanted,
)
from fcmae.data.readers.named_arrays import cut_out

SPLITS_FILE, STATE_FILE, INFO_FILE = "dataset_dict.json", "state.json", "dataset_info.json"
DATASET_FILES = (SPLITS_FILE, STATE_FILE)  # one of them lies in every folder of a data set
KIND = "Hugging Face"
IMAGE_NAMES = ("image", "img", "picture", "pixel_values", "pixels")  # of columns without a type
LABEL_NAMES = ("label", "labels", "class", "target", "fine_label")
OPEN_DATASETS = 16  # per process

FindReader = Callable[[Source], tuple[Reader, str]]


def is_saved_dataset(folder: str) -> bool:
    """Whether a folder is what `save_to_disk` made: a data set, or several as splits."""
    has = {name: os.path.isfile(os.path.join(folder, name)) for name in (*DATASET_FILES, INFO_FILE)}
    return has[SPLITS_FILE] or (has[STATE_FILE] and has[INFO_FILE])


@dataclass(frozen=True)
class Rows:
    """The images of one data set or split.

    Attributes:
        name: of the split, "" of a data set without splits.
        images: the data set with the column of images alone, which are not decoded.
        column: its name.
        dtype: of the values of an array column, None where images are files.
        labels: number of each row's class, int64 [N], -1 for none; None without labels.
        classes: their names.
    """

    name: str
    images: Any
    column: str
    dtype: np.dtype | None
    labels: np.ndarray | None
    classes: tuple[str, ...]


def open_dataset(folder: str) -> tuple[Rows, ...]:
    """Return the splits of a saved data set, in their order; a data set without is one.

    Raises:
        UnreadableError: the package is missing, there is no column of images, or it is damaged.
    """
    state = os.stat(_state_file(folder))
    return _opened(folder, os.getpid(), state.st_mtime_ns)


class SavedDatasetReader:
    """Reads rows by number, SPLIT::NUMBER where there are splits.

    Args:
        find_reader: gives the reader of a file by its content.
    """

    def __init__(self, find_reader: FindReader) -> None:
        self._find_reader = find_reader

    def kind_of(self, source: Source) -> str | None:
        """Return its kind for a folder that `save_to_disk` made."""
        return KIND if source.file is None and is_saved_dataset(source.path) else None

    def items(self, source: Source, wanted: Wanted) -> list[str]:
        """Return NUMBER or SPLIT::NUMBER of every row."""
        return [
            f"{rows.name}::{number}" if rows.name else str(number)
            for rows in open_dataset(source.path)
            for number in range(len(rows.images))
        ]

    def describe(self, source: Source, wanted: Wanted) -> Description:
        """Return what the header of the row's file, or the shape of its array, says."""
        row = self._row(source)
        if isinstance(row, Source):
            return self._find_reader(row)[0].describe(row, wanted)
        layouts.check_type(row.dtype)
        return layouts.describe(KIND, layouts.layout_of(row.shape, wanted), row.dtype)

    def read(self, source: Source, wanted: Wanted) -> Pixels:
        """Return the part of a row's image that is wanted."""
        row = self._row(source)
        if isinstance(row, Source):
            return self._find_reader(row)[0].read(row, wanted)
        return cut_out(KIND, row, "", wanted)

    def _row(self, source: Source) -> Source | np.ndarray:
        """Return the file that a row holds or names, or its array."""
        splits = open_dataset(source.path)
        name, _, number = source.item.rpartition("::")
        rows = next((rows for rows in splits if rows.name == name), None)
        if rows is None and source.item == "" and len(splits) == 1:
            rows = splits[0]
        if rows is None:
            named = ", ".join(rows.name for rows in splits if rows.name) or "none"
            raise UnreadableError(f"holds no split {name!r}, only {named}; name SPLIT::NUMBER")
        value = rows.images[layouts.number_of(number, len(rows.images))][rows.column]
        if rows.dtype is not None:
            return np.asarray(value, rows.dtype)
        if value is None:
            raise UnreadableError("the row has no image")
        if isinstance(value, bytes | str):
            value = {"bytes" if isinstance(value, bytes) else "path": value}
        content = value.get("bytes")
        path = os.path.join(source.path, value.get("path") or "")
        if content is None:
            with open(path, "rb") as file:
                content = file.read()
        return Source(path, "", content[:HEAD_BYTES], io.BytesIO(content), len(content))


def _state_file(folder: str) -> str:
    splits = os.path.join(folder, SPLITS_FILE)
    return splits if os.path.isfile(splits) else os.path.join(folder, STATE_FILE)


@functools.lru_cache(maxsize=OPEN_DATASETS)
def _opened(folder: str, process: int, changed_ns: int) -> tuple[Rows, ...]:
    del process, changed_ns  # a forked reader maps the files anew, and so does a later look
    try:
        import datasets
    except ImportError as error:
        raise UnreadableError(
            "is a data set of Hugging Face, which needs the package datasets: "
            "pip install 'fcmae[huggingface]'"
        ) from error
    if _state_file(folder).endswith(STATE_FILE):
        return (_rows("", datasets.load_from_disk(folder)),)
    with open(_state_file(folder), encoding="utf-8") as file:
        names = json.load(file)["splits"]
    return tuple(_rows(name, datasets.load_from_disk(os.path.join(folder, name))) for name in names)


def _rows(name: str, dataset: Any) -> Rows:
    from datasets import Image

    dataset = dataset.with_format(None)
    column = _image_column(dataset.features)
    labels, classes = _labels(dataset)
    images = dataset.select_columns([column])
    if isinstance(dataset.features[column], Image):
        images = images.cast_column(column, Image(decode=False))
    return Rows(name, images, column, _array_type(dataset.features[column]), labels, classes)


def _image_column(features: Any) -> str:
    """Return the column of images: the first of that type, of arrays, or by its name.

    Raises:
        UnreadableError: there is none.
    """
    from datasets import Image

    for name, feature in features.items():
        if isinstance(feature, Image):
            return str(name)
    for name, feature in features.items():
        if _array_type(feature) is not None and _depth(feature) in (2, 3):
            return str(name)
    for name in IMAGE_NAMES:
        if getattr(features.get(name), "dtype", None) in ("binary", "large_binary", "string"):
            return name
    raise UnreadableError(
        f"has the columns {', '.join(features)}, and none of images: of type Image, of arrays, or "
        f"named {IMAGE_NAMES[0]} with bytes or paths"
    )


def _depth(feature: Any) -> int:
    """Return the number of axes of an array column."""
    shape = getattr(feature, "shape", None)
    if shape is not None:
        return len(shape)
    inner = _inside(feature)
    return 0 if inner is None else 1 + _depth(inner)


def _inside(feature: Any) -> Any:
    """Return what a list column lists, None of another column."""
    if isinstance(feature, list):
        return feature[0]
    inner = getattr(feature, "feature", None)
    return None if isinstance(inner, dict) else inner


def _array_type(feature: Any) -> np.dtype | None:
    """Return the type of the values of an array column, None of another column."""
    if getattr(feature, "shape", None) is None:
        inner = _inside(feature)
        if inner is None:
            return None
        while _inside(inner) is not None:
            inner = _inside(inner)
        feature = inner
    try:
        dtype = np.dtype(feature.dtype)
    except (AttributeError, TypeError):
        return None
    return dtype if dtype.kind in "biuf" else None


def _labels(dataset: Any) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Return the classes of the rows by the first column of class labels, or one named so."""
    from datasets import ClassLabel

    features = dataset.features
    typed = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    named = [
        name
        for name in LABEL_NAMES
        if getattr(features.get(name), "dtype", "") in ("string", "int64", "int32", "int16", "int8")
    ]
    if not typed and not named:
        return None, ()
    column = (typed or named)[0]
    table = dataset.select_columns([column]).with_format("arrow")[:]
    values = table.column(column).to_pylist()
    if typed:
        numbers = [-1 if value is None else value for value in values]
        return np.array(numbers, np.int64), tuple(features[column].names)
    texts = ["" if value is None else str(value) for value in values]
    classes = tuple(dict.fromkeys(text for text in texts if text))
    place = {text: number for number, text in enumerate(classes)}
    return np.array([place.get(text, -1) for text in texts], np.int64), classes
