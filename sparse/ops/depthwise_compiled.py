"""Depthwise convolution by the compiled kernels: visible patches are read where they lie."""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse.ops.compiler import load_kernels
from sparse.sites import Canvas

_LINE_BYTES = 64  # to which depthwise.c wants channels filled up


def is_available(blocks: Tensor) -> bool:
    """Whether the compiled kernels can convolve `blocks`; the first call may compile them."""
    return (
        blocks.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and load_kernels(blocks.dtype) is not None
    )


def convolve(blocks: Tensor, weight: Tensor, bias: Tensor | None, canvas: Canvas) -> Tensor:
    """Convolve blocks [N, K, m, m, C] with the kernel [C, 1, S, S], centred, zeros elsewhere."""
    blocks, channels = blocks.contiguous(), blocks.shape[-1]
    taps = _pad(weight.flatten(1).t())  # [S * S, P]
    start = _pad(weight.new_zeros(channels) if bias is None else bias)
    output = torch.empty_like(blocks)
    _run("convolve", blocks, weight.shape[-1], canvas, taps, start, output)
    return output


def weight_gradients(
    blocks: Tensor, grad: Tensor, weight: Tensor, canvas: Canvas
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the kernel [C, 1, S, S] and of the bias [C]."""
    blocks, grad, size = blocks.contiguous(), grad.contiguous(), weight.shape[-1]
    sums = _pad(blocks.new_empty(size**2 + 1, blocks.shape[-1]))
    _run("correlate", blocks, size, canvas, grad, sums)
    sums = sums[:, : blocks.shape[-1]]
    return sums[:-1].t().reshape(weight.shape), sums[-1]


def _pad(values: Tensor) -> Tensor:
    missing = -values.shape[-1] % (_LINE_BYTES // values.element_size())
    return F.pad(values, (0, missing)).contiguous()


def _run(name: str, blocks: Tensor, size: int, canvas: Canvas, *others: Tensor) -> None:
    where, places = canvas.where, canvas.places
    shape = [*blocks.shape[:2], *where.shape[1:], canvas.side, blocks.shape[-1], size]
    shape_in_c = (ctypes.c_int32 * 8)(*shape, torch.get_num_threads())
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in (blocks, where, places, *others)]
    getattr(load_kernels(blocks.dtype), name)(ctypes.byref(shape_in_c), *pointers)
