"""One look at the health of a pretraining, on the same held-out images and masks every time."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from fcmae.config import HealthConfig
from fcmae.data import ImageList, sample_seed
from fcmae.errors import ConfigError
from fcmae.evaluation import evaluating
from fcmae.health.measures import channel_diversity, dead_and_saturated, rank_me
from fcmae.health.trivial import blurred_surroundings_loss, nearest_patch_loss, patch_mean_loss
from fcmae.masking import draw_visible, is_masked_from_visible
from fcmae.model import FCMAE

RATIOS = (0.3, 0.6, 0.9)  # beside the run's own
MIN_IMAGES = 4  # fewer say nothing about a set


def hold_out(images: ImageList, config: HealthConfig, seed: int) -> tuple[ImageList, ImageList]:
    """Split images into those to train on and those that health is measured on.

    At most a twentieth of the images is held out; none when that is fewer than four.
    """
    count = min(config.images, len(images) // 20)
    if config.checks == 0 or count < MIN_IMAGES:
        return images, dataclasses.replace(images.select(()), problems=())
    rng = torch.Generator().manual_seed(sample_seed(seed, "held-out"))
    chosen = set(torch.randperm(len(images), generator=rng)[:count].tolist())
    kept = [index for index in range(len(images)) if index not in chosen]
    return images.select(kept), dataclasses.replace(images.select(sorted(chosen)), problems=())


class HealthCheck:
    """Measures a model on fixed images.

    Args:
        model: the FCMAE of the run; run in evaluation mode, modes come back as they were.
        images: [N, C, H, W], normalised, on the CPU.
        seed: decides the masks.
    """

    def __init__(self, model: FCMAE, images: Tensor, seed: int) -> None:
        self._model = model
        self._images = images
        self._visible: dict[float, Tensor] = {}
        for ratio in sorted({model.mask_ratio, *RATIOS}):
            rng = torch.Generator().manual_seed(sample_seed(seed, "health", str(ratio)))
            with contextlib.suppress(ConfigError):  # a ratio that small grids do not have
                self._visible[ratio] = draw_visible(len(images), model.num_patches, ratio, rng)

    def trivial_losses(self) -> dict[str, float]:
        """Return the losses of predictors that learn nothing, at the run's ratio."""
        model, images = self._model, self._images
        is_masked = is_masked_from_visible(self._visible[model.mask_ratio], model.num_patches)
        size, grid = model.patch_size, model.grid
        return {
            "health/loss_patch_mean": patch_mean_loss(images, is_masked, size),
            "health/loss_blurred_surroundings": blurred_surroundings_loss(
                images, is_masked, size, grid
            ),
            "health/loss_nearest_patch": nearest_patch_loss(images, is_masked, size, grid),
        }

    @torch.no_grad()
    def measure(self) -> dict[str, float | list[float]]:
        """Return every measure of the model as it stands, by the name it is logged under.

        `health/diversity_by_layer` has one value per block, first to last; all others are numbers.
        """
        model = self._model
        images = self._images.to(next(model.parameters()).device)
        with evaluating(model):
            values = self._losses(images)
            with _expanded_features(model) as layers:
                maps = model.encoder.forward_features(images)
        values["health/rank_me"] = rank_me(maps.mean(dim=(2, 3)).float())
        diversity = {place: channel_diversity(after) for place, (_, after) in layers.items()}
        for stage in range(len(model.encoder.stages)):
            before = [found for (place, _), (found, _) in layers.items() if place == stage]
            diverse = [value for (place, _), value in diversity.items() if place == stage]
            values[f"health/diversity_stage_{stage}"] = _mean(diverse)
            shares = [dead_and_saturated(found) for found in before]
            values[f"health/dead_stage_{stage}"] = _mean(dead for dead, _ in shares)
            values[f"health/saturated_stage_{stage}"] = _mean(full for _, full in shares)
        rounded = {name: round(value, 6) for name, value in {**values, **self._grn_norms()}.items()}
        by_layer = [round(value, 6) for value in diversity.values()]
        return {**rounded, "health/diversity_by_layer": by_layer}

    def _losses(self, images: Tensor) -> dict[str, float]:
        losses = {
            ratio: float(self._model(images, visible).loss)
            for ratio, visible in self._visible.items()
        }
        named = {f"health/loss_at_{ratio:g}": loss for ratio, loss in losses.items()}
        return {"health/loss": losses[self._model.mask_ratio], **named}

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


@contextlib.contextmanager
def _expanded_features(model: FCMAE) -> Iterator[dict[tuple[int, int], tuple[Tensor, Tensor]]]:
    """Collect, by (stage, block), the expanded MLP features before and after GRN, [N, H, W, C].

    The paper finds the collapse in this layer; without GRN both are the same.
    """
    found: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    hooks = []

    def watch(place: tuple[int, int], mlp: nn.Module, is_channels_first: bool) -> None:
        def last(maps: Tensor) -> Tensor:
            return (maps.permute(0, 2, 3, 1) if is_channels_first else maps).float().cpu()

        def keep_before(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[place] = (last(output), last(output))

        def keep_after(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[place] = (found[place][0], last(output))

        hooks.append(mlp.act.register_forward_hook(keep_before))  # type: ignore[union-attr]
        if hasattr(mlp, "grn"):
            hooks.append(mlp.grn.register_forward_hook(keep_after))  # type: ignore[union-attr]

    for stage_number, stage in enumerate(model.encoder.stages):
        for block_number, block in enumerate(stage.blocks):
            watch((stage_number, block_number), block.mlp, block.use_conv_mlp)
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
