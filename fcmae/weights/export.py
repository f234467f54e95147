"""Writes a pretrained encoder as a plain file that others load, and proves that it is the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fcmae.errors import CheckpointError, ConfigError
from fcmae.model.autoencoder import FCMAE
from fcmae.runs.durable import write_atomically
from fcmae.settings.pretrain import PretrainConfig
from fcmae.weights.export_layouts import (
    export_authors_dense,
    export_authors_fcmae,
    export_authors_sparse,
    export_huggingface,
)
from fcmae.weights.export_onnx import export_onnx
from fcmae.weights.info import EncoderInfo

# Share of the largest output that a reloaded model may differ by; on one machine it is 0.
TOLERANCE = 1e-5
COMPARED_IMAGES = 2


def export_run_encoder(config: PretrainConfig, model: FCMAE, step: int, path: Path) -> str:
    """Write the encoder of a run for timm and return a sentence that says so; see `export_timm`."""
    return export_timm(model.encoder, path, EncoderInfo.of_run(config, model, step))


def export_timm(encoder: nn.Module, path: Path, info: EncoderInfo) -> str:
    """Write the encoder as safetensors with metadata, and return a sentence that says so.

    The file holds float32 weights under timm's names, with `head.norm`, which pretraining leaves
    at its start. Before it takes its place it is loaded into a fresh timm model, strictly, and
    both are compared on random images.

    Args:
        encoder: a dense timm ConvNeXt, with a classifier or without, on any device; not changed.
        path: the file; its folder is created; replaced as a whole.
        info: what goes into the metadata.

    Raises:
        CheckpointError: `info` describes another model, or the reloaded one differs; nothing is
            written then.
    """
    original = copy.deepcopy(encoder).cpu().float().eval()
    weights = {name: value.contiguous() for name, value in original.state_dict().items()}
    largest = 0.0

    def write(partial: Path) -> None:
        nonlocal largest
        save_file(weights, partial, metadata=info.to_metadata())
        reloaded = info.create_model(getattr(original, "num_classes", 0))
        try:
            reloaded.load_state_dict(load_file(partial), strict=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:500]
            raise CheckpointError(
                f"export: the encoder is no {info.model_name} with {info.in_chans} channels and "
                f"a stem stride of {info.stem_stride} ({reason}); nothing was written."
            ) from error
        largest = largest_difference(original, reloaded.eval(), info)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)
    return (
        f"{path}: written and loaded back into a fresh timm model; the largest difference of "
        f"features on {COMPARED_IMAGES} random images is {largest:.1e}."
    )


@torch.no_grad()
def largest_difference(original: nn.Module, reloaded: nn.Module, info: EncoderInfo) -> float:
    """Return the largest absolute difference of feature maps and pooled output, random images.

    Raises:
        CheckpointError: it exceeds TOLERANCE times the largest value, or is not finite.
    """
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(COMPARED_IMAGES, info.in_chans, *info.image_size, generator=rng)
    largest = 0.0
    for expected, found in zip(_outputs(original, images), _outputs(reloaded, images), strict=True):
        gap = float((expected - found).abs().max())
        allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
        if not gap <= allowed:  # also when it is NaN
            raise CheckpointError(
                f"export: the reloaded {info.model_name} differs from the encoder by {gap:.3g} "
                f"on random images, expected {allowed:.1g} at most; nothing was written. Weights "
                "that are not finite cause this: look at the run's loss."
            )
        largest = max(largest, gap)
    return largest


def _outputs(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last feature map and what timm pools and normalises from it."""
    features = model.forward_features(images)  # type: ignore[operator]
    return features, model.forward_head(features)  # type: ignore[operator]


@dataclass(frozen=True)
class ExportFormat:
    """One way to write an encoder, or a classifier.

    Attributes:
        write: of (model, path, info); checks its own result and returns what to print.
        file_name: default name in the run's export folder, after `encoder` or `classifier`.
        takes_decoder: whether `write` is given the whole FCMAE instead of its encoder.
    """

    write: Callable[[nn.Module, Path, EncoderInfo], str]
    file_name: str
    takes_decoder: bool = False


FORMATS = {
    "timm": ExportFormat(export_timm, ".safetensors"),
    "huggingface": ExportFormat(export_huggingface, "-huggingface"),
    "onnx": ExportFormat(export_onnx, ".onnx"),
    "authors-dense": ExportFormat(export_authors_dense, "-authors-dense.pth"),
    "authors-sparse": ExportFormat(export_authors_sparse, "-authors-sparse.pth"),
    "authors-fcmae": ExportFormat(export_authors_fcmae, "-authors-fcmae.pth", takes_decoder=True),
}


def find_format(name: str) -> ExportFormat:
    """Return one of FORMATS, or raise ConfigError that lists them."""
    if name not in FORMATS:
        raise ConfigError(f"--to: got {name!r}, expected one of {', '.join(FORMATS)}.")
    return FORMATS[name]


def export(model: nn.Module, format_name: str, path: Path, info: EncoderInfo) -> str:
    """Write a model to `path` in one of FORMATS and return what to tell the user.

    Args:
        model: encoder or classifier of timm; the whole FCMAE where the format takes its decoder.
        format_name: one of FORMATS.
        path: file or, for huggingface, folder.
        info: what goes into the metadata.

    Raises:
        ConfigError: unknown format, or the file cannot be written there.
        CheckpointError: what was written is not the same model; nothing is left then.
    """
    chosen = find_format(format_name)
    try:
        return chosen.write(model, path, info)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"--output: {str(path)!r} cannot be written ({reason}); name another file."
        ) from error
