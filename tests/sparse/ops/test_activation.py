"""GELU and GRN by the compiled kernels, held against float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_relative, assert_same_bits
from timm.layers.grn import GlobalResponseNorm

from sparse.ops import activation_compiled
from sparse.ops.grn import global_response_norm


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    if not activation_compiled.is_available(torch.zeros(1)):
        pytest.skip("no C compiler here")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_gelu_and_its_slope_are_right_to_the_last_digits() -> None:
    x = torch.linspace(-14, 14, 280_001)[:280_000].view(1, -1, 350)
    exact = x.double().requires_grad_()
    expected = F.gelu(exact)
    (slope,) = torch.autograd.grad(expected.sum(), exact)
    expected = expected.detach()
    found, energy = activation_compiled.gelu_and_energy(x)
    assert float((found - expected).abs().max()) < 5e-7  # of values up to 14
    far = expected.abs() > 1e-6
    assert float(((found - expected) / expected)[far].abs().max()) < 2e-5
    assert_relative(energy, expected.square().sum(dim=1), 1e-6)
    one, zero = torch.ones(1, 350), torch.zeros(1, 350)
    found = activation_compiled.gradient_by_input(x, torch.ones_like(x), one, zero)
    assert float((found - slope).abs().max()) < 5e-7


@pytest.mark.parametrize("shape", [(3, 1, 1, 1, 5), (2, 4, 2, 2, 300), (1, 70, 1, 1, 17)])
@pytest.mark.parametrize("over_batch", [False, True])
def test_values_and_gradients_are_those_of_timm_in_float64(
    shape: tuple[int, ...], over_batch: bool
) -> None:
    rng = torch.Generator().manual_seed(3)
    layer = GlobalResponseNorm(shape[-1]).double()
    weight, bias = (torch.randn(shape[-1], generator=rng, dtype=torch.float64) for _ in range(2))
    layer.weight.data, layer.bias.data = weight, bias
    x = torch.randn(shape, generator=rng, dtype=torch.float64)
    upstream = torch.randn(shape, generator=rng, dtype=torch.float64)
    maps = x.clone().requires_grad_()
    tall = maps.reshape(1 if over_batch else len(x), -1, 1, shape[-1])
    wanted = [maps, layer.weight, layer.bias]
    expected = layer(F.gelu(tall)).view(shape)
    gradients = torch.autograd.grad(expected, wanted, upstream)
    inputs = [value.float().requires_grad_() for value in (x, weight, bias)]
    found = global_response_norm(*inputs, eps=layer.eps, over_batch=over_batch, after_gelu=True)
    assert_relative(found, expected, 2e-6)
    for mine, theirs in zip(
        torch.autograd.grad(found, inputs, upstream.float()), gradients, strict=True
    ):
        assert_relative(mine, theirs, 5e-6)


def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    rng = torch.Generator().manual_seed(3)
    x, grad = (torch.randn(2, 500, 600, generator=rng) for _ in range(2))
    alone = (*activation_compiled.gelu_and_energy(x), *activation_compiled.gradient_sums(x, grad))
    torch.set_num_threads(3)
    many = (*activation_compiled.gelu_and_energy(x), *activation_compiled.gradient_sums(x, grad))
    for one, other in zip(alone, many, strict=True):
        assert_same_bits(one, other)


def test_what_is_not_a_number_stays_so() -> None:
    x = torch.tensor([[[float("nan"), float("inf"), -3e38, 3e38, -0.0]]])
    found, _ = activation_compiled.gelu_and_energy(x)
    assert found[0, 0].isnan().tolist() == [True, False, False, False, False]
    assert found[0, 0, 1:].tolist() == [float("inf"), 0.0, pytest.approx(3e38), 0.0]


def test_a_dead_channel_has_no_gradient_through_its_response() -> None:
    x = torch.zeros(1, 4, 3, requires_grad=True)
    weight, bias = torch.ones(3), torch.zeros(3)
    found = global_response_norm(x, weight, bias, eps=1e-6, over_batch=False, after_gelu=True)
    found.sum().backward()
    assert x.grad.isfinite().all()
