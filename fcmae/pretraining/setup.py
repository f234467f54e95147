"""Builds the parts of a pretraining from its settings: pure construction, nothing is run."""

from __future__ import annotations

import torch

from fcmae.data import (
    ImageList,
    PixelCache,
    PretrainAugmentation,
    PretrainDataset,
    Reading,
)
from fcmae.model.autoencoder import FCMAE
from fcmae.settings.pretrain import PretrainConfig
from fcmae.training.parameter_groups import decay_groups


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
        reading=Reading.of_settings(data),
    )


def create_dataset(
    config: PretrainConfig, model: FCMAE, images: ImageList, cache: PixelCache | None
) -> PretrainDataset:
    """Return the samples of a run: crops, flips and masks by (seed, epoch, index)."""
    return PretrainDataset(
        images,
        create_augmentation(config, model),
        seed=config.train.seed,
        reading=Reading.of_settings(config.data),
        num_patches=model.num_patches,
        mask_ratio=config.mask.ratio,
        cache=cache,
    )


def create_optimizer(config: PretrainConfig, model: FCMAE) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters, in two decay groups."""
    groups = decay_groups(model.named_parameters(), config.optim.weight_decay)
    return torch.optim.AdamW(groups, lr=config.optim.base_lr, betas=config.optim.betas)
