"""Lists of images cut in two, and drawn from: validation, held-out images, some of the labels.

Every draw is random but the same for every call: a function of its seed, its purpose and the class.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from fcmae.data.files import ImageList
from fcmae.data.sources import ELPV, open_images
from fcmae.errors import ConfigError
from fcmae.randomness import sample_seed
from fcmae.settings.finetune import FinetuneDataConfig
from fcmae.settings.pretrain import HealthConfig

VALIDATION_NAMES = ("val", "valid", "validation")
LEAST_HELD_OUT = 4  # fewer images say nothing about a set


def cut(images: ImageList, held_out: set[int]) -> tuple[ImageList, ImageList]:
    """Return the images that are not `held_out`, by index, and those that are."""
    left = (index for index in range(len(images)) if index not in held_out)
    return images.select(left), images.select(sorted(held_out))


def split(images: ImageList, validation: float | int, seed: int) -> tuple[ImageList, ImageList]:
    """Cut labelled images into training and validation.

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
    for name, members in _by_class(images):
        share = validation if isinstance(validation, int) else round(validation * len(members))
        count = max(1, share)
        if count >= len(members):
            raise ConfigError(
                f"class {name!r} has {len(members)} image{'s' * (len(members) != 1)}, of which "
                f"{count} cannot be held out for validation with any left for training."
            )
        held_out.update(_drawn(members, count, seed, "split", name))
    return cut(images, held_out)


def split_unlabelled(
    images: ImageList, share: float, seed: int, where: str = "data.path"
) -> tuple[ImageList, ImageList]:
    """Cut images into those to train on and a share that is held out, one at least.

    Raises:
        ConfigError: nothing would be left to train on.
    """
    count = max(1, round(share * len(images)))
    if count >= len(images):
        raise ConfigError(
            f"{where}: {len(images)} images, of which {count} cannot be held out with any left "
            "for training."
        )
    return cut(images, set(_drawn(range(len(images)), count, seed, "split")))


