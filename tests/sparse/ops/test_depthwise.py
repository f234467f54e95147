"""The depthwise layer and the linear layers of the native backend, with their own gradients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_relative, assert_same_bits
from torch import Tensor, nn

import sparse.ops.linear
from sparse.ops import depthwise, depthwise_compiled
from sparse.ops.compiler import load_kernels
from sparse.ops.depthwise import depthwise_convolution
from sparse.ops.grn import global_response_norm
from sparse.ops.linear import is_for_onednn, linear
from sparse.sites import VisiblePatches


@pytest.fixture(params=["plain", "compiled"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to convolve: on maps by torch, and on blocks by the compiled kernels."""
    if request.param == "plain":
        monkeypatch.setattr(depthwise_compiled, "load_kernels", lambda dtype: None)
    elif load_kernels(torch.float64) is None:
        pytest.skip("no C compiler on this machine")
    return request.param


def example(
    side: int, channels: int = 5, kernel: int = 3, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, nn.Conv2d, VisiblePatches]:
    """Blocks of three visible patches on a grid of 2 x 3, in two images."""
    rng = torch.Generator().manual_seed(1)
    patches = VisiblePatches.from_indices(torch.tensor([[0, 1, 5], [4, 2, 3]]), rows=2, columns=3)
    layer = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels).to(dtype)
    for parameter in layer.parameters():
        parameter.data.normal_(generator=rng)
    blocks = torch.randn(2, 3, side, side, channels, generator=rng, dtype=torch.float64)
    return blocks.to(dtype).requires_grad_(), layer, patches


