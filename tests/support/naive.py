"""Reference by plain loops, one site at a time, written from the paper (arXiv 2301.00808).

A site is a cell of a feature map at (row, column); a hidden cell has no site and counts as zero.
Only parameters are read from the model under test, never its arithmetic.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor, nn

Sites = dict[tuple[int, int], Tensor]  # (row, column) -> [C]; one image


def num_visible_patches(num_patches: int, mask_ratio: str) -> int:
    """Return floor(L * (1 - r)) in exact arithmetic; the ratio is written in decimals."""
    return math.floor(num_patches * (1 - Fraction(mask_ratio)))


def encode(
    dense: nn.Module, images: Tensor, visible: Tensor, patch_size: int, grn_scope: str = "image"
) -> Tensor:
    """Submanifold ConvNeXt: images [N, C, H, W], visible [N, K] -> [N, K, m, m, D]."""
    columns = images.shape[3] // patch_size
    batch = [
        stem(dense.stem[0], image, patches.tolist(), patch_size, columns)
        for image, patches in zip(images, visible, strict=True)
    ]
    batch = [each_site(sites, lambda x: layer_norm(dense.stem[1], x)) for sites in batch]
    side = patch_size // dense.stem[0].stride[0]
    for stage in dense.stages:
        if not isinstance(stage.downsample, nn.Identity):
            norm, convolution = stage.downsample
            batch = [each_site(sites, lambda x, n=norm: layer_norm(n, x)) for sites in batch]
            batch = [downsample(convolution, sites) for sites in batch]
            side //= convolution.stride[0]
        for block in stage.blocks:
            batch = run_block(block, batch, grn_scope)
    if not isinstance(dense.norm_pre, nn.Identity):
        batch = [each_site(sites, lambda x: layer_norm(dense.norm_pre, x)) for sites in batch]
    features = []
    for sites, patches in zip(batch, visible.tolist(), strict=True):
        for patch in patches:
            top, left = patch // columns * side, patch % columns * side
            features += [sites[top + y, left + x] for y in range(side) for x in range(side)]
    return torch.stack(features).view(*visible.shape, side, side, -1)


def each_site(sites: Sites, function) -> Sites:
    """Apply a function of one site's features to all sites."""
    return {place: function(x) for place, x in sites.items()}


