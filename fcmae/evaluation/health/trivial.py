"""What hidden patches cost without any learning: the losses that a model must beat.

Each predictor is scored like the model, on patches standardised by their own mean and deviation.
Brightness is given to it, as it is to the model: its prediction's own mean is taken away.
Pixels without data (`valid`, see `FCMAE.forward`) are neither shown to it nor scored.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fcmae.model.loss import normalize_patches, patch_statistics, reconstruction_loss
from fcmae.model.patches import patchify, unpatchify


def patch_mean_loss(
    images: Tensor, is_masked: Tensor, patch_size: int, is_value: Tensor | None = None
) -> float:
    """Return the loss of predicting each hidden patch's mean everywhere: 1, less for flat patches.

    Args:
        images: [N, C, H, W].
        is_masked: bool [N, L].
        patch_size: px.
        is_value: bool [N, L, D], the values that count; None: all. See FCMAE.values_with_data.
    """
    target = normalize_patches(patchify(images, patch_size), is_value)
    return float(reconstruction_loss(torch.zeros_like(target), target, is_masked, is_value))


def blurred_surroundings_loss(
    images: Tensor,
    is_masked: Tensor,
    patch_size: int,
    grid: tuple[int, int],
    is_value: Tensor | None = None,
) -> float:
    """Return the loss of filling hidden pixels with a Gaussian mean of the visible ones.

    The Gaussian's deviation is half a patch, and it reaches three deviations; weights are
    renormalised over visible pixels. Where it reaches none, the patch's mean is left.
    """
    patches = patchify(images, patch_size)
    visible = (~is_masked).unsqueeze(-1).expand(-1, -1, patch_size**2)
    if is_value is not None:
        visible = visible & is_value[..., :: images.shape[1]]  # one of each pixel's values
    weight = unpatchify(visible.to(images.dtype), patch_size, grid)  # [N, 1, H, W]
    blurred = _blur(images * weight, patch_size / 2)
    filled = blurred / _blur(weight, patch_size / 2).clamp_min(1e-12)
    guess = patchify(filled, patch_size)
    _, deviation = patch_statistics(patches, is_value)
    guess = (guess - patch_statistics(guess, is_value)[0]) / deviation
    target = normalize_patches(patches, is_value)
    return float(reconstruction_loss(guess, target, is_masked, is_value))


def nearest_patch_loss(
    images: Tensor,
    is_masked: Tensor,
    patch_size: int,
    grid: tuple[int, int],
    is_value: Tensor | None = None,
) -> float:
    """Return the loss of copying the nearest visible patch, standardised; the first of equals.

    Where that patch has no data, its mean is copied.
    """
    target = normalize_patches(patchify(images, patch_size), is_value)
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1)  # [L, 2]
    distance = (places[:, None] - places).square().sum(dim=2)  # whole numbers: equal is equal
    far = int(distance.max()) + 1
    nearest = torch.where(is_masked.unsqueeze(1), far, distance).argmin(dim=2)  # [N, L]
    guess = target.gather(1, nearest.unsqueeze(-1).expand_as(target))
    return float(reconstruction_loss(guess, target, is_masked, is_value))


def _blur(maps: Tensor, deviation: float) -> Tensor:
    """Gaussian blur of [N, C, H, W] with zeros outside, not renormalised."""
    reach = round(3 * deviation)
    offsets = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-0.5 * (offsets / deviation).square())
    channels = maps.shape[1]
    vertical = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    horizontal = kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    maps = F.conv2d(maps, vertical, padding=(reach, 0), groups=channels)
    return F.conv2d(maps, horizontal, padding=(0, reach), groups=channels)
