"""Builds the parts of a pretraining from its settings: pure construction, nothing is run."""

from __future__ import annotations

import functools

import torch

from fcmae.data import (
    ImageList,
    PixelCache,
    PretrainAugmentation,
    PretrainDataset,
    default_mean_std,
    sample_seed,
    seeded,
)
from fcmae.errors import ConfigError
from fcmae.model.autoencoder import FCMAE
from fcmae.settings.pretrain import PretrainConfig
from fcmae.training.parameter_groups import decay_groups
from fcmae.training.schedule import lr_factor, peak_lr, steps_of


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


def mean_and_std(config: PretrainConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the channel statistics that images are normalised with, on the 0..1 scale."""
    mean, std = default_mean_std(config.data.in_chans)
    return tuple(config.data.mean or mean), tuple(config.data.std or std)


def create_augmentation(config: PretrainConfig, model: FCMAE) -> PretrainAugmentation:
    """Return the random changes of a run's images."""
    return PretrainAugmentation(
        model.image_size,
        crop_scale=config.data.crop_scale,
        horizontal_flip=config.data.horizontal_flip,
        vertical_flip=config.data.vertical_flip,
        rotate90=config.data.rotate90,
    )


def open_cache(config: PretrainConfig, model: FCMAE, images: ImageList) -> PixelCache | None:
    """Return what data.cache holds of the images, None without one.

    Raises:
        ConfigError: the folder cannot be used.
    """
    data = config.data
    if data.cache is None:
        return None
    return PixelCache(
        data.cache,
        images.paths,
        side=data.cache_side or create_augmentation(config, model).least_side(),
        in_chans=data.in_chans,
        value_range=data.value_range,
    )


def create_dataset(
    config: PretrainConfig, model: FCMAE, images: ImageList, cache: PixelCache | None
) -> PretrainDataset:
    """Return the samples of a run: crops, flips and masks by (seed, epoch, index)."""
    return PretrainDataset(
        images,
        create_augmentation(config, model),
        seed=config.train.seed,
        in_chans=config.data.in_chans,
        num_patches=model.num_patches,
        mask_ratio=config.mask.ratio,
        value_range=config.data.value_range,
        cache=cache,
    )


def total_steps_of(config: PretrainConfig, num_images: int, effective_batch: int) -> int:
    """Return the steps of the whole run.

    Raises:
        ConfigError: the warm-up is longer than the run.
    """
    train = config.train
    if train.steps is not None:
        total = train.steps
    else:
        assert train.epochs is not None  # exactly one is set
        total = steps_of(train.epochs, num_images, effective_batch)
    warmup = warmup_steps_of(config, num_images, effective_batch)
    if warmup > total:
        raise ConfigError(
            f"optim.warmup_epochs, optim.warmup_steps: the warm-up takes {warmup} steps and the "
            f"whole run {total}; shorten the warm-up or train longer."
        )
    return total


def warmup_steps_of(config: PretrainConfig, num_images: int, effective_batch: int) -> int:
    """Return the steps of the linear warm-up."""
    optim = config.optim
    if optim.warmup_epochs is not None:
        return steps_of(optim.warmup_epochs, num_images, effective_batch)
    return optim.warmup_steps or 0


def create_optimizer(config: PretrainConfig, model: FCMAE) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters, in two decay groups."""
    groups = decay_groups(model.named_parameters(), config.optim.weight_decay)
    return torch.optim.AdamW(groups, lr=config.optim.base_lr, betas=config.optim.betas)


class LearningRate:
    """The absolute learning rate of each step of a run."""

    def __init__(self, config: PretrainConfig, num_images: int, effective_batch: int) -> None:
        self.peak = peak_lr(config.optim.base_lr, effective_batch)
        self._factor = functools.partial(
            lr_factor,
            warmup_steps=warmup_steps_of(config, num_images, effective_batch),
            total_steps=total_steps_of(config, num_images, effective_batch),
            final=config.optim.min_lr / self.peak if self.peak else 0.0,
        )

    def __call__(self, step: int) -> float:
        return self.peak * self._factor(step)
