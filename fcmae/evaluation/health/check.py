"""One look at the health of a pretraining, on the same held-out images and masks every time."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
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
from fcmae.model.masking import draw_visible, is_masked_from_visible, num_visible_patches

RATIOS = (0.3, 0.6, 0.9)  # beside the run's own
CHUNK_IMAGES = 8  # at a time: bounds memory; a GRN of scope `batch` pools over them


class HealthCheck:
    """Measures a model on fixed images.

    Args:
        model: the FCMAE of the run; run in evaluation mode, modes come back as they were.
        images: [N, C, H, W], normalised, on the CPU.
        seed: decides the masks.
        valid: bool [N, 1, H, W], False where an image has no data; None where all of them have.
            Only what has data counts in any measure. Each image has enough valid patches for the
            model's ratio; losses at another one are of the images that have enough for it.

    Attributes:
        visible: by ratio, what is seen of the images that have enough patches, LongTensor [n, K].
    """

    def __init__(
        self, model: FCMAE, images: Tensor, seed: int, valid: Tensor | None = None
    ) -> None:
        self._model = model
        self._images = images
        self._valid = valid
        self.visible: dict[float, Tensor] = {}
        self._rows: dict[float, Tensor] = {}
        patches = None if valid is None else model.valid_patches(valid)
        for ratio in sorted({model.mask_ratio, *RATIOS}):
            rng = torch.Generator().manual_seed(sample_seed(seed, "health", str(ratio)))
            with contextlib.suppress(ConfigError):  # a ratio that small grids do not have
                needed = num_visible_patches(model.num_patches, ratio) + 1
                rows = torch.arange(len(images))
                if patches is not None:
                    rows = (patches.sum(dim=1) >= needed).nonzero().flatten()
                if len(rows):
                    chosen = None if patches is None else patches[rows]
                    drawn = draw_visible(len(rows), model.num_patches, ratio, rng, chosen)
                    self.visible[ratio], self._rows[ratio] = drawn, rows

    def trivial_losses(self) -> dict[str, float]:
        """Return the losses of predictors that learn nothing, at the run's ratio."""
        model, images = self._model, self._images
        is_masked = is_masked_from_visible(self.visible[model.mask_ratio], model.num_patches)
        size, grid = model.patch_size, model.grid
        counted = None if self._valid is None else model.values_with_data(self._valid)
        return {
            "health/loss_patch_mean": patch_mean_loss(images, is_masked, size, counted),
            "health/loss_blurred_surroundings": blurred_surroundings_loss(
                images, is_masked, size, grid, counted
            ),
            "health/loss_nearest_patch": nearest_patch_loss(images, is_masked, size, grid, counted),
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

    def _chunks(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor | None, slice]]:
        """Yield images of `rows` on the model's device, where they have data, and which they are.

        Some at a time; the slice is of `rows`.
        """
        device = next(self._model.parameters()).device
        for start in range(0, len(rows), CHUNK_IMAGES):
            place = slice(start, start + CHUNK_IMAGES)
            valid = None if self._valid is None else self._valid[rows[place]].to(device)
            yield self._images[rows[place]].to(device), valid, place

    def _losses(self) -> dict[str, float]:
        losses = {}
        for ratio, visible in self.visible.items():
            rows, total = self._rows[ratio], 0.0
            for images, valid, place in self._chunks(rows):
                loss = self._model(images, visible[place], valid=valid).loss
                total += len(images) * float(loss)
            losses[ratio] = total / len(rows)
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
            for images, valid, _ in self._chunks(torch.arange(len(self._images))):
                data = None if valid is None else _Data(valid, self._model.min_valid)
                for layer in layers:
                    layer.data = data
                vectors.append(self._pooled(images, data).float().cpu())
        return layers, torch.cat(vectors)

    def _pooled(self, images: Tensor, data: _Data | None) -> Tensor:
        """Return the mean of the encoder's last features over the cells with data, [N, D]."""
        if data is None:
            return pooled_features(self._model.encoder, images)
        maps = self._model.encoder.forward_features(images)
        counted = data.cells(*maps.shape[2:]).unsqueeze(1)  # [N, 1, h, w]
        return (maps * counted).sum(dim=(2, 3)) / counted.sum(dim=(2, 3))

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


class _Data(NamedTuple):
    """Where images have data, bool [N, 1, H, W], and the share of a cell's pixels that suffices."""

    valid: Tensor
    min_valid: float

    def cells(self, height: int, width: int) -> Tensor:
        """Return the cells of a feature map whose features count: bool [N, h, w], one at least."""
        shares = F.adaptive_avg_pool2d(self.valid.float(), (height, width)).squeeze(1)
        return shares >= self.min_valid


class _Layer:
    """The expanded MLP features of one block, where the paper finds the collapse.

    Attributes:
        stage: number of the block's stage.
        before: ranges of the channels before GRN.
        data: of the images that come next; None: all of them.
    """

    def __init__(self, stage: int, block: Any) -> None:
        self.stage = stage
        self.before = ChannelRanges()
        self.data: _Data | None = None
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
        maps = self._channels_last(maps)
        if self.data is not None:  # as one image whose positions are those with data
            maps = maps[self.data.cells(*maps.shape[1:3])][None, :, None]
        self.before.update(maps)

    def _take_after(self, maps: Tensor) -> None:
        maps = self._channels_last(maps)
        if self.data is not None:  # zeros add nothing to lengths and products
            maps = maps * self.data.cells(*maps.shape[1:3]).unsqueeze(-1)
        self._sum += len(maps) * channel_diversity(maps)
        self._count += len(maps)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
