"""From what `data.path` and `data.label` say to lists of images, and lists cut in two."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from fcmae.data.elpv import open_elpv
from fcmae.data.files import ImageList, find_images
from fcmae.errors import ConfigError
from fcmae.randomness import sample_seed

ELPV = "elpv"
VALIDATION_NAMES = ("val", "valid", "validation")


def open_images(
    path: str | Sequence[str], label: str | None = None, where: str = "data.path"
) -> ImageList:
    """Return the images of `path`: "elpv" (built in; a folder of that name is "./elpv"), or files.

    `label` chooses among the labels of elpv; a folder's labels are its class folders.

    Raises:
        ConfigError: as `find_images` and `open_elpv`; elpv mixed with folders; a label that
            chooses nothing.
    """
    paths = [path] if isinstance(path, str) else list(path)
    if paths == [ELPV]:
        return open_elpv(label)
    if ELPV in paths:
        raise ConfigError(f"{where}: elpv cannot be mixed with folders; a folder is ./elpv.")
    if label is not None:
        raise ConfigError(
            f"data.label: {label!r} chooses a label of elpv, but {where} is {path!r}, whose labels "
            "are the names of its class folders; remove data.label."
        )
    return find_images(path, where)


def split(images: ImageList, validation: float | int, seed: int) -> tuple[ImageList, ImageList]:
    """Cut labelled images into training and validation, at random but the same for every call.

    Args:
        images: must have labels.
        validation: a share of each class (0 < float < 1, rounded, at least one image) or a number
            of images per class (int).
        seed: which of the possible cuts.

    Raises:
        ConfigError: no labels, a share outside (0, 1), or a class with too few images to have
            one on both sides.
    """
    if images.labels is None or images.classes is None:
        raise ConfigError(
            "a split needs labels: put the images of each class into a folder of its own, "
            "directly below one data.path."
        )
    if validation <= 0 or (isinstance(validation, float) and validation >= 1):
        raise ConfigError(f"the validation share must lie between 0 and 1, not {validation}.")
    held_out: set[int] = set()
    for label, name in enumerate(images.classes):
        members = [index for index, other in enumerate(images.labels) if other == label]
        share = validation if isinstance(validation, int) else round(validation * len(members))
        count = max(1, share)
        if count >= len(members):
            raise ConfigError(
                f"class {name!r} has {len(members)} image{'s' * (len(members) != 1)}, of which "
                f"{count} cannot be held out for validation with any left for training."
            )
        rng = torch.Generator().manual_seed(sample_seed(seed, "split", name))
        order = torch.randperm(len(members), generator=rng)[:count].tolist()
        held_out.update(members[place] for place in order)
    everything = range(len(images))
    training = images.select(index for index in everything if index not in held_out)
    return training, images.select(sorted(held_out))


def open_train_and_validation(
    path: str | Sequence[str], label: str | None, validation: float | int, seed: int
) -> tuple[ImageList, ImageList]:
    """Return labelled training and validation images.

    A folder that holds `train/` and one of `val/`, `valid/`, `validation/` is taken as it is cut;
    anything else is cut by `split`.

    Raises:
        ConfigError: as `open_images` and `split`; the two folders have other classes.
    """
    if isinstance(path, str) and path != ELPV:
        root = os.path.expanduser(path)
        train = os.path.join(root, "train")
        for validation_folder in (os.path.join(root, name) for name in VALIDATION_NAMES):
            if os.path.isdir(train) and os.path.isdir(validation_folder):
                return _open_pair(train, validation_folder, label)
    return split(open_images(path, label), validation, seed)


def _open_pair(
    train: str, validation_folder: str, label: str | None
) -> tuple[ImageList, ImageList]:
    images, held_out = open_images(train, label), open_images(validation_folder, label)
    for folder, opened in ((train, images), (validation_folder, held_out)):
        if opened.classes is None:
            raise ConfigError(
                f"data.path: {folder!r} has no labels; it needs one folder per class, two or more."
            )
    if images.classes != held_out.classes:
        differing = sorted(set(images.classes or ()) ^ set(held_out.classes or ()))
        raise ConfigError(
            f"data.path: {train!r} and {validation_folder!r} must hold the same classes; "
            f"only one of them has {', '.join(differing[:5])}."
        )
    return images, held_out
