"""Submanifold depthwise convolution on visible patches: the one layer that looks across patches."""

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparse.ops import depthwise_compiled, depthwise_triton
from sparse.sites import Canvas

# Channels per slice of the weight gradient on CPU: oneDNN's kernel walks from pixel to pixel, and
# is up to twenty times slower where many channels lie between two of them.
SLICE_CHANNELS = 96


def depthwise_convolution(blocks: Tensor, layer: nn.Conv2d, canvas: Canvas) -> Tensor:
    """Convolve with zeros at hidden cells and return visible cells only: [N, K, m, m, C] -> same.

    The patches go onto a canvas of zeros in channels-last memory, one dense depthwise convolution
    runs there, and the visible cells are read back. Shapes do not depend on the mask's positions.
    """
    weight, bias, device = layer.weight, layer.bias, blocks.device.type
    # The meta device has no autocast, and torch.compile does not understand the question for it.
    if device != "meta" and torch.is_autocast_enabled(device) and blocks.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        blocks, weight = blocks.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    return _Depthwise.apply(blocks, weight, bias, canvas)


class _Depthwise(torch.autograd.Function):
    """Keeps the visible patches alone for backward, and lays them onto a canvas again there."""

    @staticmethod
    def forward(
        ctx: Any, blocks: Tensor, weight: Tensor, bias: Tensor | None, canvas: Canvas
    ) -> Tensor:
        ctx.save_for_backward(blocks, weight)
        ctx.canvas = canvas
        kernels = kernels_for(blocks, canvas)
        if kernels is not None:
            return kernels.convolve(blocks, weight, bias, canvas)
        return canvas.gather(_convolve(canvas.scatter(blocks), weight, bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        blocks, weight = ctx.saved_tensors
        kernels = kernels_for(blocks, ctx.canvas)
        if kernels is not None:
            return *_gradients_by_block(kernels, ctx, blocks, weight, grad), None
        maps_grad = ctx.canvas.scatter(grad)
        grad_blocks = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            # The gradient of a convolution is a convolution with the kernel turned around, which
            # is faster than the library's own gradient.
            grad_blocks = ctx.canvas.gather(_convolve(maps_grad, weight.flip(2, 3), None))
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(ctx.canvas.scatter(blocks), maps_grad, weight)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(dim=(0, 1, 2, 3))
        return grad_blocks, grad_weight, grad_bias, None


def kernels_for(blocks: Tensor, canvas: Canvas) -> ModuleType | None:
    """Return the module whose kernels read visible patches where they lie; None: use the canvas."""
    if depthwise_triton.is_available(blocks):
        visible, patches = blocks.shape[1], canvas.where.shape[1] * canvas.where.shape[2]
        return depthwise_triton if depthwise_triton.pays(visible, patches) else None
    return depthwise_compiled if depthwise_compiled.is_available(blocks) else None


def _gradients_by_block(
    kernels: ModuleType, ctx: Any, blocks: Tensor, weight: Tensor, grad: Tensor
) -> tuple[Tensor | None, ...]:
    grad_blocks = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_blocks = kernels.convolve(grad, weight.flip(2, 3), None, ctx.canvas)
    if any(ctx.needs_input_grad[1:3]):
        grad_weight, grad_bias = kernels.weight_gradients(blocks, grad, weight, ctx.canvas)
    return grad_blocks, grad_weight, grad_bias if ctx.needs_input_grad[2] else None


def _convolve(maps_NHWC: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Depthwise convolution, stride 1, same size, on channels-last maps."""
    maps_NCHW = maps_NHWC.permute(0, 3, 1, 2)
    padding, channels = weight.shape[-1] // 2, weight.shape[0]
    return F.conv2d(maps_NCHW, weight, bias, padding=padding, groups=channels).permute(0, 2, 3, 1)


def _weight_gradient(maps_NHWC: Tensor, grad_NHWC: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the kernel, [C, 1, K, K]."""
    step = SLICE_CHANNELS if maps_NHWC.device.type == "cpu" else weight.shape[0]
    padding = weight.shape[-1] // 2
    slices = [
        torch.ops.aten.convolution_backward(
            grad.contiguous().permute(0, 3, 1, 2),
            maps.contiguous().permute(0, 3, 1, 2),
            kernel,
            None,  # no bias
            [1, 1],  # stride
            [padding, padding],
            [1, 1],  # dilation
            False,  # not transposed
            [0, 0],  # output padding
            kernel.shape[0],  # groups
            [False, True, False],  # the gradient of the weight alone
        )[1]
        for maps, grad, kernel in zip(
            maps_NHWC.split(step, dim=-1),
            grad_NHWC.split(step, dim=-1),
            weight.split(step),
            strict=True,
        )
    ]
    # Laid out like the weight, which DistributedDataParallel asks for.
    return torch.cat([part.flatten(1) for part in slices]).view(weight.shape)
