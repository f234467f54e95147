"""What one must know beside the weights to use an encoder, as exported files carry it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from timm.models.convnext import ConvNeXt

from fcmae import __version__
from fcmae.data import Reading
from fcmae.data.augmentation import mean_and_std
from fcmae.model.autoencoder import FCMAE
from fcmae.model.backbones import create_backbone
from fcmae.randomness import seeded
from fcmae.runs.loading import load_run_config
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.sections import image_height_width


@dataclass(frozen=True, kw_only=True)
class EncoderInfo(Reading):
    """How an encoder is built, fed - its Reading - and where it comes from.

    Attributes:
        model_name: of timm.
        stem_stride: pixels per cell of the stem.
        image_size: (height, width) of pretraining, px.
        mean, std: per channel on the 0..1 scale, as images are normalised.
        patch_size: side of the hidden patches, px; None if it was not pretrained by masking.
        mask_ratio: share of patches that was hidden in fact, or None.
        steps: of pretraining.
        origin: licence or origin of weights or images, "" if there is nothing to say.
        crop_pct: share of the resized image's side that evaluation keeps.
        classes: of the classifier, in the order of its outputs; None without one.
    """

    model_name: str
    stem_stride: int
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch_size: int | None = None
    mask_ratio: float | None = None
    steps: int = 0
    origin: str = ""
    crop_pct: float = 0.875
    classes: tuple[str, ...] | None = None

    @classmethod
    def of_run(
        cls, config: PretrainConfig, model: FCMAE, step: int, origin: str = ""
    ) -> EncoderInfo:
        """Return what is true of a run's encoder after `step` steps."""
        mean, std = mean_and_std(config.data)
        return cls(
            model_name=config.model.name,
            stem_stride=config.model.stem_stride,
            image_size=image_height_width(config.data.image_size),
            mean=mean,
            std=std,
            **asdict(Reading.of_settings(config.data)),
            patch_size=config.mask.patch_size,
            mask_ratio=model.effective_mask_ratio,
            steps=step,
            origin=origin,
        )

    def reading(self) -> Reading:
        """Return how files become the images that the encoder was trained on."""
        return Reading(**{own.name: getattr(self, own.name) for own in fields(Reading)})

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> EncoderInfo | None:
        """Return what `to_metadata` wrote, JSON values decoded; None for a file of others."""
        if "fcmae_version" not in metadata:
            return None
        values = {name: metadata[name] for name in cls.__dataclass_fields__ if name in metadata}
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        try:
            return cls(**{**values, **lists})
        except TypeError:  # by another version: something needed is missing
            return None

    def to_metadata(self) -> dict[str, str]:
        """Return texts as safetensors stores them; values other than texts as JSON."""
        values = {"format": "pt", "fcmae_version": __version__, **asdict(self)}  # for transformers
        return {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
        }

    def create_model(self, num_classes: int = 0) -> ConvNeXt:
        """Return a timm model that the weights fit, leaving the global generator alone.

        It is the encoder alone unless the classifier's `num_classes` are given.
        """
        with seeded(0):
            return create_backbone(
                self.model_name,
                in_chans=self.in_chans,
                stem_stride=self.stem_stride,
                num_classes=num_classes,
            )

    def timm_call(self, path: Path) -> str:
        """Return the line of Python that loads the exported file."""
        options = "" if self.in_chans == 3 else f"in_chans={self.in_chans}, "
        options += "" if self.stem_stride == 4 else f"patch_size={self.stem_stride}, "
        return (
            f'timm.create_model("{self.model_name}", num_classes={len(self.classes or ())}, '
            f'{options}checkpoint_path="{path}")'
        )


def facts_of_run(run_dir: Path | str) -> dict[str, Any]:
    """Return a pretraining run's model, image size and reading, by EncoderInfo's attributes.

    Raises:
        ConfigError: no folder of a pretraining run, or one whose settings cannot be read.
    """
    config = load_run_config(run_dir)
    mean, std = mean_and_std(config.data)
    reading = asdict(Reading.of_settings(config.data))
    built = {"model_name": config.model.name, "stem_stride": config.model.stem_stride}
    size = image_height_width(config.data.image_size)
    return {**built, "image_size": size, "mean": mean, "std": std, **reading}
