"""The length of a run in steps, and the learning rate as arithmetic on the step."""

from __future__ import annotations

import math
from typing import NamedTuple

from fcmae.errors import ConfigError
from fcmae.settings.sections import OptimConfig, TrainConfig


class Length(NamedTuple):
    """What decides how the rate falls: the steps of a run and the first one of its decay.

    Attributes:
        total_steps: of the whole run.
        decay_start: see Schedule.
    """

    total_steps: int
    decay_start: int | None

    def shares(self, other: Length, step: int) -> bool:
        """Whether runs of both lengths are the same for their first `step` steps."""
        if self == other:
            return True
        if self.decay_start is None or other.decay_start is None:
            return False
        return step <= min(self.decay_start, other.decay_start)


class Schedule:
    """Lengths in steps and the absolute learning rate of each 0-based step.

    Attributes:
        total_steps: of the whole run.
        warmup_steps: of the linear rise.
        decay_start: steps before the rate falls; what comes earlier is the same whatever the
            length. None of a cosine, which falls from the warm-up on by the length.
        peak: largest learning rate, before layer decay.
        effective_batch: images of a step, as given.

    Raises:
        ConfigError: a warm-up longer than the run, or a least rate above the peak.
    """

    def __init__(
        self, train: TrainConfig, optim: OptimConfig, num_images: int, effective_batch: int
    ) -> None:
        self._num_images, self.effective_batch = num_images, effective_batch
        self.total_steps = self.steps(train.steps, train.epochs)
        self.warmup_steps = self.steps(optim.warmup_steps, optim.warmup_epochs)
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
        self.decay_start: int | None = None
        if optim.schedule == "wsd":
            decay_steps = max(1, round(optim.decay_share * self.total_steps))
            self.decay_start = max(self.warmup_steps, self.total_steps - decay_steps)

    @property
    def length(self) -> Length:
        """What a checkpoint notes, so that a run of another length knows what it can use."""
        return Length(self.total_steps, self.decay_start)

    def steps(self, number: int | None, epochs: float | None, otherwise: int = 0) -> int:
        """Return a duration in steps: given as such, or in epochs, or `otherwise`."""
        if epochs is not None:
            return steps_of(epochs, self._num_images, self.effective_batch)
        return otherwise if number is None else number

    def __call__(self, step: int) -> float:
        """Return the learning rate of `step`, of groups without a scale of their own."""
        return self.peak * lr_factor(
            step,
            warmup_steps=self.warmup_steps,
            total_steps=self.total_steps,
            final=self._final,
            decay_start=self.decay_start,
        )


def lr_factor(
    step: int,
    *,
    warmup_steps: int,
    total_steps: int,
    final: float = 0.0,
    decay_start: int | None = None,
) -> float:
    """Return the multiplier of the peak rate at 0-based `step`: linear rise, then the decay.

    Without `decay_start` half a cosine down to `final`; with it 1 until that step, and then
    1 - sqrt(share of the decay that is over), down to `final`.

    Source: ConvNeXt V2, table 8: warm-up from 0, then cosine decay, both per step. Warm-up,
    constant, decay: Hu et al. 2024 (arXiv 2404.06395); the shape of the decay and its share of a
    fifth: Haegele et al. 2024 (arXiv 2405.18392).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    start = warmup_steps if decay_start is None else decay_start
    progress = min(max(0, step - start) / max(1, total_steps - start), 1.0)
    if decay_start is not None:
        return final + (1 - final) * (1.0 - math.sqrt(progress))
    return final + (1 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def peak_lr(base_lr: float, effective_batch: int) -> float:
    """Return the absolute rate of the linear rule: base_lr per 256 images of an optimizer step."""
    return base_lr * effective_batch / 256


def steps_of(epochs: float, num_images: int, effective_batch: int) -> int:
    """Return the steps that `epochs` passes over the images take; the last one is rounded up."""
    return math.ceil(round(epochs * num_images / effective_batch, 6))


def effective_batch_of(train: TrainConfig, world_size: int, num_images: int) -> int:
    """Return the images of a step, in all processes.

    Raises:
        ConfigError: there are fewer images than that.
    """
    effective_batch = train.batch_size * train.accumulate * world_size
    if num_images < effective_batch:
        raise ConfigError(
            f"train.batch_size: a step takes {effective_batch} images (batch_size x accumulate x "
            f"processes) and there are {num_images} training images; use a smaller batch_size, "
            "or more images."
        )
    return effective_batch
