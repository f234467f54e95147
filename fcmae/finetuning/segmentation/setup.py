"""Builds the parts of a segmentation from its settings: pure construction, nothing is run."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from torch import Tensor, nn

from fcmae.data import Normalisation, sample_seed, seeded
from fcmae.data.augmentation import mean_and_std
from fcmae.data.label_masks import IGNORED, MaskClasses
from fcmae.errors import ConfigError
from fcmae.evaluation.tiles import Tiling
from fcmae.finetuning.setup import description, variant_of, weights_metadata
from fcmae.model.backbones import create_backbone
from fcmae.model.segmenter import build_segmenter, encoder_state, import_smp, timm_name
from fcmae.settings.sections import image_height_width
from fcmae.settings.segmentation import STEM_ADVICE, STEM_STRIDE, SegmentationConfig
from fcmae.training.optimization import lr_scale, parameter_groups
from fcmae.weights.loading import load_encoder
from fcmae.weights.segmenter import SegmenterInfo, load_segmenter, segmenter_file
from fcmae.weights.sources import licence_notices


def check_stem(config: SegmentationConfig) -> None:
    """Raise ConfigError when the weights are of an encoder whose maps no decoder takes."""
    stride = weights_metadata(config).get("stem_stride", STEM_STRIDE)
    if stride != STEM_STRIDE:
        raise ConfigError(
            f"model.weights: {config.model.weights} has a stem of stride {stride}, expected "
            f"{STEM_ADVICE}."
        )


def check_weights(config: SegmentationConfig) -> None:
    """Raise unless model.weights fit the network that the settings describe, of any classes.

    It is made, and dropped again.

    Raises:
        ConfigError, CheckpointError: as `variant_of`, `mean_and_std` and `create_segmenter`.
    """
    model = dataclasses.replace(config.model, name=variant_of(config, 1), drop_path=0.0)
    config = dataclasses.replace(config, model=model)
    mean_and_std(config.data, weights_metadata(config))
    create_segmenter(config, MaskClasses(("one", "another"), (0, 1)))


def create_segmenter(
    config: SegmentationConfig, classes: MaskClasses
) -> tuple[nn.Module, list[str]]:
    """Return the network with its starting weights, and sentences about what was not loaded.

    What is drawn depends on train.seed alone. Of weights that are a segmenter's the decoder is
    taken, too, when it is the same for the same classes.

    Raises:
        ConfigError: an unknown model; smp is missing; weights of another stem.
        CheckpointError: weights that cannot be read or do not fit.
    """
    check_stem(config)
    with seeded(sample_seed(config.train.seed, "weights")):
        network = build_segmenter(
            config.task.architecture,
            config.model.name,
            in_chans=config.data.in_chans,
            num_classes=len(classes),
            decoder_channels=config.task.decoder_channels,
            norm=config.task.norm,
            drop_path=config.model.drop_path,
        )
        backbone = create_backbone(config.model.name, in_chans=config.data.in_chans)
    weights = config.model.weights
    if weights is None:
        network.load_state_dict({**network.state_dict(), **encoder_state(backbone.state_dict())})
        return network, []
    if segmenter_file(weights) is not None:
        return network, _take_segmenter(network, config, classes, weights)
    told = licence_notices(weights)
    told += load_encoder(backbone, weights, inflate=config.model.inflate)
    network.load_state_dict({**network.state_dict(), **encoder_state(backbone.state_dict())})
    return network, told


def _take_segmenter(
    network: nn.Module, config: SegmentationConfig, classes: MaskClasses, weights: str
) -> list[str]:
    """Load a segmenter's weights, without its decoder where that is another one."""
    theirs, info = load_segmenter(weights)
    state, own = theirs.state_dict(), network.state_dict()
    if info.model_name != config.model.name or info.in_chans != config.data.in_chans:
        raise ConfigError(
            f"model.weights: {weights} is a segmenter over {info.model_name} for {info.in_chans} "
            f"channels, and model.name is {config.model.name}, data.in_chans "
            f"{config.data.in_chans}; leave model.name out, or use other weights."
        )
    is_same = info.classes == classes.names and {n: t.shape for n, t in state.items()} == {
        n: t.shape for n, t in own.items()
    }
    if is_same and info.architecture == config.task.architecture and info.norm == config.task.norm:
        network.load_state_dict(state)
        return []
    encoder = {name: value for name, value in state.items() if timm_name(name) is not None}
    network.load_state_dict({**own, **encoder})
    return [f"{weights}: its decoder is another one, or for other classes, and left out."]


def layer_groups(config: SegmentationConfig, network: nn.Module) -> list[dict[str, Any]]:
    """Return the optimizer's groups, one per layer of the encoder and decay; a decoder has 1."""
    optim = config.optim
    depths: list[int] = []
    for name, _ in network.named_parameters():
        parts = (timm_name(name) or "").split(".")
        if parts[0] == "stages" and parts[2] == "blocks":
            depths += [0] * (int(parts[1]) + 1 - len(depths))
            depths[int(parts[1])] = max(depths[int(parts[1])], int(parts[3]) + 1)
    scale = functools.partial(
        lr_scale,
        depths=tuple(depths),
        decay=optim.layer_decay,
        assigner=optim.layer_decay_assigner,
    )

    def scale_of(name: str) -> float:
        inside = timm_name(name)
        return 1.0 if inside is None else scale(inside)

    return parameter_groups(network.named_parameters(), optim.weight_decay, scale_of)


class SegmentationLoss(nn.Module):
    """Mean cross entropy of the pixels plus smp's Dice loss: logits [N, C, H, W] -> scalar.

    Args:
        dice_weight: of the Dice loss; 0 leaves it out.
    """

    def __init__(self, dice_weight: float) -> None:
        super().__init__()
        self._dice_weight = dice_weight
        losses = import_smp().losses
        self._dice = losses.DiceLoss("multiclass", from_logits=True, ignore_index=IGNORED)
        self._cross_entropy = nn.CrossEntropyLoss(ignore_index=IGNORED, reduction="sum")

    def forward(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Return the loss of class numbers [N, H, W]; 0 where no pixel has a class."""
        truth = truth.long()
        known = (truth != IGNORED).sum().clamp(min=1)
        loss: Tensor = self._cross_entropy(logits, truth) / known
        if self._dice_weight:
            loss = loss + self._dice_weight * self._dice(logits, truth)
        return loss


def create_tiling(config: SegmentationConfig) -> Tiling:
    """Return how whole pictures are cut."""
    evaluate = config.evaluate
    size = image_height_width(evaluate.tile_size or config.data.image_size)
    return Tiling(size, evaluate.tile_overlap, evaluate.batch_size)


def create_normalisation(config: SegmentationConfig) -> Normalisation:
    """Return what the network is fed, of pixels."""
    return Normalisation(*mean_and_std(config.data, weights_metadata(config)))


def segmenter_info(config: SegmentationConfig, classes: MaskClasses, step: int) -> SegmenterInfo:
    """Return what one must know to use a run's segmenter after `step` steps."""
    tiling = create_tiling(config)
    return SegmenterInfo(
        **description(config, step),
        crop_pct=1.0,
        classes=classes.names,
        architecture=config.task.architecture,
        decoder_channels=config.task.decoder_channels,
        norm=config.task.norm,
        mask_values=classes.values,
        tile_size=tiling.size,
        tile_overlap=tiling.overlap,
    )
