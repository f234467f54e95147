"""One optimizer step: schedule, micro-steps, precision, clipping, finiteness, in all processes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fcmae.errors import ConfigError
from fcmae.training.processes import Processes

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str, device: torch.device) -> None:
    """Raise ConfigError where a precision is asked for that the device does not have."""
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError(
            f"train.precision: fp16 needs a GPU, and this run computes on the {device.type}; "
            "use bf16 or fp32."
        )


@dataclass(frozen=True)
class StepResult:
    """What a step did.

    Attributes:
        loss: mean over the effective batch, in all processes the same.
        lr: learning rate of the step, of groups without a scale.
        grad_norm: L2 norm of the gradient before clipping.
        is_finite: False when loss or gradient was not, and the weights were left alone.
        agreed: for each of the step's questions, whether any process said yes.
    """

    loss: float
    lr: float
    grad_norm: float
    is_finite: bool
    agreed: tuple[bool, ...]


class Optimization:
    """Takes optimizer steps of a model.

    Args:
        model: the module whose gradients are reduced; DDP when there are several processes.
        optimizer: its groups may carry "lr_scale" (layer decay); 1 without.
        lr_of_step: learning rate, absolute, of a 0-based step.
        processes: this process and the others.
        precision: fp32, bf16 or fp16 (CUDA only).
        accumulate: micro-steps per step.
        clip_grad: largest L2 norm of the gradient, or None.

    Raises:
        ConfigError: fp16 on a CPU.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_of_step: Callable[[int], float],
        processes: Processes,
        *,
        precision: str = "fp32",
        accumulate: int = 1,
        clip_grad: float | None = None,
    ) -> None:
        check_precision(precision, processes.device)
        self._model = model
        self._optimizer = optimizer
        self._lr_of_step = lr_of_step
        self._processes = processes
        self._precision = precision
        self._accumulate = accumulate
        self._clip_grad = clip_grad
        self._scaler = torch.amp.GradScaler(processes.device.type, enabled=precision == "fp16")

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which the model runs."""
        if self._precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self._processes.device.type, dtype=_AUTOCAST[self._precision])

    def step(
        self,
        step: int,
        micro_batches: Iterable[Any],
        compute_loss: Callable[[Any], Tensor],
        answer: Callable[[], Sequence[bool]] = tuple,
    ) -> StepResult:
        """Take step `step`: mean gradient over all micro-batches of all processes, then update.

        `answer` is called late in the step: what this process says to questions that are the same
        in all of them. Any yes counts for all (see StepResult.agreed).

        A loss or gradient that is not finite in any process leaves the weights of all unchanged.
        """
        lr = self._lr_of_step(step)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64)
        for number, batch in enumerate(micro_batches):
            is_last = number == self._accumulate - 1
            with self._reduce_gradients(is_last):
                with self.autocast():
                    loss = compute_loss(batch) / self._accumulate
                self._scaler.scale(loss).backward()
            total = total.to(loss.device) + loss.detach()
        norm = self._clip()
        # One exchange and one wait for the device per step, for everything the host must know.
        answers = torch.tensor(tuple(answer()), dtype=total.dtype, device=total.device)
        summed = self._processes.sum(torch.cat([total.view(1), answers]))
        grad_norm, loss_sum, *yes = torch.cat([norm.to(total).view(1), summed]).tolist()
        mean_loss = loss_sum / self._processes.world_size
        # GradScaler skips steps whose gradient overflowed by itself and lowers the scale.
        is_finite = math.isfinite(mean_loss) and (
            math.isfinite(grad_norm) or self._scaler.is_enabled()
        )
        if is_finite:
            self._scaler.step(self._optimizer)
        # Also without a step: the scale must fall, and gradients be unscaled again next time.
        self._scaler.update()
        return StepResult(mean_loss, lr, grad_norm, is_finite, tuple(map(bool, yes)))

    def _reduce_gradients(self, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        """Let DDP exchange gradients in the last micro-step only."""
        if is_last or not isinstance(self._model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self._model.no_sync()

    def _clip(self) -> Tensor:
        """Clip the gradient where that is asked for; return its norm from before."""
        self._scaler.unscale_(self._optimizer)
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self._clip_grad is not None:
            nn.utils.clip_grads_with_norm_(parameters, self._clip_grad, norm)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Return optimizer and scaler as plain data and tensors."""
        return {"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._optimizer.load_state_dict(state["optimizer"])
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])
