"""What the native encoder keeps for its backward pass."""

from __future__ import annotations

import pytest
import torch
from backend_contract import small_convnext

from sparse import SparseConvNeXt


@pytest.mark.parametrize(("version", "kept"), [(2, 11), (1, 12)])
def test_a_block_keeps_few_copies_of_its_features(version: int, kept: int) -> None:
    width, sites = 16, 2 * 3 * 8 * 8  # stage 1 of two images with three visible patches each
    sizes: list[list[int]] = []
    for depth in (1, 2):
        dense = small_convnext(version=version, dims=(width, 5, 6, 7), depths=(depth, 1, 1, 1))
        images = torch.zeros(2, 3, 64, 64, dtype=torch.float64)
        saved: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, saved=saved: saved.update({x.data_ptr(): x.numel()}) or x, lambda x: x
        ):
            features = SparseConvNeXt(dense)(images, torch.tensor([[0, 1, 2], [1, 2, 3]]))
        assert features.requires_grad
        sizes.append([size for size in saved.values() if size >= sites * width])
    # the hidden layer is four times as wide as the block
    assert (sum(sizes[1]) - sum(sizes[0])) / (sites * width) == kept
