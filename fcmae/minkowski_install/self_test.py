"""Compares the installed MinkowskiEngine with dense convolution, in a process of its own.

`python -m fcmae.minkowski_install.self_test` prints a line per case; exit status 1 on a failure.
"""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse import BackendUnavailableError
from sparse.backends.authors_layout import to_authors_layout
from sparse.backends.minkowski import load_minkowski_engine

TOLERANCE = 1e-6


def main() -> int:
    """Run all cases on every device of the build and return the exit status."""
    try:
        engine = load_minkowski_engine()
    except BackendUnavailableError as error:
        print(error)
        return 1
    devices = ["cpu"]
    if engine.is_cuda_available() and torch.cuda.is_available():
        devices.append("cuda")
    status = 0
    for device in devices:
        for name, off in (
            ("7x7 depthwise", depthwise_error(device)),
            ("2x2 stride 2", downsampling_error(device)),
        ):
            verdict = "passed" if off <= TOLERANCE else "FAILED"
            print(f"{name} on {device}: off by {off:.1e}, at most {TOLERANCE:.0e}: {verdict}")
            status |= not off <= TOLERANCE  # NaN fails
    return int(status)


def depthwise_error(device: str) -> float:
    """Return the largest error of a 7x7 depthwise convolution, relative to the largest value."""
    layer = load_minkowski_engine().MinkowskiChannelwiseConvolution(
        5, kernel_size=7, bias=True, dimension=2
    )
    return _error(layer, side=7, stride=1, groups=5, channels=(5, 5), device=device)


def downsampling_error(device: str) -> float:
    """Return the largest error of a 2x2 stride-2 convolution, relative to the largest value."""
    layer = load_minkowski_engine().MinkowskiConvolution(
        5, 6, kernel_size=2, stride=2, bias=True, dimension=2
    )
    return _error(layer, side=2, stride=2, groups=1, channels=(5, 6), device=device)


@torch.no_grad()
def _error(
    layer: torch.nn.Module,
    *,
    side: int,
    stride: int,
    groups: int,
    channels: tuple[int, int],
    device: str,
) -> float:
    """Compare at random active squares of 2x2 cells, with the last row and column hidden."""
    random = torch.Generator().manual_seed(0)
    is_active = torch.rand(2, 6, 4, generator=random) < 0.5
    is_active[:, -1], is_active[:, :, -1] = False, False
    is_active = is_active.repeat_interleave(2, 1).repeat_interleave(2, 2)  # [N, H, W]
    coordinates = is_active.nonzero().int().contiguous()
    image, y, x = coordinates.long().unbind(1)
    inputs = torch.randn(2, channels[0], *is_active.shape[1:], generator=random)
    weight = torch.randn(channels[1], channels[0] // groups, side, side, generator=random)
    bias = torch.randn(channels[1], generator=random)
    kernel, own_bias = layer.get_parameter("kernel"), layer.get_parameter("bias")
    kernel.copy_(to_authors_layout(weight, kernel.shape, "layer.kernel"))
    own_bias.copy_(bias.unsqueeze(0))
    dense = F.conv2d(
        inputs * is_active.unsqueeze(1), weight, bias, stride, (side - 1) // 2, groups=groups
    )
    sparse = layer.to(device)(
        load_minkowski_engine().SparseTensor(
            inputs[image, :, y, x].to(device), coordinates=coordinates.to(device)
        )
    )
    image, y, x = sparse.C.cpu().long().unbind(1)
    expected: Tensor = dense[image, :, y // stride, x // stride]
    difference = (sparse.F.cpu() - expected).abs().max() / expected.abs().max()
    return float(difference)


if __name__ == "__main__":
    sys.exit(main())
