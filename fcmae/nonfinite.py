"""What is said and kept of a step whose loss is NaN or infinite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fcmae.errors import NonFiniteLossError
from fcmae.optimization import StepResult


def nonfinite_loss_error(
    result: StepResult, batches: list[dict[str, Any]], history: list[float], file: Path
) -> NonFiniteLossError:
    """Save the batches of a step with a NaN or infinite loss, and say all that is known."""
    kept = [
        {name: batch[name] for name in ("image", "visible", "label", "path") if name in batch}
        for batch in batches
    ]
    try:
        torch.save(kept, file)
        saved = f"its batch is in {file}"
    except (OSError, RuntimeError) as error:
        saved = f"its batch could not be saved ({error})"
    paths = [repr(path) for batch in batches for path in batch["path"]]
    listed = ", ".join(paths[:4]) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
    before = ", ".join(f"{loss:.4g}" for loss in history) or "none"
    return NonFiniteLossError(
        f"the loss of {file.stem} is {result.loss}, the gradient's norm {result.grad_norm}, the "
        f"learning rate {result.lr:.3g}; finite losses before: {before}. It saw {listed}; {saved}. "
        "Lower optim.base_lr, set optim.clip_grad, use train.precision fp32, or allow "
        "train.skip_nonfinite_steps; the last checkpoint is unharmed."
    )
