"""Folders of small made pictures for tests of whole commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_pictures(
    folder: Path, count: int, *, side: int = 48, channels: int = 3, seed: int = 0
) -> list[Path]:
    """Write `count` PNGs of smooth random shapes and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:side, 0:side] / side
    paths = []
    for number in range(count):
        waves = rng.uniform(2, 12, (channels, 2)), rng.uniform(0, 6.28, channels)
        planes = [
            np.sin(a * rows + b * columns + phase)
            for (a, b), phase in zip(waves[0], waves[1], strict=True)
        ]
        pixels = np.clip(127 + 100 * np.stack(planes, axis=-1), 0, 255).astype(np.uint8)
        path = folder / f"picture-{number:03d}.png"
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(path)
        paths.append(path)
    return paths
