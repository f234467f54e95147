"""Readers of files: what is in one, and its pixels in the file's own values and type.

`decoding.py` makes images for a model of them. A format is one class of `contract.Reader` in the
list of `choosing.py`; a user's own is a function, see `own.py`.
"""

from fcmae.data.readers.choosing import (
    EVERYTHING,
    SEPARATOR,
    describe,
    is_store,
    items,
    kind_of,
    read,
    split_item,
)
from fcmae.data.readers.contract import Description, Pixels, UnreadableError, Wanted
from fcmae.data.readers.saved_datasets import is_saved_dataset, open_dataset

__all__ = [
    "EVERYTHING",
    "SEPARATOR",
    "Description",
    "Pixels",
    "UnreadableError",
    "Wanted",
    "describe",
    "is_saved_dataset",
    "is_store",
    "items",
    "kind_of",
    "open_dataset",
    "read",
    "split_item",
]
