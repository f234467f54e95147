"""The optimizer: which parameters decay and how fast each learns, and one step in all processes.

Layer-wise rates know timm's parameter names; the rates themselves come from schedule.py.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fcmae.errors import ConfigError
from fcmae.model.precision import autocast, check_precision, set_tf32
from fcmae.settings.sections import OptimConfig
from fcmae.training.processes import Processes

Assigner = Literal["single", "group"]

FUSED_DEVICES = ("cpu", "cuda")  # where every torch from 2.8 on has the fused AdamW

_NUM_GROUPS = 12  # of the `group` form, written for 27 blocks in the third stage
_BLOCKS_PER_GROUP = 3


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: weights of convolutions and linear layers, nothing else.

    Norms, biases, GRN weights, layer scale and the mask token do not decay, also where a backend
    stores them with more than one dimension.

    Deviation: the released pretraining decays GRN weights and the mask token. Held by
        test_only_matrices_decay.
    """
    return parameter.dim() >= 2 and name.rpartition(".")[2] in ("weight", "kernel")


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    lr_scale_of: Callable[[str], float] | None = None,
) -> list[dict[str, Any]]:
    """Return AdamW's groups of the trainable parameters, by scale of the rate and decay.

    Every group carries `weight_decay` and `lr_scale`, by which the schedule multiplies its rate:
    what `lr_scale_of` says of a name, 1 without it.

    Checkpoints count parameters in the order of the groups, which is therefore fixed: by scale,
    and in each those without decay first, but last where there are no scales.
    """
    is_plain = lr_scale_of is None
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            scale = 1.0 if lr_scale_of is None else lr_scale_of(name)
            groups.setdefault((scale, decays(name, parameter) != is_plain), []).append(parameter)
    return [
        {
            "params": groups[scale, is_last],
            "lr_scale": scale,
            "weight_decay": weight_decay if is_last != is_plain else 0.0,
        }
        for scale, is_last in sorted(groups)
    ]


def create_optimizer(
    groups: list[dict[str, Any]], optim: OptimConfig, device: torch.device
) -> torch.optim.AdamW:
    """Return AdamW of parameter groups on a device; see `parameter_groups`.

    Where torch has one kernel for all of it, that is taken: it is several times faster, and on GPUs
    it can leave a step out by itself.
    """
    fused = True if device.type in FUSED_DEVICES else None
    return torch.optim.AdamW(groups, lr=optim.base_lr, betas=optim.betas, fused=fused)


def may_read_late(device: torch.device) -> bool:
    """Whether waiting for a step's result would keep the device idle: on GPUs."""
    return device.type == "cuda"


def lr_scale(name: str, *, depths: tuple[int, ...], decay: float, assigner: Assigner) -> float:
    """Return the factor of the learning rate for the parameter of this timm name.

    `single`: every block is a layer; the stem counts as the first block and a downsample layer as
    the first block behind it. `group`: 13 layers whatever the depth, 0 for the stem, 1 and 2 for
    stages 0 and 1 (a downsample layer belongs to the stage behind it, except that the one before
    stage 2 is layer 3), 3 to 11 for triples of blocks of stage 2, 12 for stage 3. The factor falls
    by `decay` per layer from the last one to the first; the final norm and the classifier have 1.

    Source: ConvNeXt V2, appendix A.1 and the released fine-tuning code.

    Raises:
        ConfigError: a name that is no part of a ConvNeXt, unless `decay` is 1.
    """
    if decay == 1:
        return 1.0
    num_layers = sum(depths) if assigner == "single" else _NUM_GROUPS
    return decay ** (num_layers + 1 - _layer(name, depths, num_layers, assigner))


