"""FCMAE: the fully convolutional masked autoencoder (ConvNeXt V2, arXiv 2301.00808)."""

import dataclasses
from dataclasses import dataclass

import torch
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from fcmae.errors import BackendUnavailableError, ConfigError, UnsupportedModelError
from fcmae.model.backbones import create_backbone
from fcmae.model.decoder import Decoder
from fcmae.model.loss import normalize_patches, patch_statistics, reconstruction_loss
from fcmae.model.masking import (
    draw_visible,
    effective_mask_ratio,
    hidden_from_visible,
    is_masked_from_visible,
    valid_patches,
)
from fcmae.model.patches import patch_grid, patchify, unpatchify
from fcmae.randomness import sample_seed, seeded
from fcmae.settings.pretrain import PretrainConfig
from sparse import SparseConvNeXt
from sparse.encoder import Backend, GrnScope


@dataclass(frozen=True)
class FCMAEOutput:
    """What a forward pass returns.

    Attributes:
        loss: scalar, mean over hidden patches; float32 at least. Of images with holes: over the
            pixels that have data in hidden valid patches, each image weighing the same.
        hidden_prediction: [N, L - K, P * P * C] of the hidden patches, ordered (row, column,
            channel); in units of the targets, that is standardised per patch when
            `normalize_targets`. No visible patch is predicted: the loss would not train it.
        hidden: LongTensor [N, L - K], indices of the hidden patches, ascending.
        is_masked: bool [N, L], True where a patch is hidden.
        visible: LongTensor [N, K], indices of the visible patches.
    """

    loss: Tensor
    hidden_prediction: Tensor
    hidden: Tensor
    is_masked: Tensor
    visible: Tensor

    @property
    def prediction(self) -> Tensor:
        """The predictions at their places, 0 at visible patches: [N, L, P * P * C]."""
        width = self.hidden_prediction.shape[-1]
        everywhere = self.hidden_prediction.new_zeros(*self.is_masked.shape, width)
        index = self.hidden.unsqueeze(-1).expand(-1, -1, width)
        return everywhere.scatter(1, index, self.hidden_prediction)


