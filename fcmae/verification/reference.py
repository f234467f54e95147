"""Submanifold ConvNeXt V2 by its definition: a list of sites, neighbours found by coordinates.

Written from the paper (arXiv 2301.00808) for the certificate. It reads the parameters of a timm
model and shares no arithmetic and no geometry with the backends that it judges.
"""

# N images, K visible patches per image, M sites of the batch, C channels, P patch side in pixels,
# m patch side in cells of the stage at hand

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def encode(
    dense: Any, images: Tensor, visible: Tensor, patch_size: int, *, grn_over_batch: bool
) -> Tensor:
    """Return the features of visible patches, images [N, C, H, W] -> [N, K, m, m, D]."""
    grid = (images.shape[2] // patch_size, images.shape[3] // patch_size)
    stride = dense.stem[0].stride[0]
    side = patch_size // stride
    sites = _sites(visible, grid, side)
    neighbours = _Neighbours(sites, (len(images), grid[0] * side, grid[1] * side))
    image, row, column = sites.unbind(dim=1)
    pixels = images.unfold(2, stride, stride).unfold(3, stride, stride)  # [N, C, H, W, s, s]
    x = pixels[image, :, row, column].flatten(1) @ dense.stem[0].weight.flatten(1).T
    x = _norm(dense.stem[1], _plus(x, dense.stem[0].bias))
    for stage in dense.stages:
        if not isinstance(stage.downsample, nn.Identity):
            norm, convolution = stage.downsample
            side //= convolution.stride[0]
            sites = _sites(visible, grid, side)
            x = _downsample(convolution, _norm(norm, x), neighbours, sites)
            neighbours = _Neighbours(sites, (len(images), grid[0] * side, grid[1] * side))
        pool = torch.zeros_like(sites[:, 0]) if grn_over_batch else sites[:, 0]
        for block in stage.blocks:  # recomputed in backward: 49 shifted copies of x need memory
            x = checkpoint(_block, block, x, neighbours, pool, len(images), use_reentrant=False)
    if not isinstance(dense.norm_pre, nn.Identity):
        x = _norm(dense.norm_pre, x)
    return x.view(*visible.shape, side, side, -1)


def predict(decoder: Any, features: Tensor, visible: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the values of every cell, features [N, K, m, m, D] -> [N, L, m, m, V], patch by patch.

    Mask tokens stand at hidden cells, and the blocks of the decoder see every cell.
    """
    num_images, side = len(features), features.shape[2]
    everything = torch.arange(grid[0] * grid[1]).repeat(num_images, 1)
    sites = _sites(everything, grid, side)
    neighbours = _Neighbours(sites, (num_images, grid[0] * side, grid[1] * side))
    seen = neighbours.place[tuple(_sites(visible, grid, side).unbind(dim=1))]
    x = decoder.mask_token.flatten().repeat(len(sites), 1)
    projected = features.flatten(0, 3) @ decoder.projection.weight.flatten(1).T
    x = x.index_copy(0, seen, _plus(projected, decoder.projection.bias))
    for block in decoder.blocks:
        x = checkpoint(_block, block, x, neighbours, sites[:, 0], num_images, use_reentrant=False)
    x = _plus(x @ decoder.head.weight.flatten(1).T, decoder.head.bias)
    return x.view(*everything.shape, side, side, -1)


def _sites(visible: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Return [M, 3] (image, row, column) of the cells of visible patches, patch by patch."""
    rows = []
    for image, patches in enumerate(visible.tolist()):
        for patch in patches:
            top, left = patch // grid[1] * side, patch % grid[1] * side
            rows += [(image, top + i, left + j) for i in range(side) for j in range(side)]
    return torch.tensor(rows)


class _Neighbours:
    """Looks sites up by their coordinates."""

    def __init__(self, sites: Tensor, shape: tuple[int, int, int]) -> None:
        self.sites, self.shape = sites, shape
        self.place = torch.full(shape, -1)
        self.place[tuple(sites.unbind(dim=1))] = torch.arange(len(sites))

    def at(self, x: Tensor, down: int, right: int) -> Tensor:
        """Return the features of the sites so many cells away, 0 where there is no site."""
        image, row, column = self.sites.unbind(dim=1)
        row, column = row + down, column + right
        is_inside = (row >= 0) & (row < self.shape[1])
        is_inside &= (column >= 0) & (column < self.shape[2])
        index = torch.where(is_inside, self.place[image, row * is_inside, column * is_inside], -1)
        found = x[index.clamp_min(0)]
        return torch.where((index >= 0).unsqueeze(1), found, 0)


def _block(block: Any, x: Tensor, neighbours: _Neighbours, pool: Tensor, num_images: int) -> Tensor:
    """One block; `pool` [M] says which sites GRN sums together."""
    kernel, mlp = block.conv_dw.weight, block.mlp
    centre = kernel.shape[2] // 2
    branch = torch.zeros_like(x)
    for i in range(kernel.shape[2]):
        for j in range(kernel.shape[3]):
            branch = branch + kernel[:, 0, i, j] * neighbours.at(x, i - centre, j - centre)
    branch = _norm(block.norm, _plus(branch, block.conv_dw.bias))
    branch = branch @ mlp.fc1.weight.flatten(1).T + mlp.fc1.bias
    branch = branch * (1 + torch.erf(branch / 2**0.5)) / 2
    if hasattr(mlp, "grn"):
        energy = branch.new_zeros(num_images, branch.shape[1]).index_add(0, pool, branch.square())
        response = energy.clamp_min(torch.finfo(energy.dtype).tiny).sqrt()
        ratio = response / (response.mean(dim=1, keepdim=True) + mlp.grn.eps)
        branch = mlp.grn.weight * (branch * ratio[pool]) + mlp.grn.bias + branch
    branch = branch @ mlp.fc2.weight.flatten(1).T + mlp.fc2.bias
    return x + (branch if block.gamma is None else branch * block.gamma)


def _downsample(convolution: nn.Conv2d, x: Tensor, fine: _Neighbours, coarse: Tensor) -> Tensor:
    """Sum over the fine sites that each coarse site covers."""
    stride = convolution.stride[0]
    image, row, column = coarse.unbind(dim=1)
    total = x.new_zeros(len(coarse), convolution.out_channels)
    for i in range(stride):
        for j in range(stride):
            covered = x[fine.place[image, row * stride + i, column * stride + j]]
            total = total + covered @ convolution.weight[:, :, i, j].T
    return _plus(total, convolution.bias)


def _norm(norm: Any, x: Tensor) -> Tensor:
    x = x - x.mean(dim=1, keepdim=True)
    return x / (x.square().mean(dim=1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def _plus(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias
