"""Which images and masks a segmentation has: by its settings; once begun, by its folder."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import NamedTuple

from fcmae.data import ImageList, open_images
from fcmae.data.files import Problem
from fcmae.data.label_masks import MaskClasses
from fcmae.data.mask_pairs import MaskPlace, missing_sentence, pair
from fcmae.data.mask_survey import MaskSurvey, read_survey, survey_masks
from fcmae.data.reopening import has_begun, recall_apart, recall_training
from fcmae.data.splits import check_groups, split_unlabelled
from fcmae.errors import CheckpointError, ConfigError, DataError
from fcmae.finetuning.opening import known_to_weights
from fcmae.finetuning.segmentation.data import Pairs
from fcmae.finetuning.setup import create_reading
from fcmae.runs.folder import RunFolder
from fcmae.settings.segmentation import SegmentationConfig


class MaskedImages(NamedTuple):
    """Images with masks to train on and to score with.

    train, validation: the images.
    masks: {image: mask} of both.
    survey: what the masks hold.
    told: sentences about them.
    """

    train: ImageList
    validation: ImageList
    masks: dict[str, str]
    survey: MaskSurvey
    told: list[str]

    def pairs(self, images: ImageList) -> Pairs:
        """Return some of the images with their masks."""
        counts = self.survey.counts(images.paths)
        return Pairs(images, self.masks, self.survey.classes, counts)


def open_masked(config: SegmentationConfig, *, is_begun: bool | None = None) -> MaskedImages:
    """Return the images and masks of a run; every mask of a new one is read.

    Args:
        config: of the run.
        is_begun: whether it has recorded them; None: when it has a checkpoint.

    Raises:
        ConfigError: no images or masks, too few, or masks among the images.
        DataError: too many images without a mask, or files that cannot be read; masks of other
            sizes or with unknown values; one class only.
        CheckpointError, DiskError: as `recall`, of a run that has begun.
    """
    folder = RunFolder(config.run.dir)
    recorded = has_begun(folder) if is_begun is None else is_begun
    return _recall(config, folder) if recorded else _open(config, *find_masked(config))


def place_of(config: SegmentationConfig, *, validation: bool = False) -> MaskPlace:
    """Return where the masks of the images for training, or of data.val_path, lie."""
    data = config.data
    if validation and data.val_path is not None:
        if data.val_masks is None and data.masks is not None and not data.mask_suffix:
            raise ConfigError(
                "data.val_masks: not given beside data.val_path; name the folder of the masks of "
                "the validation images."
            )
        return MaskPlace(data.val_masks, data.mask_suffix, "data.val_masks")
    return MaskPlace(data.masks, data.mask_suffix)


def _find(
    config: SegmentationConfig, path: str | list[str], where: str, place: MaskPlace
) -> tuple[ImageList, dict[str, str], list[str]]:
    exclude = config.data.exclude if where == "data.path" else None
    wanted = create_reading(config).wanted()
    return pair(open_images(path, None, where, exclude, wanted), place)


def find_masked(
    config: SegmentationConfig,
) -> tuple[ImageList, ImageList, dict[str, str], list[str]]:
    """Return images for training and validation, {image: mask}, and the images without a mask.

    Raises:
        ConfigError: as `open_masked`.
    """
    data = config.data
    images, masks, missing = _find(config, data.path, "data.path", place_of(config))
    if data.val_path is not None:
        place = place_of(config, validation=True)
        apart, others, more = _find(config, data.val_path, "data.val_path", place)
        masks, missing = {**masks, **others}, missing + more
        if "train" in images.parts:
            images = images.part("train")
    elif "train" in images.parts and "validation" in images.parts:
        images, apart = images.part("train"), images.part("validation")
    else:
        images, apart = split_unlabelled(images, data.val_share, data.split_seed, group=data.group)
    if data.group is not None:
        check_groups(images, apart, data.group)
    return images, apart, masks, missing


def masked_to_evaluate(config: SegmentationConfig) -> tuple[ImageList, dict[str, str]]:
    """Return the images that are given for it and {image: mask}: of val_path, a part val/, or all.

    Where images of data.path trained the weights, those that were held back from them.

    Raises:
        ConfigError: as `open_masked`.
        CheckpointError, DataError, DiskError: as `recall`.
    """
    data = config.data
    if data.val_path is not None:
        _, validation, masks, _ = find_masked(config)
        return validation, masks
    images, masks, _ = _find(config, data.path, "data.path", place_of(config))
    if "validation" in images.parts and "train" in images.parts:
        return images.part("validation"), masks
    known = known_to_weights(config, images)
    if known is None:
        return images, masks
    if known.held_back is None:
        return known.rest_of(images), masks
    return known.held_back, pair(known.held_back, place_of(config))[1]


def open_masked_among(
    config: SegmentationConfig, train: ImageList, validation: ImageList
) -> MaskedImages:
    """Return which images of two lists have masks where config.data says; every mask is read.

    Args:
        config: of the run.
        train, validation: images of data.path, by absolute paths.

    Raises:
        ConfigError, DataError: as `open_masked`.
    """
    _, masks, _ = _find(config, config.data.path, "data.path", place_of(config))
    by_path = {os.path.abspath(image): mask for image, mask in masks.items()}
    place = place_of(config)
    missing = [
        path
        for path in (*train.paths, *validation.paths)
        if path not in by_path and not place.is_named_as_mask(path)
    ]
    kept = [
        dataclasses.replace(
            images.select([n for n, path in enumerate(images.paths) if path in by_path]),
            labels=None,
            classes=None,
        )
        for images in (train, validation)
    ]
    wanted = {path: by_path[path] for images in kept for path in images.paths}
    return _open(config, kept[0], kept[1], wanted, missing)


def _open(
    config: SegmentationConfig,
    train: ImageList,
    validation: ImageList,
    masks: dict[str, str],
    missing: Sequence[str],
) -> MaskedImages:
    data = config.data
    told = []
    if missing:
        share = len(missing) / (len(missing) + len(masks))
        if share > data.max_skipped_share:
            raise DataError(
                f"data.masks: {missing_sentence(missing)}, which is more than "
                f"data.max_skipped_share {data.max_skipped_share:.1%}; add them, leave the images "
                "out by data.exclude, or raise that share."
            )
        told.append(f"{missing_sentence(missing)}; left out.")
    given = MaskClasses.of_settings(data.classes, data.ignore_index)
    survey, problems = survey_masks(masks, given, data.ignore_index, create_reading(config))
    if problems:
        _check_share(problems, len(masks), data.max_skipped_share)
        told += [f"{path!r} {reason}; left out." for path, reason in problems]
        train, validation = (
            images.select([n for n, path in enumerate(images.paths) if path in survey.pixels])
            for images in (train, validation)
        )
    for name, images in (("training", train), ("validation", validation)):
        if not len(images):
            raise ConfigError(f"data.path: no image is left for {name}; add images with masks.")
    told.append(survey.sentence(train.paths))
    return MaskedImages(train, validation, masks, survey, told)


def _check_share(problems: Sequence[Problem], count: int, most: float) -> None:
    if len(problems) > most * count:
        path, reason = problems[0]
        raise DataError(
            f"data.masks: {len(problems)} of {count} images or masks cannot be read, which is more "
            f"than data.max_skipped_share {most:.1%}; the first is {path!r}: {reason}. Remove or "
            "repair them."
        )


def _recall(config: SegmentationConfig, folder: RunFolder) -> MaskedImages:
    data = config.data
    wanted = create_reading(config).wanted()
    found = open_images(data.path, None, exclude=data.exclude, wanted=wanted)
    apart = found
    if data.val_path is not None:
        apart = open_images(data.val_path, None, "data.val_path", wanted=wanted)
    bare = [dataclasses.replace(images, labels=None, classes=None) for images in (found, apart)]
    validation = recall_apart(folder.validation, folder, bare[1], "validation images")
    if validation is None:
        raise CheckpointError(
            f"{folder.validation}: is missing, and without it the run does not know its validation "
            "images; restore the file, or start again in another run.dir."
        )
    has_mask = set(pair(bare[0], place_of(config))[0].paths)
    known = [path for path in found.paths if path not in has_mask]  # no new ones to learn from
    apart = ImageList((*validation.images.paths, *known))
    train = recall_training(
        folder, bare[0], validation._replace(images=apart), data.max_skipped_share
    )
    masks = pair(train.images, place_of(config))[1]
    masks |= pair(validation.images, place_of(config, validation=True))[1]
    lists = (train.images, validation.images)
    survey = read_survey(folder.masks, [images.paths for images in lists])
    told = [text for text in (train.told, validation.told) if text]
    return MaskedImages(*lists, masks, survey, told)
