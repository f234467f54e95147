"""GRN in low precision keeps what float32 keeps: a response near zero still changes a channel."""

from __future__ import annotations

import pytest
import torch

from sparse.ops.grn import global_response_norm


@pytest.mark.parametrize("gamma", [1e-3, -1e-3])
def test_a_small_gamma_does_not_vanish_for_a_whole_channel_in_bf16(gamma: float) -> None:
    rng = torch.Generator().manual_seed(0)
    features = torch.rand(2, 4096, 8, generator=rng).add_(0.5)
    weight, bias = torch.full((8,), gamma), torch.zeros(8)

    def grn(x: torch.Tensor) -> torch.Tensor:
        return global_response_norm(x, weight, bias, eps=1e-6, over_batch=False, after_gelu=True)

    low = features.bfloat16()
    before = torch.nn.functional.gelu(low.float())
    expected, found = (grn(x).float() / before - 1 for x in (low.float(), low))
    # Values are rounded one by one, so that the mean over a channel is right.
    torch.testing.assert_close(found.mean(dim=1), expected.mean(dim=1), rtol=0.2, atol=1e-4)


def test_gradients_in_bf16_are_those_of_float32_rounded_once() -> None:
    rng = torch.Generator().manual_seed(1)
    features = torch.randn(2, 50, 6, generator=rng).bfloat16()
    weight, bias = (torch.randn(6, generator=rng) * 1e-3 for _ in range(2))
    upstream = torch.randn(2, 50, 6, generator=rng).bfloat16()
    found, expected = (x.clone().requires_grad_() for x in (features, features.float()))
    for x, grad in ((found, upstream), (expected, upstream.float())):
        global_response_norm(x, weight, bias, eps=1e-6, over_batch=False).backward(grad)
    assert torch.equal(found.grad, expected.grad.bfloat16())
