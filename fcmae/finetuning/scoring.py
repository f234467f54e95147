"""Evaluates a classifier on labelled images, in one process or many, or a stored one alone."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcmae.data import (
    EvaluationDataset,
    EvaluationTransform,
    ImageList,
    in_order,
    make_loader,
)
from fcmae.data.files import Problem
from fcmae.data.holes import without_masks
from fcmae.data.transfer import DeviceBatches
from fcmae.errors import CheckpointError, DataError, writing
from fcmae.evaluation import evaluating
from fcmae.evaluation.classification import (
    ClassificationScores,
    confusion_matrix,
    draw_confusion_matrix,
)
from fcmae.evaluation.segmentation import SegmentationScores
from fcmae.finetuning.opening import images_to_evaluate
from fcmae.finetuning.setup import (
    create_evaluation_transform,
    create_reading,
    variant_of,
    weights_metadata,
)
from fcmae.model.backbones import create_backbone
from fcmae.model.structure import LARGEST_SIZE_PX
from fcmae.runs.durable import write_text
from fcmae.runs.folder import RunFolder
from fcmae.runs.terminal import progress_bar
from fcmae.settings.auto import is_auto, with_values
from fcmae.settings.finetune import FinetuneConfig
from fcmae.settings.segmentation import SegmentationConfig
from fcmae.training.optimization import autocast, check_precision, set_tf32
from fcmae.training.processes import Processes
from fcmae.weights.loading import load_classifier
from sparse.whole import native_blocks

Settings = TypeVar("Settings", FinetuneConfig, SegmentationConfig)
Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


def evaluate_classifier(
    model: nn.Module,
    images: ImageList,
    transform: EvaluationTransform,
    config: FinetuneConfig,
    processes: Processes,
    autocast: Autocast = contextlib.nullcontext,
) -> tuple[ClassificationScores, list[Problem]]:
    """Return scores over all images, the same in every process, and the undecodable files.

    Each process takes every world_size-th batch; counts are summed, so that the split changes no
    accuracy.

    Args:
        model: on the device of `processes`; its mode is left as it was.
        images: with labels.
        transform: what the model is fed.
        config: of data, evaluation batches and readers.
        processes: this process and the others.
        autocast: context of the forward pass.

    Raises:
        DataError: no image could be decoded.
    """
    assert images.classes is not None
    num_classes = len(images.classes)
    counts, loss_sum, skipped = processes.in_each(
        lambda: _count(model, images, transform, config, processes, autocast)
    )
    summed = processes.sum(torch.cat([counts.flatten(), loss_sum.view(1)]).to(processes.device))
    everyones: Any = processes.gather(skipped)
    confusion = summed[:-1].view(num_classes, num_classes).round().long().cpu()
    if confusion.sum() == 0:
        first = f"; the first is {everyones[0][0]!r}: {everyones[0][1]}" if everyones else ""
        raise DataError(f"data.val_path: no validation image could be decoded{first}.")
    return ClassificationScores(confusion, float(summed[-1] / confusion.sum())), everyones


def _count(
    model: nn.Module,
    images: ImageList,
    transform: EvaluationTransform,
    config: FinetuneConfig,
    processes: Processes,
    autocast: Autocast,
) -> tuple[Tensor, Tensor, list[Any]]:
    """Return confusion [C, C], the sum of losses and the undecodable files of one process."""
    assert images.classes is not None
    num_classes = len(images.classes)
    data = config.data
    dataset = EvaluationDataset(images, transform, reading=create_reading(config))
    order = in_order(len(images), config.evaluate.batch_size)
    loader = make_loader(
        dataset,
        order[processes.rank :: processes.world_size],
        data.workers,
        timeout_seconds=data.timeout_seconds,
    )
    counts = torch.zeros(num_classes, num_classes, dtype=torch.float64)
    loss_sum = torch.zeros((), dtype=torch.float64)
    skipped: list[Any] = []
    with evaluating(model), torch.no_grad(), native_blocks(model):
        shown = progress_bar(
            loader, unit="batch", title="evaluating", is_shown=processes.is_main, is_brief=True
        )
        batches = DeviceBatches(shown, processes.device)
        for batch, on_device in batches:
            skipped += batch["skipped"]
            if not batch["path"]:  # nothing in it could be decoded
                continue
            with autocast():
                on_its_way = model(on_device["image"]).float()
            batches.read_ahead()  # before the host waits for what it asked for
            logits = on_its_way.cpu()
            counts += confusion_matrix(batch["label"], logits.argmax(dim=1), num_classes)
            loss_sum += F.cross_entropy(logits, batch["label"], reduction="sum").double()
    return counts, loss_sum, skipped


def best_weights(run_dir: str) -> Path:
    """Return the file in which a run keeps its best classifier."""
    return RunFolder(run_dir).export / "classifier.safetensors"


def evaluate_only(config: FinetuneConfig, processes: Processes) -> ClassificationScores:
    """Evaluate model.weights, or this run's best weights, on the validation images; train nothing.

    Writes confusion_matrix.png and scores.txt into run.dir/evaluation.

    Raises:
        CheckpointError: no such weights, or without a classifier for the images' classes.
        ConfigError, DataError: as `open_labelled`, or the results cannot be written.
    """
    source = config.model.weights or str(best_weights(config.run.dir))
    config = of_weights(config, source)
    classes = weights_metadata(config).get("classes")
    images = without_masks(images_to_evaluate(config, classes), create_reading(config))
    assert images.classes is not None
    if classes is not None and tuple(classes) != images.classes:
        raise CheckpointError(
            f"model.weights: {source} is for the classes {', '.join(classes)}, and the images "
            f"have {', '.join(images.classes)}; evaluate on images of the same classes."
        )
    model = create_backbone(
        config.model.name,
        in_chans=config.data.in_chans,
        stem_stride=config.model.stem_stride,
        num_classes=len(images.classes),
    )
    load_classifier(model, source)
    scores, skipped = evaluate_classifier(
        model.to(processes.device),
        images,
        create_evaluation_transform(config),
        config,
        processes,
        autocast_of(config, processes),
    )
    if processes.is_main:
        names = images.classes
        pictures = {"confusion_matrix.png": lambda to: draw_confusion_matrix(scores, names, to)}
        report_alone(scores, names, config, skipped, pictures)
    return scores


def of_weights(config: Settings, source: str) -> Settings:
    """Return the settings with these weights, and what they say: their model, and image size."""
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, weights=source))
    values: dict[str, object] = {"model.name": variant_of(config, 0)}
    if is_auto(config, "data.image_size"):
        usual = (LARGEST_SIZE_PX, LARGEST_SIZE_PX)
        values["data.image_size"] = tuple(weights_metadata(config).get("image_size", usual))
    known: Settings = with_values(config, values)
    return known


def autocast_of(config: Settings, processes: Processes) -> Autocast:
    """Return the context of forward passes as the evaluations of a run have it, and set TF32."""
    precision, device = config.train.precision, processes.device
    check_precision(precision, device)
    set_tf32(precision)
    return lambda: autocast(device, precision)


def report_alone(
    scores: ClassificationScores | SegmentationScores,
    classes: tuple[str, ...],
    config: FinetuneConfig | SegmentationConfig,
    skipped: Sequence[Problem],
    pictures: Mapping[str, Callable[[Path], object]],
) -> None:
    """Print the scores of model.weights; write them and pictures into run.dir/evaluation.

    Args:
        scores: of the validation images.
        classes: their names.
        config: of the evaluation.
        skipped: images that could not be used.
        pictures: {name of a file: what draws it}.
    """
    lines = [f"{path}: {reason}; left out." for path, reason in skipped]
    lines.append(f"{config.model.weights} on {scores.num_images} images:")
    text = "\n".join([*lines, scores.table(classes)])
    print(text)
    folder = Path(config.run.dir) / "evaluation"
    with writing(f"run.dir: {folder}", "choose a folder that you may write"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, draw in pictures.items():
            draw(folder / name)
        write_text(folder / "scores.txt", text + "\n")