def _layer(name: str, depths: tuple[int, ...], num_layers: int, assigner: Assigner) -> int:
    """Return the number of a parameter's layer; num_layers + 1 behind the last block."""
    if name.startswith("stem."):
        return 1 if assigner == "single" else 0
    if name.startswith(("norm_pre.", "head.")):
        return num_layers + 1
    found = re.match(r"stages\.(\d+)\.(?:downsample|blocks\.(\d+))\.", name)
    if found is None:
        raise ConfigError(
            f"optim.layer_decay: parameter {name!r} belongs to no layer of a ConvNeXt; "
            "set optim.layer_decay to 1 for this model."
        )
    stage, block = int(found[1]), int(found[2] or 0)
    if assigner == "single":
        return sum(depths[:stage]) + block + 1
    if stage == 2:
        return min(3 + block // _BLOCKS_PER_GROUP, num_layers)
    return (1, 2, 3, num_layers)[stage]


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

    @property
    def was_taken(self) -> bool:
        """Whether the weights changed; see LateResult."""
        return self.is_finite

    def read(self) -> StepResult:
        """Return itself: it is known already."""
        return self


class LateResult:
    """What a step will have done, on its way to the host while the device goes on.

    Args:
        numbers: gradient norm, sum of losses and answers, on the device.
        conclude: makes the result of them.
        was_taken: what StepResult.is_finite will be: a bool without dimensions, on the device.

    Attributes:
        was_taken: as given.
    """

    def __init__(
        self,
        numbers: Tensor,
        conclude: Callable[[list[float]], StepResult],
        was_taken: Tensor,
    ) -> None:
        self.was_taken = was_taken
        self._conclude = conclude
        self._event: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._numbers = torch.empty_like(numbers, device="cpu", pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._numbers = numbers.clone()

    def read(self) -> StepResult:
        """Return the result; waits until the device has come so far."""
        if self._event is not None:
            self._event.synchronize()
        return self._conclude(self._numbers.tolist())


class Optimization:
    """Takes optimizer steps of a model.

    Args:
        model: the module whose gradients are reduced; DDP when there are several processes.
        optimizer: its groups may carry "lr_scale" (layer decay); 1 without.
        lr_of_step: learning rate, absolute, of a 0-based step.
        processes: this process and the others.
        precision: fp32 (IEEE), bf16, or on CUDA only tf32 and fp16.
        accumulate: micro-steps per step.
        clip_grad: largest L2 norm of the gradient, or None.
        is_late: `step` does not wait for the device, which decides by itself whether the weights
            change; the optimizer must be fused. What a step does to weights and optimizer is the
            same.
        owns_gradients: sums the gradients of micro-steps in memory of their own: CUDA graphs write
            each to where they wrote the last.

    Attributes:
        model, processes: as given.
        scaler: of the losses of fp16, so that its gradients do not vanish; off otherwise.

    Raises:
        ConfigError: fp16 or tf32 on a CPU.
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
        is_late: bool = False,
        owns_gradients: bool = False,
    ) -> None:
        check_precision(precision, processes.device)
        set_tf32(precision)
        self.model = model
        self._optimizer = optimizer
        self._lr_of_step = lr_of_step
        self.processes = processes
        self._precision = precision
        self._accumulate = accumulate
        self._clip_grad = clip_grad
        self._is_late = is_late
        self._owns_gradients = owns_gradients and accumulate > 1
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=precision == "fp16")

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which the model runs."""
        return autocast(self.processes.device, self._precision)

    def step(
        self,
        step: int,
        micro_batches: Iterable[Any],
        compute_loss: Callable[[Any], Tensor],
        answer: Callable[[], Sequence[bool]] = tuple,
    ) -> StepResult | LateResult:
        """Take step `step`: mean gradient over all micro-batches of all processes, then update.

        `answer` is called late in the step: what this process says to questions that are the same
        in all of them. Any yes counts for all (see StepResult.agreed).

        A loss or gradient that is not finite in any process leaves the weights of all unchanged.
        """
        lr = self._lr_of_step(step)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self._optimizer.zero_grad(set_to_none=True)
        if self._owns_gradients:
            for parameter in self._parameters():
                parameter.grad = torch.zeros_like(parameter)
        total = torch.zeros((), dtype=torch.float64, device=self.processes.device)
        for number, batch in enumerate(micro_batches):
            is_last = number == self._accumulate - 1
            with self._reduce_gradients(is_last):
                with self.autocast():
                    loss = compute_loss(batch) / self._accumulate
                self.scaler.scale(loss).backward()
            total = total + loss.detach()
        norm = self._clip()
        # One exchange per step for everything that the host must know, and one wait for the device
        # at most. Filled there: a copy from pageable memory would wait, too.
        yes = [torch.full_like(total, float(bool(said))) for said in answer()]
        summed = self.processes.sum(torch.stack([total, *yes]))
        numbers = torch.cat([norm.to(total).view(1), summed])
        conclude = functools.partial(self._conclude, lr)
        if self._is_late:
            self._update_if_finite(numbers[:2])
            # As _conclude says of the numbers.
            deciding = numbers[1] if self.scaler.is_enabled() else numbers[:2]
            return LateResult(numbers, conclude, deciding.isfinite().all())
        result = conclude(numbers.tolist())
        if result.is_finite:
            self.scaler.step(self._optimizer)
        # Also without a step: the scale must fall, and gradients be unscaled again next time.
        self.scaler.update()
        return result

    def _conclude(self, lr: float, numbers: list[float]) -> StepResult:
        """Return what a step did by its gradient norm, sum of losses and sums of answers."""
        grad_norm, loss_sum, *yes = numbers
        mean_loss = loss_sum / self.processes.world_size
        # GradScaler skips steps whose gradient overflowed by itself and lowers the scale.
        is_finite = math.isfinite(mean_loss) and (
            math.isfinite(grad_norm) or self.scaler.is_enabled()
        )
        return StepResult(mean_loss, lr, grad_norm, is_finite, tuple(map(bool, yes)))

    def _update_if_finite(self, norm_and_loss: Tensor) -> None:
        """Let the device take the step, or leave it out, without telling the host.

        By the way in which GradScaler asks fused optimizers, which then leave their count of steps
        alone, too.
        """
        optimizer: Any = self._optimizer
        optimizer.grad_scale = None  # gradients are unscaled already
        optimizer.found_inf = (~norm_and_loss.isfinite().all()).float()
        try:
            optimizer.step()
        finally:
            del optimizer.grad_scale, optimizer.found_inf
        self.scaler.update()

    def _reduce_gradients(self, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        """Let DDP exchange gradients in the last micro-step only."""
        network = getattr(self.model, "_orig_mod", self.model)  # of torch.compile
        if is_last or not isinstance(network, DistributedDataParallel):
            return contextlib.nullcontext()
        return network.no_sync()

    def _clip(self) -> Tensor:
        """Clip the gradient where that is asked for; return its norm from before."""
        self.scaler.unscale_(self._optimizer)
        parameters = self._parameters()
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self._clip_grad is not None:
            nn.utils.clip_grads_with_norm_(parameters, self._clip_grad, norm)
        return norm

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """Return optimizer and scaler as plain data and tensors."""
        return {"optimizer": self._optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        # How this machine computes is not the checkpoint's to say; but on a CPU, which has both
        # ways, a run that began with torch's plain AdamW goes on with it, bit for bit.
        saved = state["optimizer"]
        groups = saved["param_groups"]
        if self.processes.device.type != "cpu":
            mine = [group.get("fused") for group in self._optimizer.param_groups]
            groups = [
                {**group, "fused": fused} if "fused" in group else group
                for group, fused in zip(groups, mine, strict=True)
            ]
        self._optimizer.load_state_dict({**saved, "param_groups": groups})
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
