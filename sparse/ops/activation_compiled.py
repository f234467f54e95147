"""GELU and GRN by the compiled kernels: two passes over the features, forward and backward."""

import ctypes

import torch
from torch import Tensor

from sparse.ops.compiler import load_kernels

NAME = "activation"


def is_available(features: Tensor) -> bool:
    """Whether the compiled kernels can take `features`; the first call may compile them."""
    return (
        features.device.type == "cpu"
        and features.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and load_kernels(torch.float32, NAME) is not None
    )


def gelu_and_energy(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return GELU of [G, M, C] and the sums of its squares over each group, float64 [G, C]."""
    result, energy = torch.empty_like(features), _sums(features)
    _run("gelu_energy", features, result, energy)
    return result, energy


def scale_and_shift(features: Tensor, activation: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Multiply GELU of features [G, M, C] by a scale [G, C] and add a bias [C], in its place."""
    _run("scale_shift", activation, scale, bias)
    return activation


def gradient_sums(features: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of grad * GELU and of grad over each group: two of float64 [G, C]."""
    by_scale, by_bias = _sums(features), _sums(features)
    _run("gradient_sums", features, grad, by_scale, by_bias)
    return by_scale, by_bias


def gradient_by_input(features: Tensor, grad: Tensor, scale: Tensor, pull: Tensor) -> Tensor:
    """Return (grad * scale + GELU * pull) times GELU's slope: [G, M, C], scale, pull [G, C]."""
    result = torch.empty_like(features)
    _run("gradient_by_input", features, grad, scale, pull, result)
    return result


def _sums(features: Tensor) -> Tensor:
    return features.new_empty(features.shape[0], features.shape[2], dtype=torch.float64)


def _run(name: str, features: Tensor, *others: Tensor) -> None:
    shape_in_c = (ctypes.c_int64 * 4)(*features.shape, torch.get_num_threads())
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in (features, *others)]
    getattr(load_kernels(torch.float32, NAME), name)(ctypes.byref(shape_in_c), *pointers)
