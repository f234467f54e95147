"""Whole images by the native backend: timm's model stays, its blocks are computed faster.

With nothing hidden a run of ConvNeXt blocks is a case of the sparse one, and nearly all of a
model's work. Its stem, downsampling and head stay timm's, as do all parameters and their names.
"""

import contextlib
import functools
from collections.abc import Iterator

import torch
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from sparse.architecture import runs_natively
from sparse.backends.native import run_block
from sparse.ops.compiler import load_kernels
from sparse.ops.linear import is_for_onednn
from sparse.sites import Canvas


@contextlib.contextmanager
def native_blocks(*models: nn.Module) -> Iterator[None]:
    """Let ConvNeXt blocks inside of models compute as the native backend does, to rounding.

    It is done where it is faster, with gradients and without: in float32 on a CPU, with the
    compiled kernels, and of blocks without GRN only where oneDNN multiplies faster than torch does.
    Elsewhere, and where somebody listens to a layer of a block or a block is not as the backend
    knows it, timm's own forward runs. Nothing of the models is changed for longer.

    Args:
        models: timm ConvNeXts, or what has their stages in it, such as features_only or a
            segmentation; others are left alone.
    """
    parts = dict.fromkeys(part for model in models for part in model.modules())
    runs = [
        part
        for part in parts
        if isinstance(part, nn.Sequential) and _is_run(part) and "forward" not in vars(part)
    ]
    for run in runs:
        vars(run)["forward"] = functools.partial(_forward, run)
    try:
        yield
    finally:
        for run in runs:
            del vars(run)["forward"]


def _is_run(part: nn.Sequential) -> bool:
    blocks = [block for block in part if isinstance(block, ConvNeXtBlock) and runs_natively(block)]
    return type(part) is nn.Sequential and len(blocks) == len(part) > 0


def _forward(run: nn.Sequential, maps_NCHW: Tensor) -> Tensor:
    if not _pays(run, maps_NCHW):
        return nn.Sequential.forward(run, maps_NCHW)
    maps_NHWC = maps_NCHW.permute(0, 2, 3, 1)
    num_images, height, width, _ = maps_NHWC.shape
    canvas = Canvas.whole(num_images, height, width, maps_NHWC.device)
    blocks = canvas.gather(maps_NHWC).contiguous()  # [N, K, m, m, C]
    for block in run:
        blocks = run_block(block, blocks, canvas)
    return canvas.scatter(blocks).permute(0, 3, 1, 2)


def _pays(run: nn.Sequential, maps: Tensor) -> bool:
    """Whether these maps are computed faster, and nobody has to see what timm would compute."""
    return (
        maps.device.type == "cpu"
        and maps.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not any(_is_heard(part) for block in run for part in block.modules())
        and load_kernels(torch.float32) is not None
        and (all(hasattr(block.mlp, "grn") for block in run) or is_for_onednn(maps))
    )


def _is_heard(part: nn.Module) -> bool:
    forward = part._forward_hooks or part._forward_pre_hooks
    return bool(forward or part._backward_hooks or part._backward_pre_hooks)
