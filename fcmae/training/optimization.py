"""The optimizer: which parameters decay and how fast each learns, and one step in all processes.

Layer-wise rates know timm's parameter names; the rates themselves come from schedule.py.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fcmae.errors import ConfigError
from fcmae.settings.sections import OptimConfig
from fcmae.training.processes import Processes

Assigner = Literal["single", "group"]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
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


def create_optimizer(groups: list[dict[str, Any]], optim: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW of parameter groups; see `parameter_groups`."""
    return torch.optim.AdamW(groups, lr=optim.base_lr, betas=optim.betas)


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


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which a model computes in fp32, tf32, bf16 or fp16; see `set_tf32`."""
    if precision in ("fp32", "tf32"):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=_AUTOCAST[precision])


def check_precision(precision: str, device: torch.device) -> None:
    """Raise ConfigError where a precision is asked for that the device does not have."""
    if precision in ("fp16", "tf32") and device.type != "cuda":
        raise ConfigError(
            f"train.precision: {precision} needs a GPU, and this run computes on the "
            f"{device.type}; use bf16 or fp32."
        )


def set_tf32(precision: str) -> None:
    """Let GPUs multiply float32 as `precision` says: fp32 is IEEE, tf32 has 10 bits and is fast.

    torch's own defaults mix both: TF32 in convolutions, none in matrix products. bf16 and fp16
    leave them, for the little that stays in float32.
    """
    if precision in ("fp32", "tf32"):
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"


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
        precision: fp32 (IEEE), bf16, or on CUDA only tf32 and fp16.
        accumulate: micro-steps per step.
        clip_grad: largest L2 norm of the gradient, or None.

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
                self.scaler.scale(loss).backward()
            total = total.to(loss.device) + loss.detach()
        norm = self._clip()
        # One exchange and one wait for the device per step, for everything the host must know. The
        # wait stays: whether the step is taken, counted, saved or the last one depends on what it
        # brings, and read a step later a run would log, save and stop a step too late, and could
        # take a step more than its checkpoint says.
        answers = torch.tensor(tuple(answer()), dtype=total.dtype, device=total.device)
        summed = self.processes.sum(torch.cat([total.view(1), answers]))
        grad_norm, loss_sum, *yes = torch.cat([norm.to(total).view(1), summed]).tolist()
        mean_loss = loss_sum / self.processes.world_size
        # GradScaler skips steps whose gradient overflowed by itself and lowers the scale.
        is_finite = math.isfinite(mean_loss) and (
            math.isfinite(grad_norm) or self.scaler.is_enabled()
        )
        if is_finite:
            self.scaler.step(self._optimizer)
        # Also without a step: the scale must fall, and gradients be unscaled again next time.
        self.scaler.update()
        return StepResult(mean_loss, lr, grad_norm, is_finite, tuple(map(bool, yes)))

    def _reduce_gradients(self, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        """Let DDP exchange gradients in the last micro-step only."""
        network = getattr(self.model, "_orig_mod", self.model)  # of torch.compile
        if is_last or not isinstance(network, DistributedDataParallel):
            return contextlib.nullcontext()
        return network.no_sync()

    def _clip(self) -> Tensor:
        """Clip the gradient where that is asked for; return its norm from before."""
        self.scaler.unscale_(self._optimizer)
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self._clip_grad is not None:
            nn.utils.clip_grads_with_norm_(parameters, self._clip_grad, norm)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Return optimizer and scaler as plain data and tensors."""
        return {"optimizer": self._optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
