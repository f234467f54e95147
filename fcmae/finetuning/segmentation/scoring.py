"""Scores a segmenter on whole pictures, in one process or many, or a stored one alone."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fcmae.data import make_loader
from fcmae.data.decoding import Decoded
from fcmae.data.files import Problem
from fcmae.data.label_masks import IGNORED, MaskClasses
from fcmae.errors import CheckpointError, DataError
from fcmae.evaluation import evaluating
from fcmae.evaluation.segmentation import (
    SegmentationScores,
    confusion_of,
    draw_pixel_confusion,
)
from fcmae.evaluation.segmentation_pictures import (
    SegmentedPicture,
    draw_segmentations,
    segmented,
)
from fcmae.evaluation.tiles import predict_bands
from fcmae.finetuning.scoring import Autocast, autocast_of, of_weights, report_alone
from fcmae.finetuning.segmentation.data import Pairs, WholePictures
from fcmae.finetuning.segmentation.opening import masked_to_evaluate
from fcmae.finetuning.segmentation.setup import create_normalisation, create_tiling
from fcmae.finetuning.setup import create_reading
from fcmae.runs.terminal import progress_bar
from fcmae.settings.segmentation import SegmentationConfig
from fcmae.training.processes import Processes
from fcmae.weights.segmenter import BEST_FILE, load_segmenter, segmenter_file

LEAST_PROBABILITY = 1e-7  # in the logarithm of the cross entropy


class Evaluation(NamedTuple):
    """What an evaluation found: the scores, unusable files, and pictures to be drawn."""

    scores: SegmentationScores
    skipped: list[Problem]
    pictures: list[SegmentedPicture]


def evaluate_segmenter(
    network: nn.Module,
    pairs: Pairs,
    config: SegmentationConfig,
    processes: Processes,
    autocast: Autocast = contextlib.nullcontext,
) -> Evaluation:
    """Return scores over all pictures, the same in every process, and the unusable files.

    Each process takes every world_size-th picture. What is known of a picture depends on it alone
    and sums are made in the order of the pictures, so that the split changes no number.

    Args:
        network: on the device of `processes`; its mode is left as it was.
        pairs: pictures with masks.
        config: of data, tiles and readers.
        processes: this process and the others.
        autocast: context of the forward pass.

    Raises:
        DataError: no picture could be used.
    """
    mine = processes.in_each(lambda: _score_some(network, pairs, config, processes, autocast))
    everyones: Any = processes.gather([mine])
    found = sorted((one for part in everyones for one in part[0]), key=lambda one: one[0])
    skipped = [problem for part in everyones for problem in part[1]]
    pictures = sorted((one for part in everyones for one in part[2]), key=lambda one: one[0])
    if not any(int(confusion.sum()) for _, confusion, _ in found):
        first = f"; the first is {skipped[0][0]!r}: {skipped[0][1]}" if skipped else ""
        raise DataError(f"data.val_path: no validation picture could be scored{first}.")
    scores = SegmentationScores.of_images(
        [confusion for _, confusion, _ in found], [loss for _, _, loss in found]
    )
    return Evaluation(scores, skipped, [picture for _, picture in pictures])


def _score_some(
    network: nn.Module,
    pairs: Pairs,
    config: SegmentationConfig,
    processes: Processes,
    autocast: Autocast,
) -> tuple[list[tuple[int, Tensor, float]], list[Problem], list[tuple[int, SegmentedPicture]]]:
    """Return (index, confusion, sum of cross entropy) of this process's pictures, and the rest."""
    indices = [[index] for index in range(len(pairs.images))]
    loader = make_loader(
        WholePictures(pairs, create_reading(config)),
        indices[processes.rank :: processes.world_size],
        config.data.workers,
        timeout_seconds=config.data.timeout_seconds,
    )
    normalise, tiling = create_normalisation(config), create_tiling(config)
    num_classes = len(pairs.classes)
    found, skipped, pictures = [], [], []
    with evaluating(network):
        for batch in progress_bar(
            loader, unit="picture", title="evaluating", is_shown=processes.is_main, is_brief=True
        ):
            skipped += batch["skipped"]
            if not batch["path"]:
                continue
            valid = batch["valid"][0] if "valid" in batch else None
            picture, truth = Decoded(batch["image"][0], valid), batch["mask"][0]
            index, name = int(batch["index"][0]), batch["path"][0]
            confusion = torch.zeros(num_classes, num_classes, dtype=torch.long)
            loss, prediction = 0.0, torch.empty_like(truth)
            bands = predict_bands(network, picture, normalise, tiling, processes.device, autocast)
            for top, shares in bands:
                rows = slice(top, top + shares.shape[1])
                named = shares.argmax(dim=0)
                prediction[rows] = named.to(prediction.dtype)
                confusion += confusion_of(named, truth[rows], num_classes, IGNORED)
                loss += _cross_entropy(shares, truth[rows])
            found.append((index, confusion, loss))
            if index < config.evaluate.num_pictures:
                iou = SegmentationScores.of_images([confusion], [loss]).mean_iou
                pictures.append((index, segmented(picture, truth, prediction, name, iou)))
    return found, skipped, pictures


def _cross_entropy(shares: Tensor, truth: Tensor) -> float:
    """Return the sum over the pixels that have a class."""
    known = truth != IGNORED
    right = shares.gather(0, truth.long().clamp(min=0)[None])[0][known]
    return float(-right.clamp(min=LEAST_PROBABILITY).log().double().sum())


def evaluate_only(config: SegmentationConfig, processes: Processes) -> SegmentationScores:
    """Evaluate model.weights, or this run's best weights, on the validation images; train nothing.

    Writes confusion_matrix.png, scores.txt and predictions.png into run.dir/evaluation.

    Raises:
        CheckpointError: no such weights, or for other classes than the masks have.
        ConfigError, DataError: as `open_masked`, or the results cannot be written.
    """
    source = config.model.weights or config.run.dir
    if segmenter_file(source) is None:
        raise CheckpointError(
            f"model.weights: {source} holds no segmenter; name the folder of a run with task: "
            f"segmentation, or its export/{BEST_FILE}."
        )
    network, info = load_segmenter(source)
    config = of_weights(config, source)
    names = info.classes or ()
    given = MaskClasses.of_settings(config.data.classes, config.data.ignore_index)
    if given is not None and given.names != names:
        raise CheckpointError(
            f"model.weights: {source} is for the classes {', '.join(names)}, and data.classes "
            f"names {', '.join(given.names)}; evaluate on masks of the same classes."
        )
    classes = given or MaskClasses(names, info.mask_values, _ignored(config))
    validation, masks = masked_to_evaluate(config)
    counts = torch.zeros(len(validation), len(classes)).numpy()
    found = evaluate_segmenter(
        network.to(processes.device),
        Pairs(validation, masks, classes, counts),
        config,
        processes,
        autocast_of(config, processes),
    )
    if processes.is_main:
        scores, drawn = found.scores, found.pictures
        pictures = {"confusion_matrix.png": lambda to: draw_pixel_confusion(scores, names, to)}
        if drawn:
            pictures["predictions.png"] = lambda to: draw_segmentations(drawn, names, to)
        report_alone(scores, names, config, found.skipped, pictures)
    return found.scores


def _ignored(config: SegmentationConfig) -> Any:
    index = config.data.ignore_index
    return tuple(index) if isinstance(index, list) else index
