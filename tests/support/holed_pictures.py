"""Pictures of which a part has no data, and samples of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fcmae.data import PretrainAugmentation, PretrainDataset, Reading, find_images
from fcmae.data.holes import without_masks

RGB = Reading(in_chans=3)
PATCH = 16  # px; images of 64 x 64 px have 16 patches, 6 of them visible at 0.6


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 255, (height, width, 3), dtype=np.uint8)


def half_empty(folder: Path, count: int = 4, *, seed: int = 0, share: float = 0.4) -> Path:
    """Write pictures of which the left `share` is black."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = noise(90, 120, seed + number)
        pixels[:, : int(120 * share)] = 0
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def make_dataset(folder: Path, reading: Reading, **changes: Any) -> PretrainDataset:
    settings: dict[str, Any] = {
        "seed": 3,
        "reading": reading,
        "num_patches": 16,
        "mask_ratio": 0.6,
        "patch_size": PATCH,
    }
    images = without_masks(find_images(str(folder)), reading)
    augmentation = changes.pop("augmentation", PretrainAugmentation((64, 64)))
    return PretrainDataset(images, augmentation, **{**settings, **changes})


def assert_same(samples: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    for sample, other in zip(samples, others, strict=True):
        assert sample.keys() == other.keys()
        for name, value in sample.items():
            if isinstance(value, Tensor):
                assert torch.equal(value, other[name]), name
            elif name not in ("path", "skipped"):
                assert value == other[name], name
