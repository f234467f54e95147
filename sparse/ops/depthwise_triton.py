"""Depthwise convolution on blocks of visible patches as Triton kernels, for CUDA.

Visible patches are read where they lie: the cost follows the mask, where a dense convolution on a
canvas costs the same at every ratio.
"""

from __future__ import annotations

import functools
import os
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sparse.sites import Canvas

HAS_TRITON = find_spec("triton") is not None
# (rows, channels, warps) of a program
CONVOLVE = (32, 32, 4)
CORRELATE = (8, 32, 2)
# The largest visible share of the patches at which the kernels are taken. A canvas costs the same
# at every share; on an H100 tiny's layers, in both directions, cost 0.68 of it at a share of 0.39.
MOST_VISIBLE = 0.57
SPLITS = 128  # shares of the rows whose weight gradients are summed apart, in a fixed order
ROWS_OF_A_SPLIT = 256  # at least


def is_available(blocks: Tensor) -> bool:
    """Whether the kernels can run on `blocks`: on CUDA where Triton works, unless FCMAE_TRITON=0.

    On a CPU only when asked for, FCMAE_TRITON=1, under Triton's interpreter.
    """
    switch = os.environ.get("FCMAE_TRITON")
    if not HAS_TRITON or switch == "0":
        return False
    if blocks.is_cuda:
        return missing_kernels() is None
    return switch == "1" and os.environ.get("TRITON_INTERPRET") == "1"


def pays(visible: int, patches: int) -> bool:
    """Whether the kernels should beat the canvas where so many of the patches are visible.

    FCMAE_TRITON=1 takes them at any share.
    """
    return os.environ.get("FCMAE_TRITON") == "1" or visible <= MOST_VISIBLE * patches


@torch.compiler.assume_constant_result  # outermost: torch.compile looks into cached functions
def missing_kernels() -> str | None:
    """Say why Triton's kernels cannot run on this machine's GPU; None when they can."""
    return _missing_kernels()


@functools.cache
def _missing_kernels() -> str | None:
    if not HAS_TRITON:
        return "Triton is not installed"
    whole = torch.zeros(1, 1, 1, dtype=torch.int32, device="cuda")
    cell = torch.zeros(1, 1, 1, 1, 1, device="cuda")
    try:
        _convolve(cell, cell.view(1, 1, 1, 1), None, whole, whole.view(1, 1))
        torch.cuda.synchronize()
    except Exception as error:  # no C compiler, an old card: whatever Triton raises
        return " ".join(f"Triton: {type(error).__name__}: {error}".split())[:200]
    return None


def convolve(blocks: Tensor, weight: Tensor, bias: Tensor | None, canvas: Canvas) -> Tensor:
    """Convolve blocks [N, K, m, m, C] with the kernel [C, 1, S, S], centred, zeros elsewhere."""
    run = _convolve_in_graph if torch.compiler.is_compiling() else _convolve
    return run(blocks, weight, bias, canvas.where, canvas.places)


def weight_gradients(
    blocks: Tensor, grad: Tensor, weight: Tensor, canvas: Canvas
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the kernel [C, 1, S, S] and of the bias [C]."""
    run = _correlate_in_graph if torch.compiler.is_compiling() else _correlate
    return run(blocks, grad, weight, canvas.where, canvas.places)


def _convolve(
    blocks: Tensor, weight: Tensor, bias: Tensor | None, where: Tensor, places: Tensor
) -> Tensor:
    blocks, output = blocks.contiguous(), torch.empty_like(blocks.contiguous())
    _, visible, side, _, channels = blocks.shape
    count = blocks.numel() // channels
    rows, width, warps = CONVOLVE
    width = min(width, power_of_two(channels))
    load_kernels().convolve_kernel[(-(-count // rows), -(-channels // width))](
        blocks,
        where,
        places,
        weight.flatten(1).t().contiguous(),
        blocks if bias is None else bias,  # not read without a bias
        output,
        count,
        visible,
        *where.shape[1:],
        channels=channels,
        SIDE=side,
        SIZE=weight.shape[-1],
        **_numbers(blocks),
        HAS_BIAS=bias is not None,
        ROWS=rows,
        CHANNELS=width,
        num_warps=warps,
    )
    return output


def _correlate(
    blocks: Tensor, grad: Tensor, weight: Tensor, where: Tensor, places: Tensor
) -> tuple[Tensor, Tensor]:
    blocks, grad, size = blocks.contiguous(), grad.contiguous(), weight.shape[-1]
    _, visible, side, _, channels = blocks.shape
    count = blocks.numel() // channels
    accurate = torch.promote_types(blocks.dtype, torch.float32)
    splits = max(1, min(SPLITS, count // ROWS_OF_A_SPLIT))
    taps = power_of_two(size + 1)
    sums = blocks.new_empty(splits, size, taps, channels, dtype=accurate)
    rows, width, warps = CORRELATE
    width = min(width, power_of_two(channels))
    load_kernels().correlate_kernel[(size, -(-channels // width), splits)](
        blocks,
        where,
        places,
        grad,
        sums,
        count,
        visible,
        *where.shape[1:],
        splits,
        channels=channels,
        SIDE=side,
        SIZE=size,
        **_numbers(blocks),
        TAPS=taps,
        ROWS=rows,
        CHANNELS=width,
        num_warps=warps,
    )
    total = sums.sum(dim=0).to(weight.dtype)
    # Laid out like the weight, which DistributedDataParallel asks for.
    return total[:, :size].permute(2, 0, 1).contiguous().view(weight.shape), total[0, size].clone()


# Opaque to torch.compile, which would otherwise look into Triton's launches.
_convolve_in_graph = torch.library.custom_op(
    "fcmae::convolve_patches",
    _convolve,
    mutates_args=(),
    schema="(Tensor blocks, Tensor weight, Tensor? bias, Tensor where, Tensor places) -> Tensor",
)
_correlate_in_graph = torch.library.custom_op(
    "fcmae::correlate_patches",
    _correlate,
    mutates_args=(),
    schema="(Tensor blocks, Tensor grad, Tensor weight, Tensor where, Tensor places)"
    " -> (Tensor, Tensor)",
)


@_convolve_in_graph.register_fake
def _(blocks: Tensor, weight: Tensor, bias: Any, where: Tensor, places: Tensor) -> Tensor:
    return torch.empty_like(blocks, memory_format=torch.contiguous_format)


@_correlate_in_graph.register_fake
def _(
    blocks: Tensor, grad: Tensor, weight: Tensor, where: Tensor, places: Tensor
) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


def power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below a number."""
    return 1 << (number - 1).bit_length()


def _numbers(blocks: Tensor) -> dict[str, Any]:
    """Types of sums and of indices."""
    language = load_kernels().tl
    accurate = language.float64 if blocks.dtype == torch.float64 else language.float32
    return {"ACCURATE": accurate, "INDEX": index_type(blocks)}


def index_type(values: Tensor) -> Any:
    """Type of indices that reach every value."""
    language = load_kernels().tl
    return language.int64 if values.numel() >= 2**31 else language.int32


def load_kernels() -> ModuleType:
    """Import the kernels, and Triton with them, only when they are asked for."""
    return import_module("sparse.ops.triton_kernels")
