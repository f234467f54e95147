"""The learning rate as arithmetic on the step."""

from __future__ import annotations

import math


def lr_factor(step: int, *, warmup_steps: int, total_steps: int, final: float = 0.0) -> float:
    """Return the multiplier of the peak rate at 0-based `step`: linear rise, half cosine to final.

    Source: ConvNeXt V2, table 8: warm-up from 0, then cosine decay, both per step.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min((step - warmup_steps) / max(1, total_steps - warmup_steps), 1.0)
    return final + (1 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def peak_lr(base_lr: float, effective_batch: int) -> float:
    """Return the absolute rate of the linear rule: base_lr per 256 images of an optimizer step."""
    return base_lr * effective_batch / 256


def steps_of(epochs: float, num_images: int, effective_batch: int) -> int:
    """Return the steps that `epochs` passes over the images take; the last one is rounded up."""
    return math.ceil(round(epochs * num_images / effective_batch, 6))