class FCMAE(nn.Module):
    """Reconstructs hidden patches from what a sparse encoder sees of the visible ones.

    Images may have holes, pixels without data: these are never context and never loss.

    Attributes:
        encoder: the dense timm model, which owns the encoder's parameters; what is exported.
        decoder: the light decoder.
        grid: patch rows and columns.
        num_patches: patches per image, L.
        effective_mask_ratio: share of patches that is hidden in fact.
    """

    def __init__(
        self,
        name: str,
        *,
        image_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        patch_size: int = 32,
        mask_ratio: float = 0.6,
        min_valid: float = 0.5,
        decoder_dim: int = 512,
        decoder_depth: int = 1,
        normalize_targets: bool = True,
        backend: Backend = "native",
        grn_scope: GrnScope = "image",
        stem_stride: int = 4,
        drop_path: float = 0.0,
    ) -> None:
        """Create an untrained model, drawing weights from torch's global generator.

        Args:
            name: timm name of the encoder, such as convnextv2_atto.
            image_size: pixels, one number or (height, width).
            in_chans: image channels.
            patch_size: side of a patch in pixels, a multiple of the encoder's total stride.
            mask_ratio: share of patches to hide; the number of visible ones is rounded down.
            min_valid: share of a patch's pixels that must have data for the patch to be seen or
                scored, above 0 and at most 1; matters for images with holes only.
            decoder_dim: width of the decoder.
            decoder_depth: number of its blocks.
            normalize_targets: standardise each target patch by its own mean and deviation.
            backend: how the sparse encoder computes; see SparseConvNeXt.
            grn_scope: `image`, as in the paper, or `batch`, as in the released code.
            stem_stride: pixels per cell of the stem.
            drop_path: stochastic depth rate of the encoder's last block.

        Raises:
            ConfigError: sizes or ratio that do not fit each other, unknown name.
            UnsupportedModelError: the encoder cannot run sparsely.
        """
        super().__init__()
        self.encoder: ConvNeXt = create_backbone(
            name, in_chans=in_chans, stem_stride=stem_stride, drop_path=drop_path
        )
        # timm's final norm comes after pooling and is no part of FCMAE: it stays at its start.
        self.encoder.head.requires_grad_(False)
        height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
        self.image_size = (height, width)
        self.in_chans = in_chans
        self.patch_size = patch_size
        self.mask_ratio = mask_ratio
        self.min_valid = min_valid
        self.normalize_targets = normalize_targets
        try:
            sparse_encoder = SparseConvNeXt(
                self.encoder, backend=backend, grn_scope=grn_scope, patch_size=patch_size
            )
        except UnsupportedModelError:
            raise
        except ValueError as error:
            raise ConfigError(str(error)) from error
        # Held in a tuple so that torch does not register it: its parameters are the encoder's, and
        # a checkpoint carries each of them once.
        self._sparse_encoder = (sparse_encoder,)
        self.grid = patch_grid(self.image_size, patch_size)
        self.num_patches = self.grid[0] * self.grid[1]
        self.effective_mask_ratio = effective_mask_ratio(self.num_patches, mask_ratio)
        architecture = sparse_encoder.architecture
        if decoder_dim < 1 or decoder_depth < 0:
            raise ConfigError(
                f"model.decoder_dim, model.decoder_depth: got {decoder_dim} and {decoder_depth}, "
                "expected a width of 1 or more and a depth of 0 or more."
            )
        self.decoder = Decoder(
            architecture.dims[-1],
            decoder_dim,
            decoder_depth,
            architecture.total_stride,
            in_chans,
        )

    @property
    def sparse_encoder(self) -> SparseConvNeXt:
        """The encoder as it is run in pretraining, on visible patches only."""
        return self._sparse_encoder[0]

    def forward(
        self,
        images: Tensor,
        visible: Tensor | None = None,
        *,
        valid: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> FCMAEOutput:
        """Encode visible patches, predict the hidden ones and score these predictions.

        Args:
            images: [N, C, H, W] of the model's image size, normalised.
            visible: LongTensor [N, K] of row-major patch indices; None draws them, among valid
                patches.
            valid: bool [N, 1, H, W] or [N, H, W], False at pixels without data; None where all
                have. Whatever these hold (NaN, too) is taken as 0, and no loss counts them, nor
                any pixel of a patch in which less than `min_valid` has data. All True gives the
                numbers of None, bit for bit.
            generator: source of the draw; None means torch's global generator.

        Raises:
            ValueError: images of another size, `visible` or `valid` that does not fit them, or an
                image with too few valid patches to draw from.
        """
        if tuple(images.shape[2:]) != self.image_size:
            raise ValueError(
                f"images: got {list(images.shape)}, expected "
                f"[N, {self.in_chans}, {self.image_size[0]}, {self.image_size[1]}]; "
                "resize the images or create the model with their image_size."
            )
        is_value = None
        if valid is not None:
            valid = _checked(valid, images)
            images = images.masked_fill(~valid, 0)
            is_value = self.values_with_data(valid)
        if visible is None:
            drawn_from = None if valid is None else self.valid_patches(valid)
            visible = draw_visible(
                len(images), self.num_patches, self.mask_ratio, generator, drawn_from
            )
        elif visible.shape[-1] >= self.num_patches:
            raise ValueError(
                f"visible: all {self.num_patches} patches are named, so nothing is hidden and the "
                "loss has nothing to score; name fewer, or call sparse_encoder for features."
            )
        visible = visible.to(images.device)
        features = self.sparse_encoder(images, visible)  # [N, K, m, m, D]
        is_masked = is_masked_from_visible(visible, self.num_patches)
        hidden = hidden_from_visible(visible, self.num_patches)
        prediction = self._predict(features, visible, hidden)
        target, counted = self._targets(images, hidden, is_value)
        loss = reconstruction_loss(prediction, target, is_value=counted)
        return FCMAEOutput(loss, prediction, hidden, is_masked, visible)

    def targets(
        self, images: Tensor, hidden: Tensor, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return what hidden patches are compared with, and which of it counts.

        Args:
            images: [N, C, H, W], normalised.
            hidden: LongTensor [N, M], indices of the hidden patches.
            valid: bool [N, 1, H, W], False at pixels without data; None where all have.

        Returns:
            The targets [N, M, P * P * C], standardised per patch when `normalize_targets`, and
            bool of the same shape, or None where everything counts.
        """
        if valid is None:
            return self._targets(images, hidden, None)
        return self._targets(images.masked_fill(~valid, 0), hidden, self.values_with_data(valid))

    def _targets(
        self, images: Tensor, hidden: Tensor, is_value: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        target = _at(patchify(images, self.patch_size), hidden)
        counted = None if is_value is None else _at(is_value, hidden)
        if self.normalize_targets:
            target = normalize_patches(target, counted)
        return target, counted

    def valid_patches(self, valid: Tensor) -> Tensor:
        """Return which patches may be seen or scored: bool [N, 1, H, W] -> bool [N, L]."""
        return valid_patches(valid, self.patch_size, self.min_valid)

    def values_with_data(self, valid: Tensor) -> Tensor:
        """Return which values count: bool [N, 1, H, W] -> [N, L, D], none of an invalid patch."""
        is_pixel = patchify(valid, self.patch_size)  # [N, L, P * P]
        is_pixel = is_pixel & self.valid_patches(valid).unsqueeze(-1)
        return is_pixel.repeat_interleave(self.in_chans, dim=-1)

    def _predict(self, features: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """Predict hidden patches: features [N, K, m, m, D] -> [N, L - K, P * P * C]."""
        side = features.shape[2]
        seen = self.decoder.project(features)  # [N, K, m, m, C]
        token = self.decoder.token(seen.dtype)
        patches = token.expand(len(seen), self.num_patches, side, side, -1)
        index = visible.view(*visible.shape, 1, 1, 1).expand_as(seen)
        patches = patches.scatter(1, index, seen).unflatten(1, self.grid)  # [N, R, Q, m, m, C]
        cells = patches.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # [N, R * m, Q * m, C]
        cells = self.decoder.decode(cells)
        cells = cells.unflatten(2, (-1, side)).unflatten(1, (-1, side))
        cells = cells.transpose(2, 3).flatten(3).flatten(1, 2)  # [N, L, m * m * C]
        cells = _at(cells, hidden).unflatten(2, (side, side, -1))  # [N, L - K, m, m, C]
        pixels = self.decoder.predict(cells)  # [N, L - K, m, m, S * S * C]
        if side == 1:
            return pixels.flatten(2)
        size = self.patch_size // side
        pixels = pixels.unflatten(4, (size, size, -1)).transpose(3, 4)
        return pixels.flatten(2)  # ordered (row, column, channel) in the whole patch

    @torch.no_grad()
    def reconstruct(self, out: FCMAEOutput, images: Tensor, valid: Tensor | None = None) -> Tensor:
        """Paste the predictions over the hidden patches of `images`: [N, C, H, W], same scale.

        Pixels without data, and hidden patches with too few others, are left as they are.

        With normalised targets each prediction is scaled by its true patch's own mean and
        deviation, which the model never sees: brightness and contrast of hidden patches are given.
        """
        patches = patchify(images, self.patch_size)
        prediction = out.prediction.to(patches.dtype)
        is_value = None if valid is None else self.values_with_data(_checked(valid, images))
        if self.normalize_targets:
            mean, deviation = patch_statistics(patches, is_value)
            prediction = prediction * deviation + mean
        is_pasted = out.is_masked.unsqueeze(-1)
        if is_value is not None:
            is_pasted = is_pasted & is_value
        patches = torch.where(is_pasted, prediction, patches)
        return unpatchify(patches, self.patch_size, self.grid)


def _at(patches: Tensor, index: Tensor) -> Tensor:
    """Return some patches of each image: [N, L, D], index [N, M] -> [N, M, D]."""
    return patches.gather(1, index.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))


def create_model(config: PretrainConfig) -> FCMAE:
    """Create the untrained model of a config; the weights depend on train.seed alone.

    Raises:
        ConfigError: settings that do not fit each other.
        UnsupportedModelError: the encoder cannot run sparsely.
    """
    model, data = config.model, config.data
    with seeded(sample_seed(config.train.seed, "weights")):
        created = FCMAE(
            model.name,
            image_size=data.image_size,
            in_chans=data.in_chans,
            patch_size=config.mask.patch_size,
            mask_ratio=config.mask.ratio,
            min_valid=config.mask.min_valid,
            decoder_dim=model.decoder_dim,
            decoder_depth=model.decoder_depth,
            normalize_targets=config.loss.normalize_targets,
            backend=model.backend,
            grn_scope=model.grn_scope,
            stem_stride=model.stem_stride,
            drop_path=model.drop_path,
        )
    if model.checkpoint_activations:
        created.encoder.set_grad_checkpointing(True)
    return created


def create_anywhere(config: PretrainConfig) -> FCMAE:
    """Create the untrained model of a config as `create_model`, on any machine.

    Where its backend is not installed, native computes: the weights are the same dense ones.

    Raises:
        ConfigError, UnsupportedModelError: as `create_model`.
    """
    try:
        return create_model(config)
    except BackendUnavailableError:
        native = dataclasses.replace(config.model, backend="native")
        return create_model(dataclasses.replace(config, model=native))


def _checked(valid: Tensor, images: Tensor) -> Tensor:
    """Return `valid` as [N, 1, H, W], or raise ValueError unless it fits the images."""
    shape = (len(images), 1, *images.shape[2:])
    if valid.dim() == 3:
        valid = valid.unsqueeze(1)
    if valid.dtype != torch.bool or tuple(valid.shape) != shape:
        raise ValueError(
            f"valid: got {valid.dtype} {list(valid.shape)} for images {list(images.shape)}, "
            f"expected torch.bool {list(shape)}: False where an image has no data."
        )
    return valid.to(images.device)
