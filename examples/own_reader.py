"""A reader of your own: one function from a path to pixels, named in `data.reader`.

It reads headerless 16-bit camera frames of 640 x 480 px (`.raw`) and leaves every other file to
the built-in readers:

    fcmae pretrain --config my.yaml --data.reader examples/own_reader.py:read
"""

from __future__ import annotations

import numpy as np

HEIGHT, WIDTH = 480, 640


def read(path: str) -> np.ndarray | None:
    """Return [H, W] or [H, W, C] in the file's own values; None leaves the file to the others.

    A function may also return (array, valid) with valid [H, W] bool, False where a pixel has no
    content. What it raises is the reason why a file is skipped.
    """
    if not path.endswith(".raw"):
        return None
    values = np.fromfile(path, dtype="<u2")
    if values.size != HEIGHT * WIDTH:
        raise ValueError(f"has {values.size} values, where {HEIGHT} x {WIDTH} are expected")
    return values.reshape(HEIGHT, WIDTH)
