"""Global response normalisation over the active sites of a batch."""

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparse.ops import activation_compiled, activation_triton


def global_response_norm(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    over_batch: bool,
    after_gelu: bool = False,
) -> Tensor:
    """Apply GRN to [N, ..., C], pooling over all dimensions between the first and the last.

    Only active sites may stand in `features`: each one adds to the pooled response. The sums are
    taken in float32 at least.

    Args:
        features: [N, ..., C].
        weight: [C], gamma of the paper.
        bias: [C], beta of the paper.
        eps: added to the mean response, the divisor.
        over_batch: pool over the images too, as the released PyTorch layer does.
        after_gelu: take GELU of the features first; its result is computed again in backward, and
            so a quarter less memory is kept in a block.

    Source: ConvNeXt V2 (arXiv 2301.00808), section 3.2 and algorithm 1.
    Deviation: the authors' sparse layer pools over the whole batch; the default is per image, as
        in the dense model. Held by test_output_does_not_depend_on_batch_mates.
    """
    if after_gelu and features.is_contiguous():
        for kernels in (activation_triton, activation_compiled):
            if kernels.is_available(features):
                return _Compiled.apply(kernels, features, weight, bias, eps, over_batch)
    return _GlobalResponseNorm.apply(features, weight, bias, eps, over_batch, after_gelu)


class _GlobalResponseNorm(torch.autograd.Function):
    """x + bias + weight * x * ratio, with ratio = response / (mean response + eps).

    Backward keeps the features and one number per image and channel, and passes over the features
    four times; the graph of the formula would pass eight times.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        over_batch: bool,
        after_gelu: bool,
    ) -> Tensor:
        features = F.gelu(_accurate(inputs)) if after_gelu else inputs
        ctx.after_gelu = after_gelu
        first = 0 if over_batch else 1
        ctx.pooled = tuple(range(first, features.dim() - 1))
        response = _sum(features, features, ctx.pooled).sqrt_()
        divisor = response.mean(dim=-1, keepdim=True) + eps
        ctx.save_for_backward(inputs, weight, response, divisor)
        # As timm does under autocast: rounded to bf16, a scale within 2^-8 of 1 would be 1, and
        # the whole channel would lose its GRN. The product is rounded, once per value.
        scale = 1 + weight.to(response) * (response / divisor)
        return torch.addcmul(bias.to(response), features.to(response), scale).to(inputs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, response, divisor = ctx.saved_tensors
        features = F.gelu(_accurate(inputs)) if ctx.after_gelu else inputs
        ratio = response / divisor
        by_scale = _sum(grad, features, ctx.pooled)  # gradient of weight * ratio
        pull = _pull(by_scale, weight, response, divisor)
        accurate = grad.to(response) * (1 + weight.to(response) * ratio)
        grad_inputs = accurate.addcmul_(features.to(response), pull)
        if ctx.after_gelu:
            grad_inputs = torch.ops.aten.gelu_backward(grad_inputs, inputs.to(response))
        grad_inputs = grad_inputs.to(inputs.dtype)
        grad_weight = (by_scale * ratio).flatten(0, -2).sum(dim=0)
        grad_bias = grad.flatten(0, -2).sum(dim=0, dtype=response.dtype)
        grads = grad_inputs, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)
        return *grads, None, None, None


class _Compiled(torch.autograd.Function):
    """The same of GELU of the features, in half as many passes."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: ModuleType,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        over_batch: bool,
    ) -> Tensor:
        ctx.kernels = kernels
        ctx.groups = 1 if over_batch else len(inputs)
        features = inputs.view(ctx.groups, -1, inputs.shape[-1])
        activation, energy = kernels.gelu_and_energy(features)
        response = energy.sqrt_()
        divisor = response.mean(dim=-1, keepdim=True) + eps
        ctx.save_for_backward(inputs, weight, response, divisor)
        scale = (1 + weight * (response / divisor)).float()
        output = kernels.scale_and_shift(features, activation, scale, bias.contiguous())
        return output.view(inputs.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, response, divisor = ctx.saved_tensors
        features = inputs.view(ctx.groups, -1, inputs.shape[-1])
        grad = grad.contiguous().view(features.shape)
        ratio = response / divisor
        by_scale, by_bias = ctx.kernels.gradient_sums(features, grad)
        pull = _pull(by_scale, weight, response, divisor)
        grad_inputs = ctx.kernels.gradient_by_input(
            features, grad, (1 + weight * ratio).float(), pull.float()
        )
        grad_weight = (by_scale * ratio).sum(dim=0).to(weight.dtype)
        return (
            None,
            grad_inputs.view(inputs.shape),
            grad_weight,
            by_bias.sum(dim=0).to(weight.dtype),
            None,
            None,
        )


def _pull(by_scale: Tensor, weight: Tensor, response: Tensor, divisor: Tensor) -> Tensor:
    """Return what each feature is multiplied by to give its gradient through the response."""
    by_ratio, ratio = by_scale * weight, response / divisor
    by_response = by_ratio / divisor - (by_ratio * ratio).mean(dim=-1, keepdim=True) / divisor
    # d response / d x = x / response; a dead channel has neither
    return torch.where(response > 0, by_response / response, 0)


def _accurate(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _sum(a: Tensor, b: Tensor, pooled: tuple[int, ...]) -> Tensor:
    """Sum a * b over the pooled dimensions, in float32 at least."""
    return (_accurate(a) * _accurate(b)).sum(dim=pooled, keepdim=True)
