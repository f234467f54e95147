"""What a pretraining costs: arithmetic counted from the model, time read from its log."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from fcmae.model.autoencoder import create_anywhere
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.sections import TrainConfig

FORWARD_PASSES = 3  # a backward pass costs two forward ones: gradients of inputs and of weights


def flops_per_image(config: PretrainConfig) -> float:
    """Return the floating-point operations of training on one image, two per multiply-add.

    Counted are convolutions and matrix products. Every cell of the encoder costs the same, so a
    sparse encoder's work is the dense one's times the visible share; masked_dense computes all.
    """
    with torch.device("meta"):
        model = create_anywhere(config)
        images = torch.zeros(1, model.in_chans, *model.image_size)
        with FlopCounterMode(display=False) as encoder, torch.no_grad():
            features = model.encoder.forward_features(images)
        is_masked = torch.zeros(1, 1, *features.shape[2:], dtype=torch.bool)
        with FlopCounterMode(display=False) as decoder, torch.no_grad():
            model.decoder(features, is_masked)
    is_sparse = config.model.backend != "masked_dense"
    share = 1 - model.effective_mask_ratio if is_sparse else 1.0
    forward = share * encoder.get_total_flops() + decoder.get_total_flops()
    return float(FORWARD_PASSES * forward)


def flop_unit(largest: float) -> tuple[float, str]:
    """Return the size and name of the unit in which `largest` is a readable number."""
    units = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"))
    return next((unit for unit in units if largest >= unit[0]), (1e9, "GFLOP"))


def effective_batch(lines: Iterable[Mapping[str, Any]], train: TrainConfig) -> int:
    """Return the images of a step in all processes, as metrics.jsonl says.

    Version 0.1.0 did not write it; its runs count as those of one process.
    """
    said = [int(line["effective_batch"]) for line in lines if line.get("effective_batch")]
    return said[-1] if said else train.batch_size * train.accumulate


def seconds_per_image(lines: Iterable[Mapping[str, Any]]) -> float | None:
    """Return the median of what metrics.jsonl measured, or None when nothing was.

    The median leaves out the lines whose time holds a checkpoint. The first line is the first
    step, which is slower than the others.
    """
    rates = [line["images_per_second"] for line in lines if line.get("images_per_second")]
    return 1 / statistics.median(rates[1:]) if len(rates) > 1 else None


def training_seconds(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the seconds of all steps of a run at their median rate; None when unmeasured.

    Only steps count: reading the images for the first time, evaluations and checkpoints do not.
    """
    per_image = seconds_per_image(lines)
    batches = [int(line["effective_batch"]) for line in lines if line.get("effective_batch")]
    if per_image is None or not batches:
        return None
    return per_image * batches[-1] * max(int(line["step"]) for line in lines)
