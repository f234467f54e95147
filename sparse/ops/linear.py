"""Linear layers on rows of channels, by the matrix product that is fastest on this machine.

On AVX-512 machines torch multiplies float32 with MKL, which stays at AVX2 on processors that are
not Intel's: there oneDNN, which torch carries too, has twice the rate. On Intel's MKL reads
transposed operands of weight gradients where they lie, which saves 7 % of whole steps.
"""

import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Not a public function of torch: without it, F.linear does the work.
HAS_ONEDNN_PRODUCT = hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return rows @ weight.T + bias: [..., C], [D, C], [D] -> [..., D]."""
    if is_for_onednn(rows) and is_for_onednn(weight) and not torch.is_autocast_enabled("cpu"):
        return _OneDnnLinear.apply(rows, weight, bias)
    return F.linear(rows, weight, bias)


def is_for_onednn(operand: Tensor) -> bool:
    """Whether oneDNN multiplies this operand faster than torch does."""
    return (
        HAS_ONEDNN_PRODUCT
        and operand.device.type == "cpu"
        and operand.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and not mkl_uses_whole_width()
    )


@functools.cache
def mkl_uses_whole_width() -> bool:
    """Whether MKL, which asks for the processor's maker, uses AVX-512 where there is AVX-512."""
    try:
        described = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        return False
    return "GenuineIntel" in described and torch.backends.mkl.is_available()


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a @ b.T + bias by oneDNN; transposed operands are read where they lie."""
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")


class _OneDnnLinear(torch.autograd.Function):
    """F.linear whose three products are oneDNN's."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _product(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        grad_rows = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_rows = _product(grad, weight.t())
        flat, rows = grad.flatten(0, -2), rows.flatten(0, -2)
        if ctx.needs_input_grad[1]:
            # The first operand is copied, so the narrower one goes first, unless turning the result
            # around costs more, as it does with few rows.
            num_rows, width = rows.shape
            if flat.shape[1] <= width or num_rows < flat.shape[1]:
                grad_weight = _product(flat.t(), rows.t())
            else:
                grad_weight = _product(rows.t(), flat.t()).t()
        if ctx.needs_input_grad[2]:
            grad_bias = flat.sum(dim=0)
        return grad_rows, grad_weight, grad_bias
