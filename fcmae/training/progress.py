"""How far a run is, and how much it takes per step."""

from __future__ import annotations

import dataclasses
from typing import Any

from fcmae.errors import ConfigError
from fcmae.training.processes import Processes

LOSS_HISTORY = 10  # finite losses that an error message shows


@dataclasses.dataclass
class Progress:
    """What decides the future of a run beside weights and optimizer; part of a checkpoint.

    Attributes:
        step: steps taken.
        loss_sum: sum of the losses since the last line of metrics.jsonl.
        loss_count: how many they are.
        nonfinite_steps: steps left out because of a loss that was not finite.
        history: the last finite losses.
    """

    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    nonfinite_steps: int = 0
    history: list[float] = dataclasses.field(default_factory=list)

    def add_loss(self, loss: float) -> None:
        """Count a finite loss."""
        self.loss_sum += loss
        self.loss_count += 1
        self.history = [*self.history, loss][-LOSS_HISTORY:]

    def take_mean_loss(self) -> float | None:
        """Return the mean since it was last taken; None when there was no finite loss."""
        mean = self.loss_sum / self.loss_count if self.loss_count else None
        self.loss_sum, self.loss_count = 0.0, 0
        return mean


def effective_batch_of(config: Any, processes: Processes, num_images: int) -> int:
    """Return the images of a step, in all processes.

    Raises:
        ConfigError: there are fewer images than that.
    """
    train = config.train
    effective_batch: int = train.batch_size * train.accumulate * processes.world_size
    if num_images < effective_batch:
        raise ConfigError(
            f"train.batch_size: a step takes {effective_batch} images (batch_size x accumulate x "
            f"processes) and there are {num_images} training images; use a smaller batch_size, "
            "or more images."
        )
    return effective_batch