def stem(
    convolution: nn.Conv2d, image: Tensor, patches: list[int], patch_size: int, columns: int
) -> Sites:
    """Create the sites: the stem's convolution at the cells of visible patches."""
    stride = convolution.stride[0]
    side = patch_size // stride
    sites: Sites = {}
    for patch in patches:
        for y in range(patch // columns * side, patch // columns * side + side):
            for x in range(patch % columns * side, patch % columns * side + side):
                pixels = image[:, y * stride : (y + 1) * stride, x * stride : (x + 1) * stride]
                sites[y, x] = matrix(convolution) @ pixels.reshape(-1) + bias(convolution)
    return sites


def downsample(convolution: nn.Conv2d, sites: Sites) -> Sites:
    """Strided convolution: a coarse site is the weighted sum of the fine sites that it covers."""
    stride = convolution.stride[0]
    coarse: Sites = {}
    for (y, x), features in sites.items():
        part = convolution.weight[:, :, y % stride, x % stride] @ features
        place = (y // stride, x // stride)
        coarse[place] = coarse[place] + part if place in coarse else part + bias(convolution)
    return coarse


def run_block(block: nn.Module, batch: list[Sites], grn_scope: str) -> list[Sites]:
    """ConvNeXt block: depthwise, norm, wider, GELU, GRN (V2), narrower, scale (V1), residual."""
    hidden = []
    for sites in batch:
        mixed = {place: depthwise(block.conv_dw, sites, place) for place in sites}
        hidden.append(
            each_site(
                mixed,
                lambda x: gelu(
                    matrix(block.mlp.fc1) @ layer_norm(block.norm, x) + bias(block.mlp.fc1)
                ),
            )
        )
    if hasattr(block.mlp, "grn"):
        if grn_scope == "batch":
            everything = [x for sites in hidden for x in sites.values()]
            hidden = [global_response_norm(block.mlp.grn, s, everything) for s in hidden]
        else:
            hidden = [global_response_norm(block.mlp.grn, s, list(s.values())) for s in hidden]
    result = []
    for sites, wide in zip(batch, hidden, strict=True):
        branch = each_site(wide, lambda x: matrix(block.mlp.fc2) @ x + bias(block.mlp.fc2))
        if block.gamma is not None:
            branch = each_site(branch, lambda x: block.gamma * x)
        result.append({place: sites[place] + branch[place] for place in sites})
    return result


def depthwise(convolution: nn.Conv2d, sites: Sites, place: tuple[int, int]) -> Tensor:
    """Submanifold depthwise convolution at one site: absent neighbours add nothing."""
    size = convolution.kernel_size[0]
    taps, seen = [], []
    for i in range(size):
        for j in range(size):
            neighbour = (place[0] + i - size // 2, place[1] + j - size // 2)
            if neighbour in sites:
                taps.append(i * size + j)
                seen.append(sites[neighbour])
    return (convolution.weight.flatten(1)[:, taps] * torch.stack(seen, dim=1)).sum(dim=1) + bias(
        convolution
    )


def global_response_norm(grn: nn.Module, sites: Sites, pooled: list[Tensor]) -> Sites:
    """GRN (section 3.2): x + gamma * x * G / mean(G) + beta, G the L2 norm over `pooled` sites."""
    energy = sum((x * x for x in pooled[1:]), pooled[0] * pooled[0])
    response = energy.sqrt()
    ratio = response / (response.sum() / len(response) + 1e-6)
    return each_site(sites, lambda x: x + grn.weight * (x * ratio) + grn.bias)


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Standardise one site over its channels, with the biased variance."""
    centred = x - x.sum() / len(x)
    variance = (centred * centred).sum() / len(x)
    return centred / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def gelu(x: Tensor) -> Tensor:
    """Exact GELU."""
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def matrix(layer: nn.Module) -> Tensor:
    """The weight of a linear layer or of a convolution that sees one block of inputs."""
    return layer.weight.reshape(layer.weight.shape[0], -1)


def bias(layer: nn.Module) -> Tensor:
    """The bias, or zeros."""
    return layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut patches by slicing, values by counting: [N, C, H, W] -> [N, L, P * P * C]."""
    num_images, channels, height, width = images.shape
    result = []
    for n in range(num_images):
        for top in range(0, height, patch_size):
            for left in range(0, width, patch_size):
                for y in range(top, top + patch_size):
                    for x in range(left, left + patch_size):
                        result.append(images[n, :, y, x])
    return torch.cat(result).view(num_images, -1, patch_size**2 * channels)


def normalize(patch: list[float]) -> list[float]:
    """Standardise one target patch: unbiased variance, 1e-6 inside the root."""
    mean = sum(patch) / len(patch)
    variance = sum((value - mean) ** 2 for value in patch) / (len(patch) - 1)
    return [(value - mean) / math.sqrt(variance + 1e-6) for value in patch]


def loss(
    prediction: Tensor, patches: Tensor, is_masked: Tensor, *, normalize_targets: bool
) -> float:
    """Mean squared error of each hidden patch, averaged over the hidden patches of all images."""
    errors = []
    for n in range(patches.shape[0]):
        for patch in range(patches.shape[1]):
            if is_masked[n, patch]:
                target = patches[n, patch].tolist()
                target = normalize(target) if normalize_targets else target
                squares = [
                    (p - t) ** 2 for p, t in zip(prediction[n, patch].tolist(), target, strict=True)
                ]
                errors.append(sum(squares) / len(squares))
    return sum(errors) / len(errors)


def predict(
    decoder: nn.Module,
    features: Tensor,
    visible: Tensor,
    grid: tuple[int, int],
    cell_size: int,
) -> Tensor:
    """Decode features [N, K, m, m, D] of visible patches to [N, L, P * P * C] of all patches."""
    side = features.shape[2]
    rows, columns = grid[0] * side, grid[1] * side
    patch_size = side * cell_size
    result = []
    for n in range(len(features)):
        sites: Sites = {
            (y, x): decoder.mask_token.reshape(-1) for y in range(rows) for x in range(columns)
        }
        for k, patch in enumerate(visible[n].tolist()):
            for y in range(side):
                for x in range(side):
                    place = (patch // grid[1] * side + y, patch % grid[1] * side + x)
                    projection = decoder.projection
                    sites[place] = matrix(projection) @ features[n, k, y, x] + bias(projection)
        for block in decoder.blocks:
            (sites,) = run_block(block, [sites], "image")
        cells = each_site(sites, lambda x: matrix(decoder.head) @ x + bias(decoder.head))
        channels = len(cells[0, 0]) // cell_size**2
        for patch in range(grid[0] * grid[1]):
            top, left = patch // grid[1] * patch_size, patch % grid[1] * patch_size
            for y in range(top, top + patch_size):
                for x in range(left, left + patch_size):
                    start = (y % cell_size * cell_size + x % cell_size) * channels
                    cell = cells[y // cell_size, x // cell_size]
                    result.append(cell[start : start + channels])
    return torch.cat(result).view(len(features), grid[0] * grid[1], -1)


def loss_with_holes(
    prediction: Tensor,
    patches: Tensor,
    is_masked: Tensor,
    has_data: Tensor,
    *,
    normalize_targets: bool,
    min_valid: float,
) -> float:
    """Mean over images of the mean over values that have data, in hidden patches with enough.

    `has_data` is bool [N, L, D], one per value.
    """
    images = []
    for n in range(patches.shape[0]):
        squares = []
        for patch in range(patches.shape[1]):
            places = [d for d in range(patches.shape[2]) if has_data[n, patch, d]]
            if is_masked[n, patch] and len(places) >= min_valid * patches.shape[2]:
                target = [float(patches[n, patch, d]) for d in places]
                target = normalize(target) if normalize_targets else target
                squares += [
                    (float(prediction[n, patch, d]) - t) ** 2
                    for d, t in zip(places, target, strict=True)
                ]
        images.append(sum(squares) / len(squares))
    return sum(images) / len(images)
