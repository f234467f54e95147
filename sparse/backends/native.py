"""The native backend: a timm ConvNeXt computed at visible patches only.

Features are blocks [N, K, m, m, C]: image, visible patch, the m x m cells of the patch, channel.
Stem, norms, MLPs and downsampling never leave a patch and are matrix products on the blocks.
"""

import torch.nn.functional as F
from timm.layers.activations import GELU
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparse.ops.depthwise import depthwise_convolution
from sparse.ops.grn import global_response_norm
from sparse.ops.linear import linear
from sparse.sites import Canvas, VisiblePatches


def encode(
    dense: ConvNeXt, images: Tensor, patches: VisiblePatches, *, grn_over_batch: bool
) -> Tensor:
    """Run `dense` at the visible patches: images [N, C, H, W] -> [N, K, m, m, D].

    Shapes depend on the number of visible patches, not on their positions.
    """
    blocks = _embed(dense.stem[0], images, patches)
    blocks = _norm(dense.stem[1], blocks)
    for stage in dense.stages:
        if not isinstance(stage.downsample, nn.Identity):
            blocks = _norm(stage.downsample[0], blocks)
            blocks = _downsample(stage.downsample[1], blocks)
        canvas = patches.canvas(blocks.shape[2])
        for block in stage.blocks:
            if stage.grad_checkpointing and blocks.requires_grad:
                blocks = checkpoint(
                    run_block, block, blocks, canvas, grn_over_batch, use_reentrant=False
                )
            else:
                blocks = run_block(block, blocks, canvas, grn_over_batch)
    return blocks if isinstance(dense.norm_pre, nn.Identity) else _norm(dense.norm_pre, blocks)


def _embed(convolution: nn.Conv2d, images: Tensor, patches: VisiblePatches) -> Tensor:
    """Stem convolution of the visible pixels only: [N, C, H, W] -> [N, K, m, m, D]."""
    stride = convolution.stride[0]
    cells = images.unflatten(3, (patches.columns, -1, stride))
    cells = cells.unflatten(2, (patches.rows, -1, stride))  # [N, C, R, m, s, Q, m, s]
    cells = cells[patches.image, :, patches.row, :, :, patches.column]  # [N, K, C, m, s, m, s]
    cells = cells.permute(0, 1, 3, 5, 2, 4, 6).flatten(4)  # [N, K, m, m, C * s * s]
    return linear(cells, convolution.weight.flatten(1), convolution.bias)


def _downsample(convolution: nn.Conv2d, blocks: Tensor) -> Tensor:
    """Convolution with kernel = stride in each patch: [N, K, m, m, C] -> [N, K, m/s, m/s, D]."""
    stride = convolution.stride[0]
    cells = blocks.unflatten(3, (-1, stride))
    cells = cells.unflatten(2, (-1, stride))  # [N, K, m/s, s, m/s, s, C]
    cells = cells.transpose(3, 4).flatten(4)  # [N, K, m/s, m/s, s * s * C]
    return linear(cells, convolution.weight.permute(0, 2, 3, 1).flatten(1), convolution.bias)


def run_block(
    block: ConvNeXtBlock, blocks: Tensor, canvas: Canvas, grn_over_batch: bool = False
) -> Tensor:
    """One ConvNeXt block with the submanifold depthwise convolution: [N, K, m, m, C] -> same."""
    mlp = block.mlp
    branch = depthwise_convolution(blocks, block.conv_dw, canvas)
    branch = _linear(mlp.fc1, _norm(block.norm, branch))
    has_grn = hasattr(mlp, "grn")
    grn_takes_gelu = has_grn and _is_plain_gelu(mlp.act) and mlp.drop1.p == 0
    if not grn_takes_gelu:
        branch = mlp.drop1(mlp.act(branch))
    if has_grn:
        grn = mlp.grn
        branch = global_response_norm(
            branch,
            grn.weight,
            grn.bias,
            eps=grn.eps,
            over_batch=grn_over_batch,
            after_gelu=grn_takes_gelu,
        )
    branch = mlp.drop2(_linear(mlp.fc2, branch))
    if block.gamma is not None:
        branch = branch * block.gamma
    return blocks + block.drop_path(branch)  # drop path: one decision per image, dimension 0


def _is_plain_gelu(activation: nn.Module) -> bool:
    """Whether this is the exact GELU, by torch's class or timm's."""
    if type(activation) is nn.GELU:
        return activation.approximate == "none"
    return type(activation) is GELU


def _norm(norm: nn.LayerNorm, blocks: Tensor) -> Tensor:
    """LayerNorm of each cell, whichever layout the dense model runs it in."""
    return F.layer_norm(blocks, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _linear(layer: nn.Linear | nn.Conv2d, blocks: Tensor) -> Tensor:
    """A linear layer or its twin, a 1x1 convolution, on channels-last blocks."""
    return linear(blocks, layer.weight.flatten(1), layer.bias)
