"""Writes a pretrained encoder as a plain file that others load, and proves that it is the same."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from fcmae import __version__
from fcmae.backbones import create_backbone
from fcmae.config import PretrainConfig, image_height_width
from fcmae.durable import write_atomically
from fcmae.errors import CheckpointError, ConfigError
from fcmae.model import FCMAE
from fcmae.pretraining_setup import mean_and_std

# Share of the largest output that a reloaded model may differ by; on one machine it is 0.
TOLERANCE = 1e-5
COMPARED_IMAGES = 2


@dataclass(frozen=True, kw_only=True)
class EncoderInfo:
    """What one must know to use an encoder; written into the file's metadata.

    Attributes:
        model_name: of timm.
        in_chans: image channels.
        stem_stride: pixels per cell of the stem.
        image_size: (height, width) of pretraining, px.
        mean, std: per channel on the 0..1 scale, as images are normalised.
        patch_size: side of the hidden patches, px; None if it was not pretrained by masking.
        mask_ratio: share of patches that was hidden in fact, or None.
        steps: of pretraining.
        origin: licence or origin of weights or images, "" if there is nothing to say.
    """

    model_name: str
    in_chans: int
    stem_stride: int
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch_size: int | None = None
    mask_ratio: float | None = None
    steps: int = 0
    origin: str = ""

    def to_metadata(self) -> dict[str, str]:
        """Return texts as safetensors stores them; values other than texts as JSON."""
        values = {
            "format": "pt",  # expected by transformers
            "fcmae_version": __version__,
            "model_name": self.model_name,
            "in_chans": self.in_chans,
            "stem_stride": self.stem_stride,
            "image_size": list(self.image_size),
            "mean": list(self.mean),
            "std": list(self.std),
            "patch_size": self.patch_size,
            "mask_ratio": self.mask_ratio,
            "steps": self.steps,
            "origin": self.origin,
        }
        return {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
        }

    def create_model(self) -> ConvNeXt:
        """Return an untrained timm model that the weights fit."""
        return create_backbone(
            self.model_name, in_chans=self.in_chans, stem_stride=self.stem_stride
        )

    def timm_call(self, path: Path) -> str:
        """Return the line of Python that loads the exported file."""
        options = "" if self.in_chans == 3 else f"in_chans={self.in_chans}, "
        options += "" if self.stem_stride == 4 else f"patch_size={self.stem_stride}, "
        return (
            f'timm.create_model("{self.model_name}", num_classes=0, {options}'
            f'checkpoint_path="{path}")'
        )


def encoder_info(config: PretrainConfig, model: FCMAE, step: int, origin: str = "") -> EncoderInfo:
    """Return what an export of a run's encoder after `step` steps says about itself."""
    mean, std = mean_and_std(config)
    return EncoderInfo(
        model_name=config.model.name,
        in_chans=config.data.in_chans,
        stem_stride=config.model.stem_stride,
        image_size=image_height_width(config.data.image_size),
        mean=mean,
        std=std,
        patch_size=config.mask.patch_size,
        mask_ratio=model.effective_mask_ratio,
        steps=step,
        origin=origin,
    )


def export_run_encoder(config: PretrainConfig, model: FCMAE, step: int, path: Path) -> str:
    """Write the encoder of a run for timm and return a sentence that says so; see `export_timm`."""
    return export_timm(model.encoder, path, encoder_info(config, model, step))


def export_timm(encoder: nn.Module, path: Path, info: EncoderInfo) -> str:
    """Write the encoder as safetensors with metadata, and return a sentence that says so.

    The file holds float32 weights under timm's names, with `head.norm`, which pretraining leaves
    at its start. Before it takes its place it is loaded into a fresh timm model, strictly, and
    both are compared on random images.

    Args:
        encoder: a dense timm ConvNeXt without classifier, on any device; not changed.
        path: the file; its folder is created; replaced as a whole.
        info: what goes into the metadata.

    Raises:
        CheckpointError: the reloaded model differs; nothing is written then.
    """
    original = copy.deepcopy(encoder).cpu().float().eval()
    weights = {name: value.contiguous() for name, value in original.state_dict().items()}
    largest = 0.0

    def write(partial: Path) -> None:
        nonlocal largest
        save_file(weights, partial, metadata=info.to_metadata())
        reloaded = info.create_model()
        reloaded.load_state_dict(load_file(partial), strict=True)
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
    """One way to write an encoder.

    Attributes:
        write: of (encoder, path, info); checks its own result and returns what to print.
        file_name: default name in the run's export folder.
    """

    write: Callable[[nn.Module, Path, EncoderInfo], str]
    file_name: str


FORMATS = {"timm": ExportFormat(export_timm, "encoder.safetensors")}


def export(encoder: nn.Module, format_name: str, path: Path, info: EncoderInfo) -> str:
    """Write `encoder` to `path` in one of FORMATS and return what to tell the user.

    Raises:
        ConfigError: unknown format, or the file cannot be written there.
        CheckpointError: what was written is not the same model; nothing is left then.
    """
    if format_name not in FORMATS:
        raise ConfigError(f"--to: got {format_name!r}, expected one of {', '.join(FORMATS)}.")
    try:
        return FORMATS[format_name].write(encoder, path, info)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"--output: {os.fspath(path)!r} cannot be written ({reason}); name another file."
        ) from error
