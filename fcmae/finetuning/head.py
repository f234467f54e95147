"""Where the classifier of a fine-tuning starts: as a linear probe of the features it gets.

It sees the pictures as evaluation prepares them and as training changes them: a probe of the first
alone is wrong about the second (68 % of the quickstart's training crops against 89 % of its
validation images), and the first steps would undo it together with the features.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from timm.models.convnext import ConvNeXt
from torch import Tensor

from fcmae.data import make_loader
from fcmae.evaluation import Features, extract_together, fit_linear_probe
from fcmae.evaluation.probe_classifier import normed
from fcmae.finetuning.data import FinetuneDataset
from fcmae.finetuning.frozen import BATCH_IMAGES, START, FrozenFeatures
from fcmae.settings.finetune import FinetuneConfig
from fcmae.training.processes import Processes

MOST_VECTORS = 2000  # that the probe sees: fitting it takes seconds
VIEWS = 4  # of an image as training changes it, beside the one of evaluation


def start_at_probe(
    model: ConvNeXt,
    features: FrozenFeatures,
    dataset: FinetuneDataset,
    config: FinetuneConfig,
    processes: Processes,
) -> str:
    """Let the last layer of `model` be a linear probe; return what to tell. Every process calls it.

    Source: Kumar et al. 2022 (arXiv:2202.10054), linear probing then fine-tuning.

    Args:
        model: the classifier before its first step, on its device; its last layer is changed.
        features: of the model, as START.
        dataset: the augmented training images.
        config: of the fine-tuning.
        processes: this process and the others; the main one fits.

    Raises:
        DataError: no image can be decoded.
    """
    found: Any = processes.from_main(lambda: _fit(model, features, dataset, config, processes))
    layer: Any = model.head.fc
    with torch.no_grad():
        for name, value in found["state"].items():
            getattr(layer, name).copy_(value)
    told: str = found["told"]
    return told


def _fit(
    model: ConvNeXt,
    features: FrozenFeatures,
    dataset: FinetuneDataset,
    config: FinetuneConfig,
    processes: Processes,
) -> dict[str, Any]:
    prepared = features.of_labelled(dataset.images, config.train.seed)[START]
    seen, views = with_views(model, prepared, dataset, config, processes.device)
    state = probe_state(model, normed(model, seen))
    if state is None:
        told = "the classifier starts at random: its images are of a single class, or not finite."
        return {"state": {}, "told": told}
    count = len(seen.labels) // (1 + views)
    told = (
        f"the classifier starts as a linear probe of the start's features of {count} labelled "
        f"images, {views} {'crop' if views == 1 else 'crops'} of each beside it."
    )
    return {"state": state, "told": told}


def with_views(
    model: ConvNeXt,
    prepared: Features,
    dataset: FinetuneDataset,
    config: FinetuneConfig,
    device: torch.device,
) -> tuple[Features, int]:
    """Return features of labelled images and of their first crops in training.

    What belongs to an image stands together: the folds by which a probe chooses its penalty then
    hold out whole images.

    Args:
        model: the classifier, on the device.
        prepared: of images as evaluation prepares them, of which the first are taken.
        dataset: the augmented training images.
        config: of the fine-tuning.
        device: of the model.

    Returns:
        The features, and how many crops each image has in them.
    """
    count = min(len(prepared.paths), MOST_VECTORS // 2)
    views = min(VIEWS, MOST_VECTORS // count - 1)
    place_of = {path: place for place, path in enumerate(dataset.images.paths)}
    paths = prepared.paths[:count]
    keys = [(view, place_of[path]) for path in paths for view in range(views)]
    loader = make_loader(
        dataset,
        [keys[start : start + BATCH_IMAGES] for start in range(0, len(keys), BATCH_IMAGES)],
        config.data.workers,
        timeout_seconds=config.data.timeout_seconds,
    )
    crops = extract_together({START: model}, loader, device)[START]
    vectors = [prepared.vectors[:count, None], crops.vectors.view(count, views, -1)]  # [N, V, D]
    labels = [prepared.labels[:count, None], crops.labels.view(count, views)]
    found = dataclasses.replace(
        prepared,
        vectors=torch.cat(vectors, dim=1).flatten(0, 1),
        labels=torch.cat(labels, dim=1).flatten(),
        paths=tuple(path for path in paths for _ in range(1 + views)),
    )
    return found, views


def probe_state(model: ConvNeXt, known: Features) -> dict[str, Tensor] | None:
    """Return weight and bias of the last layer with which `model` answers as the probe does.

    A class without an image keeps its row.

    Args:
        model: the classifier.
        known: normed features with labels.

    Returns:
        {"weight": float32 [C, D], "bias": float32 [C]}; None without two classes, or where
        features are not finite.
    """
    if len(known.labels.unique()) < 2 or not known.vectors.isfinite().all():
        return None
    probe = fit_linear_probe(known.vectors, known.labels)
    layer: Any = model.head.fc
    weight, bias = layer.weight.detach().cpu().clone(), layer.bias.detach().cpu().clone()
    weight[probe.classes] = probe.weight.float()
    bias[probe.classes] = probe.bias.float()
    return {"weight": weight, "bias": bias}
