"""GELU and GRN as Triton kernels, for CUDA: eight passes over the hidden layer, both directions.

torch.compile fuses the formula itself, so these serve what is not compiled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse.ops import depthwise_triton

# (rows, channels, warps) of a program
TILE = (32, 128, 8)
PROGRAMS = 1024  # that sum, at least, if rows suffice


def is_available(features: Tensor) -> bool:
    """Whether the kernels are asked for and can take `features`."""
    return (
        not torch.compiler.is_compiling()
        and features.dtype != torch.float64
        and depthwise_triton.is_available(features)
    )


def gelu_and_energy(features: Tensor) -> tuple[None, Tensor]:
    """Return the sums of the squares of GELU of [G, M, C] over each group: float32 [G, C].

    GELU itself is not kept: to compute it again is cheaper than to read it.
    """
    return None, _sums(features, None)[0]


def scale_and_shift(
    features: Tensor, activation: Tensor | None, scale: Tensor, bias: Tensor
) -> Tensor:
    """Return GELU of [G, M, C] times a scale [G, C], plus a bias [C]."""
    return _apply(features, None, scale, bias)


def gradient_sums(features: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of grad * GELU and of grad over each group: two of float32 [G, C]."""
    by_scale, by_bias = _sums(features, grad)
    return by_scale, by_bias


def gradient_by_input(features: Tensor, grad: Tensor, scale: Tensor, pull: Tensor) -> Tensor:
    """Return (grad * scale + GELU * pull) times GELU's slope: [G, M, C], scale, pull [G, C]."""
    return _apply(features, grad, scale, pull)


def _sums(features: Tensor, grad: Tensor | None) -> Tensor:
    """Return the sums of each group: of one kind without a gradient, else of two, [.., G, C]."""
    groups, count, channels = features.shape
    rows, width, _ = TILE
    across = -(-channels // width)
    splits = max(1, min(-(-count // rows), -(-PROGRAMS // (groups * across))))
    kinds = 1 if grad is None else 2
    sums = features.new_empty(kinds, groups, splits, channels, dtype=torch.float32)
    depthwise_triton.load_kernels().gelu_sums_kernel[(across, splits, groups)](
        features,
        features if grad is None else grad,
        sums[0],
        sums[-1],
        count,
        splits,
        **_constants(features, grad),
    )
    return sums.sum(dim=2)


def _apply(features: Tensor, grad: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    groups, count, channels = features.shape
    rows, width, _ = TILE
    output = torch.empty_like(features)
    grid = (-(-count // rows), -(-channels // width), groups)
    depthwise_triton.load_kernels().gelu_apply_kernel[grid](
        features,
        features if grad is None else grad,
        scale,
        shift,
        output,
        count,
        **_constants(features, grad),
    )
    return output


def _constants(features: Tensor, grad: Tensor | None) -> dict[str, Any]:
    """What Triton compiles a kernel for."""
    channels = features.shape[-1]
    rows, width, warps = TILE
    return {
        "channels": channels,
        "HAS_GRAD": grad is not None,
        "INDEX": depthwise_triton.index_type(features),
        "ROWS": rows,
        "CHANNELS": min(width, depthwise_triton.power_of_two(channels)),
        "num_warps": warps,
    }
