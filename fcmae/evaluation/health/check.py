"""One look at the health of a pretraining, on the same held-out images and masks every time."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from fcmae.data import sample_seed
from fcmae.errors import ConfigError
from fcmae.evaluation.features import evaluating, pooled_features
from fcmae.evaluation.health.measures import ChannelRanges, channel_diversity, rank_me
from fcmae.evaluation.health.trivial import (
    blurred_surroundings_loss,
    nearest_patch_loss,
    patch_mean_loss,
)
from fcmae.model.autoencoder import FCMAE
from fcmae.model.masking import draw_visible, is_masked_from_visible

RATIOS = (0.3, 0.6, 0.9)  # beside the run's own
MIN_IMAGES = 4  # fewer say nothing about a set
CHUNK_IMAGES = 8  # at a time: bounds memory; a GRN of scope `batch` pools over them


class HealthCheck:
    """Measures a model on fixed images.

    Args:
        model: the FCMAE of the run; run in evaluation mode, modes come back as they were.
        images: [N, C, H, W], normalised, on the CPU.
        seed: decides the masks.

    Attributes:
        visible: the fixed masks by ratio, those that the grid can have.
    """

    def __init__(self, model: FCMAE, images: Tensor, seed: int) -> None:
        self._model = model
        self._images = images
        self.visible: dict[float, Tensor] = {}
        for ratio in sorted({model.mask_ratio, *RATIOS}):
            rng = torch.Generator().manual_seed(sample_seed(seed, "health", str(ratio)))
            with contextlib.suppress(ConfigError):  # a ratio that small grids do not have
                self.visible[ratio] = draw_visible(len(images), model.num_patches, ratio, rng)

    def trivial_losses(self) -> dict[str, float]:
        """Return the losses of predictors that learn nothing, at the run's ratio."""
        model, images = self._model, self._images
        is_masked = is_masked_from_visible(self.visible[model.mask_ratio], model.num_patches)
        size, grid = model.patch_size, model.grid
        return {
            "health/loss_patch_mean": patch_mean_loss(images, is_masked, size),
            "health/loss_blurred_surroundings": blurred_surroundings_loss(
                images, is_masked, size, grid
            ),
            "health/loss_nearest_patch": nearest_patch_loss(images, is_masked, size, grid),
        }

    @torch.no_grad()
    def measure(self) -> dict[str, float | list[float | None]]:
        """Return every measure of the model as it stands, by the name it is logged under.

        `health/diversity_by_layer` has one value per block, first to last; all others are numbers.
        """
        with evaluating(self._model):
            values = self._losses()
            layers, vectors = self._look_at_features()
        values["health/rank_me"] = rank_me(vectors)
        for stage in sorted({layer.stage for layer in layers}):
            of_stage = [layer for layer in layers if layer.stage == stage]
            shares = [layer.before.dead_and_saturated() for layer in of_stage]
            values[f"health/diversity_stage_{stage}"] = _mean(one.diversity for one in of_stage)
            values[f"health/dead_stage_{stage}"] = _mean(dead for dead, _ in shares)
            values[f"health/saturated_stage_{stage}"] = _mean(full for _, full in shares)
        rounded = {name: round(value, 6) for name, value in {**values, **self._grn_norms()}.items()}
        # JSON knows no NaN, and the log replaces it in numbers only.
        found = [layer.diversity for layer in layers]
        by_layer = [round(value, 6) if math.isfinite(value) else None for value in found]
        return {**rounded, "health/diversity_by_layer": by_layer}

    def _chunks(self) -> Iterator[tuple[Tensor, slice]]:
        """Yield images on the model's device, and which of all they are."""
        device = next(self._model.parameters()).device
        for start in range(0, len(self._images), CHUNK_IMAGES):
            rows = slice(start, start + CHUNK_IMAGES)
            yield self._images[rows].to(device), rows

    def _losses(self) -> dict[str, float]:
        sums = dict.fromkeys(self.visible, 0.0)
        for images, rows in self._chunks():
            for ratio, visible in self.visible.items():
                sums[ratio] += len(images) * float(self._model(images, visible[rows]).loss)
        losses = {ratio: total / len(self._images) for ratio, total in sums.items()}
        named = {f"health/loss_at_{ratio:g}": loss for ratio, loss in losses.items()}
        return {"health/loss": losses[self._model.mask_ratio], **named}

    def _look_at_features(self) -> tuple[list[_Layer], Tensor]:
        """Run the dense encoder on whole images; return its layers and pooled features [N, D]."""
        layers = [
            _Layer(number, block)
            for number, stage in enumerate(self._model.encoder.stages)
            for block in stage.blocks
        ]
        vectors = []
        with contextlib.ExitStack() as hooks:
            for layer in layers:
                hooks.enter_context(layer.listening())
            for images, _ in self._chunks():
                vectors.append(pooled_features(self._model.encoder, images).float().cpu())
        return layers, torch.cat(vectors)

    def _grn_norms(self) -> dict[str, float]:
        """Return the mean L2 norms of GRN's gamma and beta per stage; nothing for V1."""
        norms: dict[str, float] = {}
        for number, stage in enumerate(self._model.encoder.stages):
            layers = [block.mlp.grn for block in stage.blocks if hasattr(block.mlp, "grn")]
            if layers:
                gamma = _mean(float(layer.weight.norm()) for layer in layers)
                beta = _mean(float(layer.bias.norm()) for layer in layers)
                norms[f"health/grn_gamma_stage_{number}"] = gamma
                norms[f"health/grn_beta_stage_{number}"] = beta
        return norms


class _Layer:
    """The expanded MLP features of one block, where the paper finds the collapse.

    Attributes:
        stage: number of the block's stage.
        before: ranges of the channels before GRN.
    """

    def __init__(self, stage: int, block: Any) -> None:
        self.stage = stage
        self.before = ChannelRanges()
        self._mlp = block.mlp
        self._is_channels_first = block.use_conv_mlp
        self._sum = 0.0
        self._count = 0

    @property
    def diversity(self) -> float:
        """Mean over the images of the diversity after GRN; without GRN before is after."""
        return self._sum / self._count

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take in what the block computes inside."""
        after = getattr(self._mlp, "grn", self._mlp.act)
        hooks = [
            self._mlp.act.register_forward_hook(lambda _, __, maps: self._take_before(maps)),
            after.register_forward_hook(lambda _, __, maps: self._take_after(maps)),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _channels_last(self, maps: Tensor) -> Tensor:
        return maps.permute(0, 2, 3, 1) if self._is_channels_first else maps

    def _take_before(self, maps: Tensor) -> None:
        self.before.update(self._channels_last(maps))

    def _take_after(self, maps: Tensor) -> None:
        self._sum += len(maps) * channel_diversity(self._channels_last(maps))
        self._count += len(maps)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
