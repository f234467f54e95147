"""The native encoder under torch.compile: one graph, forward and backward."""

from __future__ import annotations

import warnings

import pytest
import torch
from backend_contract import small_convnext, used_parameters
from comparison import assert_relative

from sparse import SparseConvNeXt


@pytest.mark.parametrize("version", [1, 2])
def test_one_graph_gives_the_gradients_of_eager_execution(version: int) -> None:
    rng = torch.Generator().manual_seed(3)
    dense = small_convnext(version=version, depths=(1, 1, 1, 1))
    encoder = SparseConvNeXt(dense)
    images = torch.randn(2, 3, 64, 64, generator=rng, dtype=torch.float64)
    visible = torch.tensor([[0, 3], [1, 2]])
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # inside torch's own tracing
        compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
        for function in (encoder, compiled):
            encoder.zero_grad()
            features = function(images, visible)
            features.square().sum().backward()
            gradients = {n: p.grad.clone() for n, p in used_parameters(dense).items()}
            results.append({"features": features.detach(), **gradients})
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch._dynamo.utils.counters.clear()
    torch._dynamo.reset()
    for name, expected in results[0].items():
        assert_relative(results[1][name], expected, 1e-10)
