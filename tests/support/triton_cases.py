"""The Triton kernels against the definition; run by test_depthwise_triton.py in a process whose
environment says TRITON_INTERPRET=1 from the start.
"""

from __future__ import annotations

import pytest
import torch
from backend_contract import BackendContract, Encoder
from comparison import assert_relative
from compiled_graph import operations_of_one_graph
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from sparse import SparseConvNeXt
from sparse.ops import activation_triton, depthwise_triton
from sparse.ops.depthwise import depthwise_convolution, kernels_for
from sparse.ops.grn import global_response_norm
from sparse.sites import VisiblePatches

# Of Triton's interpreter itself, in the version beside torch 2.8.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0")


def by_masking(blocks: Tensor, layer: nn.Conv2d, patches: VisiblePatches) -> Tensor:
    return patches.gather(layer(patches.scatter(blocks).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("side", "channels", "kernel", "has_bias"),
    [(1, 2, 5, True), (2, 33, 1, True), (3, 2, 3, False), (9, 2, 3, True)],
)
def test_values_and_gradients_equal_autograd_on_masked_maps(
    side: int, channels: int, kernel: int, has_bias: bool
) -> None:
    rng = torch.Generator().manual_seed(1)
    patches = VisiblePatches.from_indices(torch.tensor([[1, 5], [4, 2]]), rows=2, columns=3)
    layer = nn.Conv2d(
        channels, channels, kernel, padding=kernel // 2, groups=channels, bias=has_bias
    )
    for parameter in layer.parameters():
        parameter.data.normal_(generator=rng)
    blocks = torch.randn(2, 2, side, side, channels, generator=rng, requires_grad=True)
    assert kernels_for(blocks, patches.canvas(side)) is depthwise_triton
    results = []
    for output in (
        depthwise_convolution(blocks, layer, patches.canvas(side)),
        by_masking(blocks, layer, patches),
    ):
        weights = torch.linspace(-1, 2, output.numel()).view_as(output)
        inputs = [blocks, *layer.parameters()]
        results.append([output, *torch.autograd.grad((output * weights).sum(), inputs)])
    for result, expected in zip(*results, strict=True):
        assert_relative(result, expected, 1e-5)


def test_hidden_values_are_never_read() -> None:
    blocks = torch.ones(1, 2, 2, 2, 3)
    patches = VisiblePatches.from_indices(torch.tensor([[3, 0]]), rows=2, columns=2)
    layer = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
    nn.init.ones_(layer.weight)
    output = depthwise_convolution(blocks, layer, patches.canvas(2))
    assert output[0, 0, 0, 0].tolist() == [5.0] * 3  # its own four cells, and one across the corner
    assert output[0, 0, 1, 1].tolist() == [4.0] * 3


@pytest.mark.parametrize("over_batch", [False, True])
def test_gelu_and_grn_equal_the_formula(over_batch: bool) -> None:
    rng = torch.Generator().manual_seed(1)
    features = torch.randn(3, 7, 2, 2, 40, generator=rng)
    weight, bias, grad = torch.randn(40, generator=rng), torch.randn(40, generator=rng), features
    assert activation_triton.is_available(features)
    results = []
    for dtype in (torch.float32, torch.float64):  # the kernels leave float64 to the formula
        inputs = [x.to(dtype).requires_grad_() for x in (features, weight, bias)]
        output = global_response_norm(*inputs, eps=1e-6, over_batch=over_batch, after_gelu=True)
        results.append([output, *torch.autograd.grad(output, inputs, grad.to(dtype))])
    for result, expected in zip(*results, strict=True):
        assert_relative(result.double(), expected, 1e-6)


def test_torch_compile_captures_one_graph_with_the_kernels_in_it() -> None:
    assert "convolve_patches" in operations_of_one_graph()


class TestTriton(BackendContract):
    def build(self, dense: ConvNeXt, *, patch_size: int, grn_scope: str) -> Encoder:
        return SparseConvNeXt(dense, backend="native", grn_scope=grn_scope, patch_size=patch_size)
