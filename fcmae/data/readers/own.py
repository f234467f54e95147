"""Readers that users bring: one function, named in `data.reader` as MODULE:FUNCTION."""

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from fcmae.data.readers import layout as layouts
from fcmae.data.readers.contract import Pixels, UnreadableError, Wanted
from fcmae.errors import ConfigError

OwnReader = Callable[[str], Any]
"""Path -> array [H, W] or [H, W, C], or (array, valid [H, W] bool); None leaves the file to us."""


@functools.cache
def own_reader(name: str) -> OwnReader:
    """Return the function that `data.reader` names.

    Args:
        name: "my_module:read", importable or in the current folder, or "path/to/file.py:read".

    Raises:
        ConfigError: no such module or function, or it fails when it is imported.
    """
    module_name, _, function = name.rpartition(":")
    expected = "use MODULE:FUNCTION, such as my_readers:read, or path/to/file.py:read"
    if not module_name or not function:
        raise ConfigError(f"data.reader: {name!r} names no function of a module; {expected}.")
    try:
        module = _imported(module_name)
        found = getattr(module, function)
    except Exception as error:
        detail = " ".join(str(error).split())
        raise ConfigError(
            f"data.reader: {name!r} cannot be used ({type(error).__name__}: {detail}); {expected}."
        ) from error
    if not callable(found):
        raise ConfigError(f"data.reader: {name!r} is no function; {expected}.")
    return found


def read_own(name: str, path: str, wanted: Wanted) -> Pixels | None:
    """Return what the user's function makes of a file; None where it leaves the file to others.

    Raises:
        UnreadableError: it returns something else than an image.
        Exception: whatever it raises.
    """
    returned = own_reader(name)(path)
    if returned is None:
        return None
    valid = None
    if isinstance(returned, tuple):
        if len(returned) != 2:
            raise UnreadableError(
                f"data.reader {name} returned {len(returned)} values, where an array or "
                "(array, valid) is expected"
            )
        returned, valid = returned
    values = np.asarray(returned)
    layouts.check_type(values.dtype)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or 0 in values.shape:
        raise UnreadableError(
            f"data.reader {name} returned an array of shape {values.shape}, where (H, W) or "
            "(H, W, C) is expected"
        )
    if valid is not None:
        valid = np.asarray(valid, dtype=bool)
        if valid.shape != values.shape[:2]:
            raise UnreadableError(
                f"data.reader {name} returned a mask of shape {valid.shape} for pixels of "
                f"{values.shape[:2]}"
            )
    height, width, bands = values.shape
    layout = layouts.Layout(height, width, bands, 1, False, 2)
    about = layouts.describe(name, layout, values.dtype, has_mask=valid is not None)
    layouts.check_size(about.height, about.width)
    if wanted.choose is not None:
        top, left, height, width, _ = wanted.choose(about.height, about.width)
        values = values[top : top + height, left : left + width]
        valid = None if valid is None else valid[top : top + height, left : left + width]
    missing = layouts.validity(values)
    if missing is not None:
        valid = missing if valid is None else valid & missing
    return Pixels(values, valid, about)


def _imported(name: str) -> ModuleType:
    if not name.endswith(".py"):
        if os.getcwd() not in sys.path and "" not in sys.path:  # a console command has neither
            sys.path.insert(0, os.getcwd())
        return importlib.import_module(name)
    if not os.path.isfile(name):
        raise FileNotFoundError(f"{name} does not exist, looked for it from {os.getcwd()}")
    stem = os.path.splitext(os.path.basename(name))[0]
    spec = importlib.util.spec_from_file_location(stem, name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(stem, module)
    spec.loader.exec_module(module)
    return module
