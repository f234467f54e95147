"""Lists of images cut in two, and drawn from: validation, held-out images, some of the labels.

Every draw is random but the same for every call: a function of its seed, its purpose and the class.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from fcmae.data.grouping import draw_groups, group_numbers
from fcmae.data.image_list import ImageList
from fcmae.data.path_list import Labels, as_indices
from fcmae.data.readers import EVERYTHING, Wanted
from fcmae.data.reading import Reading
from fcmae.data.sources import open_images
from fcmae.errors import ConfigError
from fcmae.randomness import sample_seed
from fcmae.settings.finetune import FinetuneDataConfig
from fcmae.settings.pretrain import HealthConfig

LEAST_HELD_OUT = 4  # fewer images say nothing about a set


def cut(images: ImageList, held_out: Iterable[int] | np.ndarray) -> tuple[ImageList, ImageList]:
    """Return the images that are not `held_out`, by index, and those that are."""
    is_held_out = np.zeros(len(images), bool)
    is_held_out[as_indices(held_out)] = True
    return images.select(np.flatnonzero(~is_held_out)), images.select(np.flatnonzero(is_held_out))


def split(
    images: ImageList, validation: float | int, seed: int, group: str | None = None
) -> tuple[ImageList, ImageList]:
    """Cut labelled images into training and validation.

    Args:
        images: must have labels.
        validation: a share of each class (0 < float < 1, rounded, at least one image) or a number
            of images per class (int).
        seed: which of the possible cuts.
        group: pattern of what belongs together; the images of one group stay on one side, and the
            shares are met as nearly as that allows. See `group_numbers`.

    Raises:
        ConfigError: no labels, a share outside (0, 1), or a class with too few images (or groups)
            to have one on both sides.
    """
    if images.labels is None or images.classes is None:
        raise ConfigError(
            "a split needs labels: put the images of each class into a folder of its own, "
            "directly below one data.path."
        )
    if validation <= 0 or (isinstance(validation, float) and validation >= 1):
        raise ConfigError(f"the validation share must lie between 0 and 1, not {validation}.")
    wanted: dict[str, tuple[list[int], int]] = {}
    for name, members in _by_class(images):
        share = validation if isinstance(validation, int) else round(validation * len(members))
        count = max(1, share)
        if count >= len(members):
            raise ConfigError(
                f"class {name!r} has {len(members)} image{'s' * (len(members) != 1)}, of which "
                f"{count} cannot be held out for validation with any left for training."
            )
        wanted[name] = members, count
    if group is not None:
        return _split_groups(images, wanted, seed, group)
    drawn = (_drawn(members, n, seed, "split", name) for name, (members, n) in wanted.items())
    return cut(images, itertools.chain.from_iterable(drawn))


def _split_groups(
    images: ImageList, wanted: dict[str, tuple[list[int], int]], seed: int, group: str
) -> tuple[ImageList, ImageList]:
    groups = group_numbers(images.paths, group)
    sets = []
    for members, count in wanted.values():
        is_in = np.zeros(len(images), bool)
        is_in[members] = True
        sets.append((is_in, count))
    held_out = draw_groups(groups, sets, seed, "split")
    for name, (is_in, _) in zip(wanted, sets, strict=True):
        held = int(is_in[held_out].sum())
        if not 0 < held < is_in.sum():
            raise ConfigError(
                f"data.group: {group!r} leaves class {name!r} without images on one side: too few "
                "groups hold it; name validation images with data.val_path, or another pattern."
            )
    return cut(images, held_out)


def split_unlabelled(
    images: ImageList,
    share: float,
    seed: int,
    where: str = "data.path",
    group: str | None = None,
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
    if group is not None:
        return cut(images, _drawn_groups(images, count, seed, group, "split"))
    return cut(images, _drawn(range(len(images)), count, seed, "split"))


def hold_out(
    images: ImageList, config: HealthConfig, seed: int, group: str | None = None
) -> tuple[ImageList, ImageList]:
    """Split images into those to train on and those that health is measured on.

    At most a twentieth of the images is held out, or as near to it as whole groups come; none
    when that is fewer than four. A set that is cut in parts is read as fine-tuning reads it: only
    its part for training is trained on, and images of the one for validation are held out.

    Raises:
        ConfigError: images of one group are in both of these parts.
    """
    if "train" in images.parts:
        training = images.part("train")
        if "validation" not in images.parts:
            return _hold_out_some(training, config, seed, group)
        validation = images.part("validation")
        if group is not None:
            check_groups(training, validation, group)
        count = 0 if config.checks == 0 else min(config.images, len(validation))
        chosen = validation.select(_drawn(range(len(validation)), count, seed, "held-out"))
        return training, dataclasses.replace(chosen, problems=())
    return _hold_out_some(images, config, seed, group)


def parts_sentence(images: ImageList, held_out: ImageList) -> str | None:
    """Say what a pretraining does with a set that is cut in parts, None with another one.

    Args:
        images: the whole set.
        held_out: what `hold_out` held out of it.
    """
    if "train" not in images.parts:
        return None
    counts = {part: len(images.part(part)) for part in images.parts}
    said = [f"{counts['train']:,} images of {images.parts['train']}/ are trained on"]
    if "validation" in images.parts:
        name = images.parts["validation"]
        said.append(f"{len(held_out):,} of {counts['validation']:,} in {name}/ are held out")
    if "test" in images.parts:
        said.append(f"{counts['test']:,} in {images.parts['test']}/ are left alone")
    if others := len(images) - sum(counts.values()):
        said.append(f"{others:,} outside of these are left out")
    return (
        f"the set is cut in parts: {', '.join(said)}. Name folders one by one, "
        "--data.path '[A, B]', to train on all of them."
    )


def _hold_out_some(
    images: ImageList, config: HealthConfig, seed: int, group: str | None
) -> tuple[ImageList, ImageList]:
    """Return images to train on and some that are drawn from them."""
    count = min(config.images, len(images) // 20)
    if config.checks == 0 or count < LEAST_HELD_OUT:
        count = 0
    if group is not None and count:
        kept, chosen = cut(images, _drawn_groups(images, count, seed, group, "held-out"))
    else:
        kept, chosen = cut(images, _drawn(range(len(images)), count, seed, "held-out"))
    return kept, dataclasses.replace(chosen, problems=())


def _drawn_groups(images: ImageList, count: int, seed: int, group: str, key: str) -> np.ndarray:
    everyone = np.ones(len(images), bool)
    return draw_groups(group_numbers(images.paths, group), [(everyone, count)], seed, key)


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
        ConfigError: no images, no labels, other classes in val_path, too few images of a class, or
            images of one group (data.group) on both sides.
    """
    wanted = Reading.of_settings(data).wanted()
    if data.val_path is None:
        train, validation = open_train_and_validation(
            data.path,
            data.label,
            data.val_share,
            data.split_seed,
            data.group,
            data.exclude,
            wanted=wanted,
        )
    else:
        images = open_images(data.path, data.label, exclude=data.exclude, wanted=wanted)
        if "train" in images.parts:
            images = images.part("train")
        train = with_labels(images, "data.path", data.path)
        validation = open_validation(data.val_path, train.classes, wanted)
    if data.group is not None:
        check_groups(train, validation, data.group)
    if data.train_per_class is not None:
        train = draw_per_class(train, data.train_per_class, seed)
    return train, validation


