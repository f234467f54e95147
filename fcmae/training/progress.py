"""How far a run is, and what is said and kept of a step whose loss is NaN or infinite."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from fcmae.errors import NonFiniteLossError
from fcmae.runs.durable import save_torch, write_atomically
from fcmae.training.optimization import StepResult

LOSS_HISTORY = 10  # finite losses that an error message shows
PATHS_SAID = 4


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


def nonfinite_loss_error(
    step: int,
    rank: int,
    result: StepResult,
    batches: list[dict[str, Any]],
    history: list[float],
    folder: Path,
) -> NonFiniteLossError:
    """Save what this process read for `step`, counted from 1, and say all that is known.

    nonfinite-step-00000012-0.pt in `folder` holds {"step", "batches"}: a dict of tensors and paths
    per micro-step, for torch.load with weights_only.
    """
    file = folder / f"nonfinite-step-{step:08d}-{rank}.pt"
    kept = {"step": step, "batches": [_plain(batch) for batch in batches]}
    try:
        write_atomically(file, lambda partial: save_torch(kept, partial))
        saved = f"its batch is in {file}"
    except (OSError, RuntimeError) as error:  # torch's writer has its own error for a full disk
        saved = f"its batch could not be saved ({' '.join(str(error).split())})"
    paths = [repr(path) for batch in batches for path in batch["path"]]
    listed = ", ".join(paths[:PATHS_SAID])
    listed += f" and {len(paths) - PATHS_SAID} more" if len(paths) > PATHS_SAID else ""
    before = ", ".join(f"{loss:.4g}" for loss in history) or "none"
    return NonFiniteLossError(
        f"step {step}, process {rank}: the loss is {result.loss}, the gradient's norm "
        f"{result.grad_norm}, the learning rate {result.lr:.3g}; finite losses before: {before}. "
        f"The process read {listed}; {saved}. This run goes on from its last checkpoint when "
        "train.skip_nonfinite_steps allows such steps; a new run.dir may also lower "
        "optim.base_lr, set optim.clip_grad or use train.precision fp32."
    )


def _plain(batch: dict[str, Any]) -> dict[str, Any]:
    names = ("image", "visible", "label", "index")
    kept: dict[str, Any] = {name: batch[name] for name in names if name in batch}
    # Names that are no UTF-8 carry surrogates, which torch.load refuses.
    paths = [os.fsencode(path).decode(errors="backslashreplace") for path in batch["path"]]
    return {**kept, "path": paths}
