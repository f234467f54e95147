"""A linear probe as a classifier of timm: frozen encoder, its norm, the probe as its last layer.

timm pools, takes a layer norm and then the last layer. No linear layer undoes that norm, so the
probe that is saved is one of normed features; standardising these is part of its weights.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from timm.models.convnext import ConvNeXt
from torch import Tensor

from fcmae.errors import ConfigError, DataError, writing
from fcmae.evaluation.features import Features, evaluating
from fcmae.evaluation.linear_probe import fit_linear_probe
from fcmae.weights.encoder_info import EncoderInfo
from fcmae.weights.export import check_target, export_timm


def normed(encoder: Any, features: Features) -> Features:
    """Return features as the last layer of a timm classifier gets them: after `head.norm`.

    Args:
        encoder: a timm ConvNeXt, on any device.
        features: of it, as `pooled_features` makes them.
    """
    norm = encoder.head.norm
    device = next(encoder.parameters()).device
    with evaluating(encoder), torch.no_grad():
        vectors = norm(features.vectors.to(device)[:, :, None, None]).flatten(1)  # [N, D]
    return dataclasses.replace(features, vectors=vectors.float().cpu())


def create_classifier(
    encoder: ConvNeXt, features: Features, classes: tuple[str, ...], info: EncoderInfo
) -> tuple[ConvNeXt, EncoderInfo]:
    """Return a classifier that predicts as the probe trained on all `features` does.

    Args:
        encoder: frozen, on any device; not changed.
        features: of it, normed, with labels; images without a label are left out.
        classes: names of the labels.
        info: of the encoder.

    Returns:
        The classifier, on the CPU in evaluation mode, and how it is built and fed.

    Raises:
        DataError: a class has no image.
    """
    labelled = features.labels >= 0
    vectors, labels = features.vectors[labelled], features.labels[labelled]
    missing = [name for label, name in enumerate(classes) if not (labels == label).any()]
    if missing or len(classes) < 2:
        raise DataError(
            f"DATA: no image of {', '.join(missing) or 'a second class'} can be used; expected two "
            "classes or more with an image each."
        )
    probe = fit_linear_probe(vectors, labels)
    model = info.create_model(len(classes)).eval()
    state: dict[str, Tensor] = {name: v.cpu() for name, v in encoder.state_dict().items()}
    head = {"head.fc.weight": probe.weight.float(), "head.fc.bias": probe.bias.float()}
    model.load_state_dict({**state, **head}, strict=True)
    return model, dataclasses.replace(info, classes=classes)


def check_file(path: str) -> None:
    """Raise ConfigError unless a classifier can be written under this name."""
    if Path(path).suffix != ".safetensors":
        raise ConfigError(
            f"--save: got {path!r}, expected a name that ends in .safetensors; fcmae convert "
            "turns the file into the other formats."
        )
    check_target(path, "timm")


def save_classifier(
    encoder: ConvNeXt,
    features: Features,
    classes: tuple[str, ...],
    info: EncoderInfo,
    path: str,
    *,
    crop_pct: float,
) -> str:
    """Write `create_classifier`'s model as fine-tuning writes its own; return what to tell.

    Raises:
        ConfigError: the file cannot be written.
        DataError: as `create_classifier`.
    """
    model, described = create_classifier(encoder, features, classes, info)
    metadata = described.to_metadata() | {"crop_pct": str(crop_pct)}
    with writing(f"--save: {path}"):
        told = export_timm(model, Path(path), described, metadata)
    count = int((features.labels >= 0).sum())
    return (
        f"{told}\nIt tells {', '.join(classes)} apart by a linear layer on the frozen encoder, "
        f"trained on all {count} labelled images. Load it with: {described.timm_call(Path(path))}"
    )
