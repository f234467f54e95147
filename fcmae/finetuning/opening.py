"""Which images a fine-tuning has: as its settings say; once it has begun, as its folder does."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fcmae.data import ImageList, open_images
from fcmae.data.holes import without_masks
from fcmae.data.path_list import Labels
from fcmae.data.recorded import Recalled
from fcmae.data.reopening import has_begun, recall_apart, recall_training
from fcmae.data.splits import open_labelled, open_validation, with_labels
from fcmae.errors import CheckpointError, ConfigError, DataError
from fcmae.finetuning.setup import AnyFinetuning, create_reading
from fcmae.runs.folder import RunFolder
from fcmae.settings.finetune import FinetuneConfig

Lists = tuple[ImageList, ImageList]  # for training and for validation


def open_or_recall(
    config: FinetuneConfig, given: Lists | None, *, is_begun: bool | None = None
) -> tuple[ImageList, ImageList, list[str]]:
    """Return the images for training and validation, and what is to be said of them.

    Args:
        config: of the fine-tuning.
        given: the images; None takes them as config.data says. A run that has begun keeps its own.
        is_begun: whether it has; None: when it has a checkpoint.

    Raises:
        ConfigError: as `open_labelled`.
        CheckpointError, DataError, DiskError: as `recall`; an image has no label any more.
    """
    folder, reading = RunFolder(config.run.dir), create_reading(config)
    if not (has_begun(folder) if is_begun is None else is_begun):
        lists = given or open_labelled(config.data, config.train.seed)
        train, kept_apart = (without_masks(images, reading) for images in lists)
        if given is not None or config.data.val_path is None:  # cut from one list
            return train, kept_apart, []
        others = without(kept_apart, train)
        return train, others, _overlap(config.data.val_path, len(kept_apart), len(others))
    data = config.data
    wanted = reading.wanted()
    found = (
        given[0]
        if given
        else open_images(data.path, data.label, exclude=data.exclude, wanted=wanted)
    )
    apart = found
    if given is not None:
        apart = given[1]
    elif data.val_path is not None:
        apart = open_images(data.val_path, None, "data.val_path", wanted=wanted)
    validation = recall_apart(folder.validation, folder, apart, "validation images")
    # Images that a draw left out, or that others chose, are no new ones.
    is_all_known = given is None and data.train_per_class is None
    known = validation if is_all_known else None
    recalled = recall_training(folder, found, known, data.max_skipped_share)
    train = _labelled(recalled.images, folder)
    if validation is None:  # version 0.1.0 did not record them
        images = given[1] if given else open_labelled(data, config.train.seed)[1]
        images = without_masks(images, reading)
        validation = Recalled(without(images, train), "")
    told = [recalled.told, validation.told]
    return train, _labelled(validation.images, folder), [text for text in told if text]


def _overlap(val_path: str, given: int, left: int) -> list[str]:
    """Say how many validation images are training images; raise ConfigError if all are."""
    if not left:
        raise ConfigError(
            f"data.val_path: all {given} images of {val_path!r} are training images; name others, "
            "or leave it out, and some of data.path are held back."
        )
    if left == given:
        return []
    return [f"{given - left} images of data.val_path are training images and are left out."]


def without(images: ImageList, others: ImageList) -> ImageList:
    """Return the images that are not among others, wherever both are named from."""
    known = set(map(os.path.abspath, others.paths))
    paths = map(os.path.abspath, images.paths)
    return images.select([index for index, path in enumerate(paths) if path not in known])


def _labelled(images: ImageList, folder: RunFolder) -> ImageList:
    """Return the images, or raise DataError when one has no label."""
    if images.labels is None or images.classes is None:
        raise CheckpointError(
            f"{folder.images}: the run's images have no labels in it, and those that data.path "
            "names now have none either; name the folder with one folder per class."
        )
    labels = np.asarray(Labels(images.labels).array)
    without = np.flatnonzero(labels < 0)
    if len(without):
        raise DataError(
            f"data.path: {len(without)} of the run's {len(images)} images have no label any more, "
            f"such as {images.paths[int(without[0])]!r}; put them back into the folder of their "
            "class."
        )
    return images


def images_to_evaluate(config: FinetuneConfig, classes: Sequence[str] | None) -> ImageList:
    """Return all images that are given for it: val_path, a part val/, or the whole of data.path.

    Where images of data.path trained the weights, those that were held back from them.

    Raises:
        ConfigError: as `open_labelled`.
        CheckpointError, DataError, DiskError: as `recall`.
    """
    data = config.data
    wanted = create_reading(config).wanted()
    if data.val_path is not None:
        return open_validation(data.val_path, classes, wanted)
    images = open_images(data.path, data.label, exclude=data.exclude, wanted=wanted)
    if "validation" in images.parts and "train" in images.parts:
        return open_labelled(data, config.train.seed)[1]
    known = known_to_weights(config, images)
    if known is None:
        return with_labels(images, "data.path", data.path)
    if known.held_back is None:
        return known.rest_of(open_labelled(data, config.train.seed)[1])
    return _labelled(known.held_back, known.folder)


class Known(NamedTuple):
    """Which images the fine-tuning knows that the weights come from.

    Attributes:
        folder: of that fine-tuning.
        trained: images that it learned from.
        held_back: images that it kept apart; None where its folder does not say.
    """

    folder: RunFolder
    trained: ImageList
    held_back: ImageList | None

    def rest_of(self, images: ImageList) -> ImageList:
        """Return the images that it did not learn from; raises DataError when there are none."""
        rest = without(images, self.trained)
        if not len(rest):
            raise DataError(
                f"data.path: model.weights learned from all {len(images)} images that could score "
                "them; name others as data.val_path."
            )
        return rest


def known_to_weights(config: AnyFinetuning, images: ImageList) -> Known | None:
    """Return what the weights know of `images`; None where they learned from none of them.

    Raises:
        CheckpointError, DataError, DiskError: as `recall`.
    """
    folder = _folder_of_weights(config)
    if folder is None:
        return None
    trained = recall_training(folder, images, None, 1.0).images
    if len(without(images, trained)) == len(images):
        return None
    kept = recall_apart(folder.validation, folder, images, "validation images")
    return Known(folder, trained, None if kept is None else kept.images)


def _folder_of_weights(config: AnyFinetuning) -> RunFolder | None:
    """Return the folder of the fine-tuning that the weights come from, if it is known."""
    source = Path(config.model.weights or config.run.dir)
    for path in (source, source.parent, source.parent.parent, Path(config.run.dir)):
        folder = RunFolder(path)
        if folder.images.is_file() and not folder.held_out.exists():
            return folder
    return None


def count_trained(run_dir: str, images: ImageList) -> int:
    """Return how many of the images the fine-tuning of a folder was trained on."""
    folder = RunFolder(run_dir)
    if not folder.images.is_file():
        return 0
    trained = recall_training(folder, images, None, 1.0).images
    return len(images) - len(without(images, trained))
