"""Builds the parts of a fine-tuning from its settings: pure construction, nothing is run."""

from __future__ import annotations

from typing import Any

import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models.convnext import ConvNeXt
from torch import nn

from fcmae.data import EvaluationTransform, default_mean_std, sample_seed, seeded
from fcmae.errors import CheckpointError, ConfigError
from fcmae.finetuning.data import FinetuneAugmentation
from fcmae.model.backbones import create_backbone
from fcmae.settings.finetune import FinetuneConfig
from fcmae.settings.pretrain import image_height_width
from fcmae.training.layer_decay import finetune_groups
from fcmae.training.schedule import lr_factor, peak_lr, steps_of
from fcmae.weights.reading import load_encoder, read_metadata, weights_file

HEAD_STD = 0.02  # timm's, before head_init_scale
PRETRAINED_HEAD_SCALE = 0.001  # 2e-5, as the released code redraws the head


def create_classifier(
    config: FinetuneConfig, classes: tuple[str, ...]
) -> tuple[ConvNeXt, list[str]]:
    """Return the model with its starting weights, and sentences about what was not loaded.

    What is drawn depends on train.seed alone. A classifier in model.weights is taken when it is
    for the same classes.

    Raises:
        ConfigError: an unknown model.
        CheckpointError: weights that cannot be read or do not fit.
    """
    model_config = config.model
    with seeded(sample_seed(config.train.seed, "weights")):
        model = create_backbone(
            model_config.name,
            in_chans=config.data.in_chans,
            stem_stride=model_config.stem_stride,
            drop_path=model_config.drop_path,
            num_classes=len(classes),
        )
    scale = model_config.head_init_scale
    if scale is None:
        scale = 1.0 if model_config.weights is None else PRETRAINED_HEAD_SCALE
    _draw_head(model, scale, config.train.seed)
    if model_config.weights is None:
        return model, []
    told = load_encoder(model, model_config.weights)
    known = weights_metadata(config).get("classes")
    if known is not None and tuple(known) != classes and len(known) == len(classes):
        _draw_head(model, scale, config.train.seed)
        told.append(f"{model_config.weights}: its classifier is for other classes and left out.")
    return model, told


def _draw_head(model: ConvNeXt, scale: float, seed: int) -> None:
    with seeded(sample_seed(seed, "head")), torch.no_grad():
        nn.init.trunc_normal_(model.head.fc.weight, std=HEAD_STD)
        model.head.fc.weight.mul_(scale)
        nn.init.zeros_(model.head.fc.bias)


def weights_metadata(config: FinetuneConfig) -> dict[str, Any]:
    """Return what model.weights says about itself; {} without weights or metadata."""
    if config.model.weights is None:
        return {}
    file = weights_file(config.model.weights)
    return {} if file is None else read_metadata(file)


def mean_and_std(config: FinetuneConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return channel statistics: of the settings, else of the weights, else the usual ones.

    Raises:
        CheckpointError: the weights name statistics for another number of channels.
    """
    in_chans = config.data.in_chans
    if config.data.mean is not None and config.data.std is not None:
        return tuple(config.data.mean), tuple(config.data.std)
    metadata = weights_metadata(config)
    mean, std = default_mean_std(in_chans)
    mean = tuple(metadata.get("mean") or mean)
    std = tuple(metadata.get("std") or std)
    if not len(mean) == len(std) == in_chans:
        raise CheckpointError(
            f"model.weights: {config.model.weights} was made for {len(mean)} channels, and "
            f"data.in_chans is {in_chans}; set it to {len(mean)}, or use other weights."
        )
    return mean, std


def create_augmentation(config: FinetuneConfig) -> FinetuneAugmentation:
    """Return the random changes of training images."""
    mean, std = mean_and_std(config)
    size = image_height_width(config.data.image_size)
    return FinetuneAugmentation(config.augment, size, mean=mean, std=std)


def create_evaluation_transform(config: FinetuneConfig) -> EvaluationTransform:
    """Return the fixed preparation of validation images."""
    mean, std = mean_and_std(config)
    size = image_height_width(config.data.image_size)
    return EvaluationTransform(size, mean=mean, std=std, crop_pct=config.data.crop_pct)


def create_mixup(config: FinetuneConfig, num_classes: int) -> Mixup | None:
    """Return timm's mixing of a batch, which also smooths labels; None when nothing is mixed."""
    augment = config.augment
    if augment.mixup == 0 and augment.cutmix == 0:
        return None
    return Mixup(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        label_smoothing=augment.smoothing,
        num_classes=num_classes,
    )


def create_loss(config: FinetuneConfig) -> nn.Module:
    """Return the training loss: of soft targets when images are mixed, else of labels."""
    if config.augment.mixup > 0 or config.augment.cutmix > 0:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(config.augment.smoothing)


def create_optimizer(config: FinetuneConfig, model: ConvNeXt) -> torch.optim.AdamW:
    """Return AdamW with a group per layer and decay."""
    optim = config.optim
    groups = finetune_groups(
        model.named_parameters(),
        depths=block_counts(model),
        weight_decay=optim.weight_decay,
        layer_decay=optim.layer_decay,
        assigner=optim.layer_decay_assigner,
    )
    return torch.optim.AdamW(groups, lr=optim.base_lr, betas=optim.betas)


def block_counts(model: ConvNeXt) -> tuple[int, ...]:
    """Return the number of blocks of each stage."""
    stages: Any = model.stages
    return tuple(len(stage.blocks) for stage in stages)


class Schedule:
    """Lengths in steps and the learning rate of each step.

    Attributes:
        total_steps: of the whole run.
        warmup_steps: of the linear rise.
        evaluate_every: steps between evaluations; the whole run when none is asked for.
        peak: largest learning rate, before layer decay.

    Raises:
        ConfigError: a warm-up longer than the run, or a least rate above the peak.
    """

    def __init__(self, config: FinetuneConfig, num_images: int, effective_batch: int) -> None:
        train, optim, evaluate = config.train, config.optim, config.evaluate

        def steps(number: int | None, epochs: float | None, otherwise: int) -> int:
            if epochs is not None:
                return steps_of(epochs, num_images, effective_batch)
            return otherwise if number is None else number

        self.total_steps = steps(train.steps, train.epochs, 0)
        self.warmup_steps = steps(optim.warmup_steps, optim.warmup_epochs, 0)
        self.evaluate_every = max(
            1, steps(evaluate.every_steps, evaluate.every_epochs, self.total_steps)
        )
        self.peak = peak_lr(optim.base_lr, effective_batch)
        if self.warmup_steps > self.total_steps:
            raise ConfigError(
                f"optim.warmup_epochs, optim.warmup_steps: the warm-up takes {self.warmup_steps} "
                f"steps and the whole run {self.total_steps}; shorten it or train longer."
            )
        if optim.min_lr > self.peak:
            raise ConfigError(
                f"optim.min_lr: {optim.min_lr:g} is above the peak rate {self.peak:g} (base_lr x "
                f"{effective_batch} images / 256); raise optim.base_lr or lower optim.min_lr."
            )
        self._final = optim.min_lr / self.peak if self.peak else 0.0

    def __call__(self, step: int) -> float:
        """Return the absolute learning rate of 0-based `step`."""
        return self.peak * lr_factor(
            step,
            warmup_steps=self.warmup_steps,
            total_steps=self.total_steps,
            final=self._final,
        )
