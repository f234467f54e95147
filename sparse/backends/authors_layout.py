"""Names and shapes of weights in the authors' sparse encoder, against those of timm's ConvNeXt.

The only table of them: the minkowski backend and the conversion of weights read it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# The authors' names of a block's weights, and timm's.
BLOCK_NAMES = {
    "dwconv.kernel": "conv_dw.weight",
    "dwconv.bias": "conv_dw.bias",
    "norm.ln.weight": "norm.weight",
    "norm.ln.bias": "norm.bias",
    "pwconv1.linear.weight": "mlp.fc1.weight",
    "pwconv1.linear.bias": "mlp.fc1.bias",
    "grn.gamma": "mlp.grn.weight",
    "grn.beta": "mlp.grn.bias",
    "pwconv2.linear.weight": "mlp.fc2.weight",
    "pwconv2.linear.bias": "mlp.fc2.bias",
    "gamma": "gamma",
}
DOWNSAMPLE_NAMES = {
    "0.ln.weight": "0.weight",
    "0.ln.bias": "0.bias",
    "1.kernel": "1.weight",
    "1.bias": "1.bias",
}
NORM_NAMES = {"ln.weight": "weight", "ln.bias": "bias"}  # of norm_pre
ROWS = {"dwconv.bias", "grn.gamma", "grn.beta", "1.bias"}  # vectors stored as [1, C]


def timm_name(name: str) -> str:
    """Return timm's name of a weight of the authors' sparse encoder.

    The authors have no layers for a stem of stride 2 (`downsample_layers.0.2` and `.3` here) and
    a last norm before pooling (`norm_pre`).
    """
    first, *rest = name.split(".", 1)
    if first == "norm_pre":
        return name.replace(".ln.", ".")
    stage, layer = rest[0].split(".", 1)
    if first == "stages":
        block, layer = layer.split(".", 1)
        return f"stages.{stage}.blocks.{block}.{BLOCK_NAMES[layer]}"
    if stage == "0":
        if layer[0] in "01":
            return f"stem.{layer}"
        layer = f"{int(layer[0]) - 2}{layer[1:]}"
    return f"stages.{stage}.downsample.{DOWNSAMPLE_NAMES[layer]}"


def kernel_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a kernel whose shape in timm is [out, in, rows, columns].

    It is [places, in, out], and [places, C] of a depthwise convolution.
    """
    outputs, inputs, rows, columns = shape
    return (rows * columns, outputs) if inputs == 1 else (rows * columns, inputs, outputs)


def to_authors_layout(weight: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """Reshape a timm weight to the authors' `shape`.

    ME numbers the places of a kernel with the row fastest: kernel[i + side * j] = weight[i, j].
    """
    if name.endswith(".kernel"):
        weight = weight.permute(3, 2, 1, 0)  # [out, in, i, j] -> [j, i, in, out]
    return weight.reshape(shape)


def to_timm_layout(weight: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """Reshape one of the authors' weights to timm's `shape`, the inverse of to_authors_layout."""
    if name.endswith(".kernel"):
        return weight.reshape(shape[::-1]).permute(3, 2, 1, 0)
    return weight.reshape(shape)