def open_validation(
    path: str, classes: Sequence[str] | None, wanted: Wanted = EVERYTHING
) -> ImageList:
    """Return all images of data.val_path, which must hold `classes` where these are known.

    Raises:
        ConfigError: no images, no labels, or other classes.
    """
    validation = with_labels(
        open_images(path, None, "data.val_path", wanted=wanted), "data.val_path", path
    )
    assert validation.classes is not None
    if classes is not None and tuple(classes) != validation.classes:
        differing = sorted(set(classes) ^ set(validation.classes))
        raise ConfigError(
            f"data.val_path: {path!r} has the classes {', '.join(validation.classes)}, expected "
            f"{', '.join(classes)}; one side alone has {', '.join(differing)}."
        )
    return validation


def with_labels(images: ImageList, where: str, path: object) -> ImageList:
    """Return the images that have labels.

    Raises:
        ConfigError: none has, with the reason.
    """
    if images.labels is None:
        why = images.why_unlabelled or "comes without labels"
        raise ConfigError(
            f"{where}: {path!r} {why}; labels are the names of folders, one per class, directly "
            "below one path or below its train/ and val/, or a CSV with the columns path and label."
        )
    assert isinstance(images.labels, Labels)
    has_label = images.labels.array >= 0
    return images if has_label.all() else images.select(np.flatnonzero(has_label))


