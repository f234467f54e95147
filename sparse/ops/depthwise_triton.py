"""Depthwise convolution on blocks of visible patches as Triton kernels, for CUDA.

Opt-in by FCMAE_TRITON=1: tested under Triton's interpreter, not measured on a GPU.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sparse.sites import Canvas

CELLS = 64  # of a patch per program, at most
CHANNELS = 32  # per program
SPLITS = 32  # shares of the patches whose weight gradients are summed apart, in a fixed order


def is_asked_for() -> bool:
    """Whether FCMAE_TRITON=1 switches the kernels on; without it, or with 0, they are off."""
    return os.environ.get("FCMAE_TRITON") == "1"


def is_available(blocks: Tensor) -> bool:
    """Whether the kernels are asked for and can run on `blocks`."""
    if not is_asked_for() or torch.compiler.is_compiling():
        return False
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return (blocks.is_cuda or is_interpreted) and find_spec("triton") is not None


def convolve(blocks: Tensor, weight: Tensor, bias: Tensor | None, canvas: Canvas) -> Tensor:
    """Convolve blocks [N, K, m, m, C] with the kernel [C, 1, S, S], centred, zeros elsewhere."""
    blocks, output = blocks.contiguous(), torch.empty_like(blocks)
    images, visible, side, _, channels = blocks.shape
    cells = _power_of_two(min(side**2, CELLS))
    grid = (images * visible, -(-(side**2) // cells), -(-channels // CHANNELS))
    _kernels().convolve_kernel[grid](
        blocks,
        canvas.where,
        canvas.places,
        weight.flatten(1).t().contiguous(),
        blocks if bias is None else bias,  # not read without a bias
        output,
        visible,
        *canvas.where.shape[1:],
        channels,
        SIDE=side,
        SIZE=weight.shape[-1],
        ACCURATE=_accurate(blocks),
        HAS_BIAS=bias is not None,
        CELLS=cells,
        CHANNELS=CHANNELS,
    )
    return output


def weight_gradients(
    blocks: Tensor, grad: Tensor, weight: Tensor, canvas: Canvas
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the kernel [C, 1, S, S] and of the bias [C]."""
    blocks, grad, size = blocks.contiguous(), grad.contiguous(), weight.shape[-1]
    images, visible, side, _, channels = blocks.shape
    accurate = torch.promote_types(blocks.dtype, torch.float32)
    splits = min(SPLITS, images * visible)
    sums = blocks.new_empty(splits, size**2 + 1, channels, dtype=accurate)
    grid = (size**2 + 1, -(-channels // CHANNELS), splits)
    _kernels().correlate_kernel[grid](
        blocks,
        canvas.where,
        canvas.places,
        grad,
        sums,
        images * visible,
        visible,
        *canvas.where.shape[1:],
        channels,
        splits,
        SIDE=side,
        SIZE=size,
        ACCURATE=_accurate(blocks),
        CELLS=_power_of_two(min(side**2, CELLS)),
        CHANNELS=CHANNELS,
    )
    total = sums.sum(dim=0).to(weight.dtype)
    return total[:-1].t().reshape(weight.shape), total[-1]


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _accurate(blocks: Tensor) -> Any:
    language = _kernels().tl
    return language.float64 if blocks.dtype == torch.float64 else language.float32


def _kernels() -> ModuleType:
    """Import the kernels, and Triton with them, only when they are asked for."""
    return import_module("sparse.ops.triton_kernels")
