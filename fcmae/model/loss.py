"""The reconstruction loss: normalised pixels of hidden patches."""

from __future__ import annotations

import torch
from torch import Tensor

TARGET_EPS = 1e-6  # inside the root, as in the released code


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each patch: [N, L, D] -> two of [N, L, 1].

    Over all values of all channels together; unbiased variance, eps inside the root.
    """
    mean = patches.mean(dim=-1, keepdim=True)
    variance = patches.var(dim=-1, keepdim=True, unbiased=True)
    return mean, (variance + TARGET_EPS).sqrt()


def normalize_patches(patches: Tensor) -> Tensor:
    """Standardise each patch by its own statistics: [N, L, D] -> [N, L, D].

    Source: ConvNeXt V2, section 3.1 ("patch-wise normalized image"), after MAE.
    """
    mean, deviation = patch_statistics(patches)
    return (patches - mean) / deviation


def reconstruction_loss(prediction: Tensor, target: Tensor, is_masked: Tensor) -> Tensor:
    """Return the squared error, averaged over a patch's values and then over hidden patches.

    Args:
        prediction: [N, L, D].
        target: [N, L, D], the patches or their normalised form.
        is_masked: bool [N, L]; the patches that count.

    Computed in float32 at least, whatever the prediction's type.
    """
    accurate = torch.promote_types(prediction.dtype, torch.float32)
    difference = prediction.to(accurate) - target.to(accurate)
    # Nobody trains what is predicted of visible patches: in fp16 it may overflow, and infinity
    # times 0 is NaN, in the loss and in its gradient.
    difference = difference.masked_fill(~is_masked.unsqueeze(-1), 0)
    error = difference.square().mean(dim=-1)  # [N, L]
    return error.sum() / is_masked.sum()
