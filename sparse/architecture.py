"""Reads a timm ConvNeXt and says whether, and on which grid, it can run at visible sites only.

Patches must nest: the stem and the downsampling layers may not look across a patch border.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from timm.layers.mlp import GlobalResponseNormMlp, Mlp
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import nn

from sparse import UnsupportedModelError


@dataclass(frozen=True)
class Architecture:
    """What the sparse backends need to know of a dense ConvNeXt.

    Attributes:
        in_chans: image channels.
        strides: pixels per cell of each stage, e.g. (4, 8, 16, 32).
        dims: channels of each stage.
        depths: blocks of each stage.
        kernel_sizes: side of the depthwise kernel of each stage.
    """

    in_chans: int
    strides: tuple[int, ...]
    dims: tuple[int, ...]
    depths: tuple[int, ...]
    kernel_sizes: tuple[int, ...]

    @property
    def total_stride(self) -> int:
        """Pixels per cell of the last stage."""
        return self.strides[-1]


def read_architecture(dense: nn.Module) -> Architecture:
    """Describe `dense`, checking every layer that must not look across patches.

    Raises:
        UnsupportedModelError: `dense` is no timm ConvNeXt, or one of its layers cannot run
            sparsely; the message names the layer and the reason.
    """
    if not isinstance(dense, ConvNeXt):
        raise UnsupportedModelError(
            f"the encoder is a {type(dense).__name__}, expected a timm ConvNeXt; create it with "
            "timm.create_model('convnextv2_*' or 'convnext_*', num_classes=0)."
        )
    stem = list(dense.stem)
    if len(stem) != 2 or not isinstance(stem[0], nn.Conv2d) or not _keeps_to_blocks(stem[0]):
        raise _unsupported("stem", "its convolution overlaps (kernel larger than stride)", "patch")
    stride = stem[0].stride[0]
    strides, dims, depths, kernel_sizes = [], [], [], []
    for number, stage in enumerate(dense.stages):
        name = f"stages.{number}"
        if not isinstance(stage.downsample, nn.Identity):
            convolution = stage.downsample[1]
            if not _keeps_to_blocks(convolution):
                raise _unsupported(
                    f"{name}.downsample",
                    "it is dilated or overlaps (an output_stride below the natural one)",
                    "non-overlapping",
                )
            stride *= convolution.stride[0]
        for position, block in enumerate(stage.blocks):
            _check_block(f"{name}.blocks.{position}", block)
        strides.append(stride)
        dims.append(stage.blocks[0].conv_dw.out_channels)
        depths.append(len(stage.blocks))
        kernel_sizes.append(stage.blocks[0].conv_dw.kernel_size[0])
    for name, norm in _norms(dense):
        if not isinstance(norm, nn.LayerNorm):
            raise _unsupported(name, f"it is a {type(norm).__name__}", "LayerNorm")
    return Architecture(
        stem[0].in_channels, tuple(strides), tuple(dims), tuple(depths), tuple(kernel_sizes)
    )


def runs_natively(block: ConvNeXtBlock) -> bool:
    """Whether a block is made of the layers that the native backend computes."""
    if type(block) is not ConvNeXtBlock:  # one of its own kind has a forward of its own
        return False
    try:
        _check_block("block", block)
    except UnsupportedModelError:
        return False
    return isinstance(block.norm, nn.LayerNorm) and type(block.mlp) in (Mlp, GlobalResponseNormMlp)


def _keeps_to_blocks(convolution: nn.Conv2d) -> bool:
    """Whether each output sees one square of stride x stride inputs and nothing else."""
    return (
        isinstance(convolution, nn.Conv2d)
        and convolution.kernel_size == convolution.stride
        and convolution.stride[0] == convolution.stride[1]
        and convolution.padding == (0, 0)
        and convolution.dilation == (1, 1)
        and convolution.groups == 1
    )


def _check_block(name: str, block: ConvNeXtBlock) -> None:
    convolution = block.conv_dw
    size = convolution.kernel_size[0]
    if convolution.dilation != (1, 1) or convolution.stride != (1, 1):
        raise _unsupported(f"{name}.conv_dw", "it is dilated or strided", "stride-1")
    if (
        size % 2 == 0
        or convolution.kernel_size[1] != size
        or convolution.padding != (size // 2,) * 2
    ):
        raise _unsupported(
            f"{name}.conv_dw", f"its kernel is {convolution.kernel_size}", "centred odd square"
        )
    if not isinstance(block.shortcut, nn.Identity):
        raise _unsupported(f"{name}.shortcut", "it is not the identity", "plain residual")


def _norms(dense: ConvNeXt) -> Iterator[tuple[str, nn.Module]]:
    """Every norm that the sparse forward runs, with its name."""
    yield "stem.1", dense.stem[1]
    for number, stage in enumerate(dense.stages):
        if not isinstance(stage.downsample, nn.Identity):
            yield f"stages.{number}.downsample.0", stage.downsample[0]
        for position, block in enumerate(stage.blocks):
            yield f"stages.{number}.blocks.{position}.norm", block.norm
    if not isinstance(dense.norm_pre, nn.Identity):
        yield "norm_pre", dense.norm_pre


def _unsupported(layer: str, reason: str, expected: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"this ConvNeXt cannot run sparsely: {layer}: {reason}; expected a {expected} layer. "
        "Choose a convnext or convnextv2 variant without it, such as convnextv2_tiny."
    )
