"""Geometry of visible patches, and GRN over the sites that remain."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from comparison import assert_relative
from timm.layers.grn import GlobalResponseNorm

from sparse.ops.grn import global_response_norm
from sparse.sites import Canvas, VisiblePatches


def numbered_maps(side: int = 2) -> torch.Tensor:
    """Maps [2, 2 * side, 3 * side, 1] in which every cell has its own number."""
    cells = torch.arange(2 * 2 * side * 3 * side, dtype=torch.float32)
    return cells.view(2, 2 * side, 3 * side, 1)


def test_gather_reads_the_cells_of_each_patch_by_hand() -> None:
    patches = VisiblePatches.from_indices(torch.tensor([[4], [2]]), rows=2, columns=3)
    blocks = patches.gather(numbered_maps())
    assert blocks.shape == (2, 1, 2, 2, 1)
    assert blocks[0, 0, :, :, 0].tolist() == [[14, 15], [20, 21]]
    assert blocks[1, 0, :, :, 0].tolist() == [[24 + 4, 24 + 5], [24 + 10, 24 + 11]]


def test_scatter_keeps_visible_cells_and_zeroes_the_rest() -> None:
    patches = VisiblePatches.from_indices(torch.tensor([[5, 0], [1, 3]]), rows=2, columns=3)
    maps = numbered_maps() + 1
    again = patches.scatter(patches.gather(maps))
    assert torch.equal(again, maps * patches.is_active(2).unsqueeze(-1))


def test_is_active_by_hand() -> None:
    patches = VisiblePatches.from_indices(torch.tensor([[1, 3]]), rows=2, columns=2)
    expected = [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert patches.is_active(2).int().tolist() == [expected]


def test_scatter_keeps_shape_when_last_row_and_column_are_hidden() -> None:
    patches = VisiblePatches.from_indices(torch.tensor([[0], [1]]), rows=3, columns=4)
    assert patches.scatter(torch.ones(2, 1, 2, 2, 5)).shape == (2, 6, 8, 5)
    assert patches.num_images == 2


@pytest.mark.parametrize(
    ("size", "side"), [((7, 7), 7), ((14, 7), 7), ((20, 20), 10), ((7, 8), 1), ((34, 34), 2)]
)
def test_a_map_without_hidden_cells_is_cut_into_the_largest_squares(
    size: tuple[int, int], side: int
) -> None:
    height, width = size
    canvas = Canvas.whole(2, height, width, torch.device("cpu"))
    assert canvas.side == side
    maps = torch.arange(2.0 * height * width * 3).view(2, height, width, 3)
    blocks = canvas.gather(maps)
    assert blocks.shape == (2, height * width // side**2, side, side, 3)
    assert torch.equal(canvas.scatter(blocks), maps)
    by_index = dataclasses.replace(canvas, is_whole=False)
    assert torch.equal(by_index.gather(maps), blocks)
    assert torch.equal(by_index.scatter(blocks), maps)
    assert (blocks.data_ptr() == maps.data_ptr()) or side < width


@pytest.mark.parametrize(
    ("visible", "message"),
    [
        (torch.zeros(2, 3), r"got torch.float32 of shape \[2, 3\], expected a LongTensor \[N, K\]"),
        (torch.zeros(2, 3, dtype=torch.int32), "got torch.int32"),
        (torch.zeros(3, dtype=torch.int64), r"of shape \[3\]"),
        (
            torch.zeros(2, 0, dtype=torch.int64),
            "with K >= 1; fcmae.model.masking.draw_visible",
        ),
        (torch.tensor([[0, 6]]), "run from 0 to 6, expected 0 to 5 on a grid of 2 x 3 patches"),
        (torch.tensor([[0, 1], [2, -1]]), "run from -1 to 2, expected 0 to 5"),
        (torch.tensor([[0, 1], [4, 4]]), "a patch index stands twice in one image"),
    ],
)
def test_indices_that_are_not_patches_are_refused(visible: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VisiblePatches.from_indices(visible, rows=2, columns=3)


@pytest.mark.parametrize("over_batch", [False, True])
def test_grn_by_hand(over_batch: bool) -> None:
    features = torch.tensor([[[3.0, 0.0], [4.0, 1.0]], [[0.0, 2.0], [12.0, 2.0]]]).double()
    weight, bias = torch.tensor([0.5, -2.0]).double(), torch.tensor([0.1, 0.2]).double()
    energy = [[25.0, 1.0], [144.0, 8.0]]  # sums of squares over the sites of each image
    if over_batch:
        energy = [[169.0, 9.0]] * 2
    result = global_response_norm(features, weight, bias, eps=1e-6, over_batch=over_batch)
    for n in range(2):
        response = [value**0.5 for value in energy[n]]
        for site in range(2):
            for c in range(2):
                x = features[n, site, c].item()
                ratio = response[c] / (sum(response) / 2 + 1e-6)
                expected = weight[c].item() * x * ratio + bias[c].item() + x
                assert result[n, site, c].item() == pytest.approx(expected, rel=1e-12)


def test_sparse_grn_equals_dense_grn_image_by_image() -> None:
    rng = torch.Generator().manual_seed(1)
    grn = GlobalResponseNorm(5).double()
    grn.weight.data.normal_(generator=rng)
    grn.bias.data.normal_(generator=rng)
    features = torch.randn(3, 4, 2, 5, generator=rng, dtype=torch.float64)
    result = global_response_norm(features, grn.weight, grn.bias, eps=grn.eps, over_batch=False)
    alone = torch.cat([grn(image.unsqueeze(0)) for image in features])
    assert_relative(result, alone, 1e-12)


def test_grn_gradients_are_right_for_features_and_weights() -> None:
    rng = torch.Generator().manual_seed(2)
    features = torch.randn(2, 3, 4, generator=rng, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, generator=rng, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, generator=rng, dtype=torch.float64, requires_grad=True)
    for over_batch in (False, True):
        assert torch.autograd.gradcheck(
            lambda x, w, b, over=over_batch: global_response_norm(
                x, w, b, eps=1e-6, over_batch=over
            ),
            (features, weight, bias),
        )


def test_grn_sums_in_float32_when_features_are_half_precision() -> None:
    features = torch.full((1, 90_000, 2), 300.0, dtype=torch.float16)  # response 90,000 > 65,504
    weight, bias = torch.ones(2), torch.zeros(2)
    result = global_response_norm(features, weight, bias, eps=1e-6, over_batch=False)
    assert result.dtype == torch.float16
    assert result.unique().tolist() == [600.0]
