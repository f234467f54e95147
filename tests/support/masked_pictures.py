"""Folders of small pictures with masks: a bright square, and a small blue dot, on dark ground."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from real_runs import options

COLOURS = ((0, 0, 0), (255, 0, 0), (0, 0, 255))
NAMES = ("ground", "square", "dot")
CLASSES = "{ground: 0, square: 1, dot: 2}"


def draw_pair(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture [H, W, 3] and its class numbers [H, W]."""
    picture = rng.integers(40, 80, (height, width, 3), dtype=np.uint8)
    numbers = np.zeros((height, width), np.uint8)
    for number, side, band in ((1, 14, 0), (2, 5, 2)):
        top, left = rng.integers(0, height - side), rng.integers(0, width - side)
        place = slice(top, top + side), slice(left, left + side)
        picture[place][..., band] += 150
        numbers[place] = number
    return picture, numbers


def write_pairs(folder: Path, count: int, *, seed: int = 0, side: int = 40) -> Path:
    """Write images/NN.png and masks/NN.png (index PNG with a palette); return the folder."""
    rng = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture, numbers = draw_pair(rng, side + number % 5, side + 7 + number % 3)
        Image.fromarray(picture).save(folder / "images" / f"{number:02}.png")
        save_palette(folder / "masks" / f"{number:02}.png", numbers)
    return folder


def save_palette(path: Path, numbers: np.ndarray) -> None:
    """Write class numbers as a PNG with a palette."""
    mask = Image.fromarray(numbers, mode="P")
    mask.putpalette([part for colour in COLOURS for part in colour])
    mask.save(path)


def write_bright_masks(pictures: Path, masks: Path) -> None:
    """Write a mask of the same name for each picture: which of its pixels are bright."""
    for path in pictures.rglob("*.png"):
        mask = masks / path.relative_to(pictures)
        mask.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as picture:
            grey = np.asarray(picture.convert("L"))
        Image.fromarray((grey > 127).astype(np.uint8)).save(mask)


SETTINGS = {
    "task": "segmentation",
    "data.classes": CLASSES,
    "data.image_size": 32,
    "data.workers": 0,
    "data.val_share": 0.3,
    "model.name": "convnextv2_speck",
    "task.decoder_channels": 16,
    "optim.base_lr": 0.05,
    "augment.class_balanced": 0.5,
    "train.batch_size": 4,
    "train.steps": 4,
    "train.device": "cpu",
    "log.every_steps": 2,
    "log.tensorboard": "false",
    "checkpoint.every_steps": 3,
    "evaluate.num_pictures": 0,
}


def segment_arguments(data: Path, run: Path, **changes: object) -> list[str]:
    """Return a console command of a tiny segmentation; `changes` are section__name=value."""
    where = {"run.dir": run, "data.path": data / "images", "data.masks": data / "masks"}
    return ["finetune", *options({**where, **SETTINGS}, changes)]
