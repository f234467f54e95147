"""The masked_dense backend: the dense model with hidden sites zeroed wherever sites mix.

The readable reference for the other backends: it computes every site and hides the wrong ones.
"""

# N images, C channels, H x W cells of the stage, K visible patches, m patch side in cells

import torch
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparse.sites import VisiblePatches


def encode(
    dense: ConvNeXt, images: Tensor, patches: VisiblePatches, *, grn_over_batch: bool
) -> Tensor:
    """Run `dense` with hidden sites held at zero: images [N, C, H, W] -> [N, K, m, m, D].

    Source: JAX listing of the paper's recipe; hidden sites count as zero in every depthwise and
    downsampling convolution and in the sum of GRN.
    """
    # Zero, not multiply: NaN times 0 is NaN, and a hidden NaN would enter the weights' gradients.
    images = images.masked_fill(~active_cells(patches, images), 0)
    x_NCHW = dense.stem(images.contiguous(memory_format=torch.channels_last))  # the faster layout
    for stage in dense.stages:
        if not isinstance(stage.downsample, nn.Identity):
            x_NCHW = stage.downsample[0](x_NCHW)
            x_NCHW = stage.downsample[1](x_NCHW * active_cells(patches, x_NCHW))
        is_active_N1HW = active_cells(patches, x_NCHW)
        for block in stage.blocks:
            if stage.grad_checkpointing and x_NCHW.requires_grad:
                x_NCHW = checkpoint(
                    _run_block, block, x_NCHW, is_active_N1HW, grn_over_batch, use_reentrant=False
                )
            else:
                x_NCHW = _run_block(block, x_NCHW, is_active_N1HW, grn_over_batch)
    return patches.gather(dense.norm_pre(x_NCHW).permute(0, 2, 3, 1))


def active_cells(patches: VisiblePatches, x_NCHW: Tensor) -> Tensor:
    """Return the active sites of a feature map, bool [N, 1, H, W]."""
    return patches.is_active(x_NCHW.shape[2] // patches.rows).unsqueeze(1)


def _run_block(
    block: ConvNeXtBlock, x_NCHW: Tensor, is_active_N1HW: Tensor, grn_over_batch: bool
) -> Tensor:
    mlp = block.mlp
    is_active = is_active_N1HW
    branch = block.conv_dw(x_NCHW * is_active_N1HW)
    if not block.use_conv_mlp:
        branch, is_active = branch.permute(0, 2, 3, 1), is_active.permute(0, 2, 3, 1)
    branch = mlp.drop1(mlp.act(mlp.fc1(block.norm(branch))))
    if hasattr(mlp, "grn"):
        branch = apply_grn(mlp.grn, branch * is_active, grn_over_batch)
    branch = mlp.drop2(mlp.fc2(branch))
    if not block.use_conv_mlp:
        branch = branch.permute(0, 3, 1, 2)
    if block.gamma is not None:
        branch = branch * block.gamma.view(1, -1, 1, 1)
    return x_NCHW + block.drop_path(branch)


def apply_grn(grn: nn.Module, x: Tensor, over_batch: bool) -> Tensor:
    """timm's own layer, which pools per image; `over_batch` turns the batch into one tall image."""
    if not over_batch:
        return grn(x)
    images = x.shape[0]
    if grn.channel_dim == 1:  # [N, C, H, W]
        tall = torch.cat(x.unbind(), dim=1).unsqueeze(0)
        return torch.stack(grn(tall).squeeze(0).chunk(images, dim=1))
    return grn(x.flatten(0, 1).unsqueeze(0)).squeeze(0).unflatten(0, (images, -1))
