"""A graph of one layer, for what has another subject than models.

It becomes ONNX in a second where a model takes six.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fcmae.weights.export_onnx import write_graph

LARGEST = (3, 8, 9)  # batch, height and width, px, of the images that are compared last


class OneLayer(nn.Module):
    """Two channels become a hundred: 800 bytes of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 100, kernel_size=1)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.layer(images),)


def write_tiny_graph(path: Path) -> OneLayer:
    """Write one as ONNX with images of three sizes compared, and return it."""
    torch.manual_seed(0)
    module = OneLayer().eval()
    write_graph(module, ["mapped"], path, 2, (2, 6, 7), [(1, 4, 4), (2, 5, 3), LARGEST], {})
    return module
