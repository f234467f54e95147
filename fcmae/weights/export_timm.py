"""Writes an encoder or a classifier for timm: one file, or a folder that libraries load by name.

Nothing takes its place before timm has loaded it and computed the same.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from fcmae.data.augmentation import WARP_FROM_PX
from fcmae.errors import CheckpointError
from fcmae.randomness import seeded
from fcmae.runs.durable import write_atomically, write_files
from fcmae.weights.encoder_info import EncoderInfo
from fcmae.weights.files import load_state_dict_file, save_state_dict_file
from fcmae.weights.proof import largest_difference

COMPARED_IMAGES = 2


def export_timm(
    encoder: nn.Module, path: Path, info: EncoderInfo, metadata: Mapping[str, str] | None = None
) -> str:
    """Write the encoder with metadata, and return a sentence that says so.

    The file holds float32 weights under timm's names, with `head.norm`, which pretraining leaves
    at its start. Before it takes its place it is loaded into a fresh timm model, strictly, and
    both are compared on random images.

    Args:
        encoder: a dense timm ConvNeXt, with a classifier or without, on any device; not changed.
        path: the file; its folder is created; replaced as a whole.
        info: how timm builds it.
        metadata: texts to keep with the weights; by default those of `info`.

    Raises:
        CheckpointError: `info` describes another model, or the reloaded one differs; nothing is
            written then.
    """
    original = _as_exported(encoder)
    weights = _weights(original)
    largest = 0.0

    def write(partial: Path) -> None:
        nonlocal largest
        save_state_dict_file(weights, partial, metadata or info.to_metadata())
        largest = _largest_of_file(original, partial, info)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)
    return (
        f"{path}: written and loaded back into a fresh timm model; the largest difference of "
        f"features on {COMPARED_IMAGES} random images is {largest:.1e} of the largest value."
    )


def export_timm_folder(
    model: nn.Module,
    folder: Path,
    info: EncoderInfo,
    metadata: Mapping[str, str] | None = None,
    beside: Mapping[str, bytes] | None = None,
) -> str:
    """Write a folder that timm and whatever calls timm load by name; return a sentence about it.

    It holds config.json, model.safetensors and what is given to lie `beside` them, such as a model
    card. Before the files take their place, timm loads the folder as its users do, as a model and
    as feature maps, and both are compared with `model` on random images.

    Args:
        model: a dense timm ConvNeXt, with a classifier or without, on any device; not changed.
        folder: created; other files in it are left alone.
        info: how timm builds and feeds it.
        metadata: texts to keep with the weights; by default those of `info`.
        beside: content of more files by name.

    Raises:
        CheckpointError: `info` describes another model, or the loaded one differs; nothing is
            written then.
        OSError: the folder cannot be written.
    """
    original = _as_exported(model)
    weights = _weights(original)

    def write(partial: Path) -> float:
        file = partial / "model.safetensors"
        save_state_dict_file(weights, file, metadata or info.to_metadata())
        config = folder_config(info, original)
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name, content in (beside or {}).items():
            (partial / name).write_bytes(content)
        _largest_of_file(original, file, info)  # first: it knows how to say what does not fit
        with seeded(0):
            loaded = timm.create_model(f"local-dir:{partial}", pretrained=True).eval()
            maps = timm.create_model(f"local-dir:{partial}", pretrained=True, features_only=True)
        return max(_largest(original, loaded, info), _largest_of_maps(original, maps.eval(), info))

    largest = write_files(folder, write)
    return (
        f"{folder}: written and loaded by timm, also as feature maps; the largest difference of "
        f"features on {COMPARED_IMAGES} random images is {largest:.1e} of the largest value."
    )


def folder_config(info: EncoderInfo, model: Any) -> dict[str, Any]:
    """Return what config.json says: how timm builds `model`, and how it is fed.

    `first_conv` is null: versions of timm before 1.0.31 silently draw the stem anew for 4 channels
    where it is named.
    """
    is_warping = min(info.image_size) >= WARP_FROM_PX
    arguments = {"in_chans": info.in_chans}
    if info.stem_stride != 4:
        arguments["patch_size"] = info.stem_stride
    config = {
        "architecture": info.model_name,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [info.in_chans, *info.image_size],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0 if is_warping else info.crop_pct,
            "crop_mode": "squash" if is_warping else "center",
            "mean": list(info.mean),
            "std": list(info.std),
            "num_classes": model.num_classes,
            "first_conv": None,
            "classifier": "head.fc",
        },
    }
    return config | ({"label_names": list(info.classes)} if info.classes else {})


@torch.no_grad()
def _largest(original: nn.Module, reloaded: nn.Module, info: EncoderInfo) -> float:
    images = _random_images(info)
    expected, found = _outputs(original, images), _outputs(reloaded, images)
    return largest_difference(expected, found, f"the reloaded {info.model_name}", "the encoder")


@torch.no_grad()
def _largest_of_maps(original: Any, maps: nn.Module, info: EncoderInfo) -> float:
    images = _random_images(info)
    expected = {"feature maps": original.stages(original.stem(images))}
    found = {"feature maps": maps(images)[-1]}
    return largest_difference(expected, found, f"the loaded {info.model_name}", "the encoder")


def _largest_of_file(original: nn.Module, file: Path, info: EncoderInfo) -> float:
    reloaded = info.create_model(getattr(original, "num_classes", 0))
    try:
        reloaded.load_state_dict(load_state_dict_file(file), strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:500]
        raise CheckpointError(
            f"export: the encoder is no {info.model_name} with {info.in_chans} channels and "
            f"a stem stride of {info.stem_stride} ({reason}); nothing was written."
        ) from error
    return _largest(original, reloaded.eval(), info)


def _random_images(info: EncoderInfo) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(COMPARED_IMAGES, info.in_chans, *info.image_size, generator=rng)


def _as_exported(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).cpu().float().eval()


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in model.state_dict().items()}


def _outputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the last feature map and what timm pools and normalises from it."""
    features = model.forward_features(images)  # type: ignore[operator]
    return {"features": features, "pooled": model.forward_head(features)}  # type: ignore[operator]