def by_masking(blocks: Tensor, layer: nn.Conv2d, patches: VisiblePatches) -> Tensor:
    """The definition: convolve maps with zeros at hidden cells, look at visible ones."""
    return patches.gather(layer(patches.scatter(blocks).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


@pytest.mark.parametrize("side", [1, 2, 3, 8])
@pytest.mark.parametrize("slice_channels", [2, 5, 96])
@pytest.mark.parametrize(("channels", "kernel"), [(5, 7), (8, 3), (19, 9), (1, 1)])
def test_outputs_and_gradients_equal_autograd_on_masked_maps(
    side: int,
    slice_channels: int,
    channels: int,
    kernel: int,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(depthwise, "SLICE_CHANNELS", slice_channels)
    blocks, layer, patches = example(side, channels, kernel)
    results = []
    for output in (
        depthwise_convolution(blocks, layer, patches.canvas(side)),
        by_masking(blocks, layer, patches),
    ):
        weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
        inputs = [blocks, layer.weight, layer.bias]
        results.append([output, *torch.autograd.grad((output * weights).sum(), inputs)])
    for result, expected in zip(*results, strict=True):
        assert_relative(result, expected, 1e-12)


def test_gradients_of_the_depthwise_layer_by_differences(path: str) -> None:
    blocks, layer, patches = example(side=2, channels=2)
    canvas = patches.canvas(2)

    def convolve(blocks: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return depthwise._Depthwise.apply(blocks, weight, bias, canvas)

    assert torch.autograd.gradcheck(convolve, (blocks, layer.weight, layer.bias))


def test_frozen_parameters_and_inputs_get_no_gradient(path: str) -> None:
    blocks, layer, patches = example(side=2)
    layer.bias.requires_grad_(False)
    depthwise_convolution(blocks.detach(), layer, patches.canvas(2)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.bias.grad is None
    layer.requires_grad_(False)
    depthwise_convolution(blocks, layer, patches.canvas(2)).sum().backward()
    assert blocks.grad is not None


def test_backward_keeps_the_visible_patches_and_no_map(path: str) -> None:
    blocks, layer, patches = example(side=2)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: saved.append(x.numel()) or x, lambda x: x
    ):
        depthwise_convolution(blocks, layer, patches.canvas(2))
    assert sorted(saved) == sorted([blocks.numel(), layer.weight.numel()])


def test_any_number_of_threads_gives_the_same_bits(path: str) -> None:
    if path == "plain":
        pytest.skip("torch's own sums depend on the threads")
    blocks, layer, patches = example(side=4, channels=70, kernel=7, dtype=torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            output = depthwise_convolution(blocks, layer, patches.canvas(4))
            inputs = [blocks, layer.weight, layer.bias]
            results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    finally:
        torch.set_num_threads(threads)
    for first, second in zip(*results, strict=True):
        assert_same_bits(first, second)


def test_non_contiguous_blocks_and_gradients_are_read_right(path: str) -> None:
    blocks, layer, patches = example(side=2)
    turned = blocks.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    canvas, results = patches.canvas(2), []
    for inputs in (blocks, turned):
        output = depthwise_convolution(inputs, layer, canvas).transpose(2, 3)
        weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
        results.append(torch.autograd.grad((output * weights).sum(), [inputs, layer.weight]))
    for first, second in zip(*results, strict=True):
        assert_relative(first, second, 1e-14)


def test_autocast_convolves_in_bfloat16_with_float32_gradients_of_weights() -> None:
    blocks, layer, patches = example(side=2, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = depthwise_convolution(blocks, layer, patches.canvas(2))
    assert output.dtype == torch.bfloat16
    output.sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert_relative(output.float(), by_masking(blocks, layer, patches), 2e-2)


def test_canvas_moves_patches_as_the_geometry_does() -> None:
    blocks, _, patches = example(side=3)
    canvas = patches.canvas(3)
    assert_same_bits(canvas.scatter(blocks), patches.scatter(blocks))
    assert_same_bits(canvas.gather(patches.scatter(blocks)), blocks)


@pytest.fixture(params=["torch", "onednn"])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Either library, whatever this machine would choose."""
    has_product = torch.backends.mkldnn.is_available() and sparse.ops.linear.HAS_ONEDNN_PRODUCT
    if request.param == "onednn" and not has_product:
        pytest.skip("this torch has no oneDNN product")
    capability = "AVX512" if request.param == "onednn" else "DEFAULT"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(sparse.ops.linear, "mkl_uses_whole_width", lambda: False)
    return request.param


def test_an_intel_processor_multiplies_by_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(sparse.ops.linear, "mkl_uses_whole_width", lambda: True)
    assert not is_for_onednn(torch.ones(3, 2))


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("widths", [(4, 7), (7, 4)])
def test_linear_equals_torch_with_all_gradients(
    product: str, widths: tuple[int, int], has_bias: bool
) -> None:
    rng = torch.Generator().manual_seed(2)
    rows = torch.randn(2, 3, widths[0], generator=rng, requires_grad=True)
    weight = torch.randn(widths[1], widths[0], generator=rng, requires_grad=True)
    bias = torch.randn(widths[1], generator=rng, requires_grad=True) if has_bias else None
    assert is_for_onednn(rows) == (product == "onednn")
    results = []
    for function in (linear, F.linear):
        output = function(rows, weight, bias)
        inputs = [rows, weight, *([bias] if has_bias else [])]
        results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    for result, expected in zip(*results, strict=True):
        assert_relative(result, expected, 1e-5)


def test_linear_is_torchs_where_there_is_no_onednn_product(
    product: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse.ops.linear, "HAS_ONEDNN_PRODUCT", False)
    assert not is_for_onednn(torch.ones(3, 2))


def test_linear_leaves_float64_and_autocast_to_torch(product: str) -> None:
    rows, weight = torch.ones(3, 2), torch.ones(4, 2)
    assert not is_for_onednn(rows.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(rows, weight, None).dtype == torch.bfloat16
    assert linear(rows, weight, None).dtype == torch.float32


@pytest.mark.parametrize("over_batch", [False, True])
def test_grn_after_gelu_is_gelu_and_then_grn_with_all_gradients(over_batch: bool) -> None:
    rng = torch.Generator().manual_seed(4)
    features, weight, bias = (
        torch.randn(shape, generator=rng, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 3, 4), (4,), (4,))
    )
    results = []
    for inputs, after_gelu in ((features, True), (F.gelu(features), False)):
        output = global_response_norm(
            inputs, weight, bias, eps=1e-6, over_batch=over_batch, after_gelu=after_gelu
        )
        grads = torch.autograd.grad(output.square().sum(), [features, weight, bias])
        results.append([output, *grads])
    for result, expected in zip(*results, strict=True):
        assert_relative(result, expected, 1e-12)