def open_train_and_validation(
    path: str | Sequence[str],
    label: str | None,
    validation: float | int,
    seed: int,
    group: str | None = None,
    exclude: str | Sequence[str] | None = None,
    where: str = "data.path",
    wanted: Wanted = EVERYTHING,
) -> tuple[ImageList, ImageList]:
    """Return labelled training and validation images.

    A folder that holds `train/` and one of `val/`, `valid/`, `validation/`, in any case, is taken
    as it is cut; anything else is cut by `split`.

    Raises:
        ConfigError: as `open_images` and `split`; the two folders have other classes; a folder
            that is cut in parts without one for validation.
    """
    images = with_labels(open_images(path, label, where, exclude, wanted), where, path)
    return _parts_or_split(images, path, validation, seed, group, where)


def _parts_or_split(
    images: ImageList,
    path: object,
    validation: float | int,
    seed: int,
    group: str | None,
    where: str,
) -> tuple[ImageList, ImageList]:
    parts = images.parts
    if not parts or len(parts) == 1:
        return split(images, validation, seed, group)
    if "train" in parts and "validation" in parts:
        return images.part("train"), images.part("validation")
    names = " and ".join(f"{name}/" for name in parts.values())
    train = parts.get("train", next(iter(parts.values())))
    raise ConfigError(
        f"{where}: {path!r} is cut in {names}, and none of them is for validation (val/); training "
        f"chooses nothing on test images unasked: name both, --data.path {path}/{train} "
        f"--data.val_path FOLDER, or {path}/{train} alone, of which a share is held back."
    )


def open_with_held_out(
    path: Any,
    label: str | None,
    share: float,
    seed: int,
    where: str,
    group: str | None = None,
    exclude: str | Sequence[str] | None = None,
    wanted: Wanted = EVERYTHING,
) -> tuple[ImageList, ImageList]:
    """Return images to train on and held-out ones, by class where there are labels.

    Raises:
        ConfigError: as `open_train_and_validation` and `split_unlabelled`.
    """
    images = open_images(path, label, where, exclude, wanted)
    if images.labels is not None:
        return _parts_or_split(images, path, share, seed, group, where)
    return split_unlabelled(images, share, seed, where, group)


def check_groups(train: ImageList, held_out: ImageList, group: str) -> None:
    """Raise ConfigError when images of one group lie on both sides."""
    groups = group_numbers([*train.paths, *held_out.paths], group)
    both = np.intersect1d(groups[: len(train)], groups[len(train) :])
    if len(both):
        example = train.paths[int(np.flatnonzero(groups[: len(train)] == both[0])[0])]
        raise ConfigError(
            f"data.group: {len(both)} groups of {group!r} have images in training and in "
            f"validation, such as that of {example!r}; move them to one side."
        )


def _by_class(images: ImageList) -> Iterator[tuple[str, list[int]]]:
    """Yield every class and the indices of its images."""
    assert isinstance(images.labels, Labels)
    assert images.classes is not None
    for label, name in enumerate(images.classes):
        yield name, np.flatnonzero(images.labels.array == label).tolist()


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
