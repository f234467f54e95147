"""Submanifold depthwise convolution on visible patches: the one layer that looks across patches."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sparse.sites import VisiblePatches


def depthwise_convolution(blocks: Tensor, layer: nn.Conv2d, patches: VisiblePatches) -> Tensor:
    """Convolve with zeros at hidden cells and return visible cells only: [N, K, m, m, C] -> same.

    The patches go onto a canvas of zeros in channels-last memory, one dense depthwise convolution
    runs there, and the visible cells are read back. Shapes do not depend on the mask's positions.
    """
    canvas_NCHW = patches.scatter(blocks).permute(0, 3, 1, 2)
    convolved = F.conv2d(
        canvas_NCHW, layer.weight, layer.bias, padding=layer.padding, groups=layer.groups
    )
    return patches.gather(convolved.permute(0, 2, 3, 1))