def hold_out(images: ImageList, config: HealthConfig, seed: int) -> tuple[ImageList, ImageList]:
    """Split images into those to train on and those that health is measured on.

    At most a twentieth of the images is held out; none when that is fewer than four.
    """
    count = min(config.images, len(images) // 20)
    if config.checks == 0 or count < LEAST_HELD_OUT:
        count = 0
    held_out = set(_drawn(range(len(images)), count, seed, "held-out"))
    kept, chosen = cut(images, held_out)
    return kept, dataclasses.replace(chosen, problems=())


def draw_per_class(images: ImageList, count: int, seed: int) -> ImageList:
    """Return `count` images of each class, in their old order.

    Raises:
        ConfigError: a class has fewer.
    """

    def count_of(name: str, available: int) -> int:
        if available < count:
            raise ConfigError(
                f"data.train_per_class: got {count}, but class {name!r} has {available} "
                "training images; use fewer, or null for all."
            )
        return count

    return _some_of_each_class(images, count_of, seed)


def draw_share(images: ImageList, share: float, seed: int) -> ImageList:
    """Return `share` per cent of each class's images, one at least, in their old order.

    A smaller share's images are among a larger one's.
    """
    return _some_of_each_class(
        images, lambda _, available: max(1, round(available * share / 100)), seed
    )


def open_labelled(data: FinetuneDataConfig, seed: int) -> tuple[ImageList, ImageList]:
    """Return training and validation images with labels; `seed` draws data.train_per_class.

    Raises:
        ConfigError: no images, no labels, other classes in val_path, or too few images of a class.
    """
    if data.val_path is None:
        try:
            train, validation = open_train_and_validation(
                data.path, data.label, data.val_share, data.split_seed
            )
        except ConfigError:
            with_labels(open_images(data.path, data.label), "data.path", data.path)
            raise
    else:
        train = with_labels(open_images(data.path, data.label), "data.path", data.path)
        validation = open_validation(data.val_path, train.classes)
    if data.train_per_class is not None:
        train = draw_per_class(train, data.train_per_class, seed)
    return train, validation


def open_validation(path: str, classes: Sequence[str] | None) -> ImageList:
    """Return the images of data.val_path, which must hold `classes` where these are known.

    Raises:
        ConfigError: no images, no labels, or other classes.
    """
    validation = with_labels(open_images(path, None, "data.val_path"), "data.val_path", path)
    assert validation.classes is not None
    if classes is not None and tuple(classes) != validation.classes:
        differing = sorted(set(classes) ^ set(validation.classes))
        raise ConfigError(
            f"data.val_path: {path!r} has the classes {', '.join(validation.classes)}, expected "
            f"{', '.join(classes)}; one side alone has {', '.join(differing)}."
        )
    return validation


def with_labels(images: ImageList, where: str, path: object) -> ImageList:
    """Return the images, or raise ConfigError when they have no labels."""
    if images.labels is None:
        raise ConfigError(
            f"{where}: {path!r} has no labels; expected one folder with a folder of images per "
            "class, two classes or more."
        )
    return images


def open_train_and_validation(
    path: str | Sequence[str], label: str | None, validation: float | int, seed: int
) -> tuple[ImageList, ImageList]:
    """Return labelled training and validation images.

    A folder that holds `train/` and one of `val/`, `valid/`, `validation/` is taken as it is cut;
    anything else is cut by `split`.

    Raises:
        ConfigError: as `open_images` and `split`; the two folders have other classes.
    """
    pair = folders_of_a_cut(path)
    if pair is not None:
        return _open_pair(*pair, label)
    return split(open_images(path, label), validation, seed)


def open_with_held_out(
    path: Any, label: str | None, share: float, seed: int, where: str
) -> tuple[ImageList, ImageList]:
    """Return images to train on and held-out ones, by class where there are labels.

    Raises:
        ConfigError: as `open_train_and_validation` and `split_unlabelled`.
    """
    images = open_images(path, label, where)
    pair = folders_of_a_cut(path)
    is_cut = pair is not None and open_images(pair[0]).labels is not None
    if images.labels is not None or is_cut:
        return open_train_and_validation(path, label, share, seed)
    return split_unlabelled(images, share, seed, where)


def folders_of_a_cut(path: str | Sequence[str]) -> tuple[str, str] | None:
    """Return the folders of training and validation, where a folder says itself which they are."""
    if not isinstance(path, str) or path == ELPV:
        return None
    root = os.path.expanduser(path)
    train = os.path.join(root, "train")
    for validation in (os.path.join(root, name) for name in VALIDATION_NAMES):
        if os.path.isdir(train) and os.path.isdir(validation):
            return train, validation
    return None


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


def _by_class(images: ImageList) -> Iterator[tuple[str, list[int]]]:
    """Yield every class and the indices of its images."""
    assert images.labels is not None
    assert images.classes is not None
    members: list[list[int]] = [[] for _ in images.classes]
    for index, label in enumerate(images.labels):
        if label >= 0:
            members[label].append(index)
    yield from zip(images.classes, members, strict=True)


def _some_of_each_class(
    images: ImageList, count_of: Callable[[str, int], int], seed: int
) -> ImageList:
    """Return count_of(class, its images) images of each class, in their old order."""
    chosen = [
        index
        for name, members in _by_class(images)
        for index in _drawn(members, count_of(name, len(members)), seed, "labels", name)
    ]
    return images.select(sorted(chosen))


def _drawn(members: Sequence[int], count: int, seed: int, *key: str) -> list[int]:
    """Return `count` of the members, in random order, as seed and key decide."""
    rng = torch.Generator().manual_seed(sample_seed(seed, *key))
    order = torch.randperm(len(members), generator=rng)[:count].tolist()
    return [members[place] for place in order]
