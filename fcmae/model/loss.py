"""The reconstruction loss: normalised pixels of hidden patches.

Values without data do not exist for it: `is_value`, bool [N, L, D], is False there. Where all of a
patch's values exist, every number is bit for bit that without `is_value`.
"""

import torch
from torch import Tensor

TARGET_EPS = 1e-6  # inside the root, as in the released code


def patch_statistics(patches: Tensor, is_value: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each patch: [N, L, D] -> two of [N, L, 1].

    Over all values of all channels together, those that exist; unbiased variance, eps inside the
    root. The variance of fewer than two values is 0.
    """
    mean = patches.mean(dim=-1, keepdim=True)
    variance = patches.var(dim=-1, keepdim=True, unbiased=True)
    if is_value is not None:
        count = is_value.sum(dim=-1, keepdim=True)
        is_whole = count == is_value.shape[-1]
        known = torch.where(is_value, patches, 0).sum(dim=-1, keepdim=True) / count.clamp_min(1)
        squares = torch.where(is_value, patches - known, 0).square().sum(dim=-1, keepdim=True)
        mean = torch.where(is_whole, mean, known)
        variance = torch.where(is_whole, variance, squares / (count - 1).clamp_min(1))
    return mean, (variance + TARGET_EPS).sqrt()


def normalize_patches(patches: Tensor, is_value: Tensor | None = None) -> Tensor:
    """Standardise each patch by its own statistics: [N, L, D] -> [N, L, D], 0 where no value is.

    Source: ConvNeXt V2, section 3.1 ("patch-wise normalized image"), after MAE.
    """
    mean, deviation = patch_statistics(patches, is_value)
    normalized = (patches - mean) / deviation
    return normalized if is_value is None else torch.where(is_value, normalized, 0)


def reconstruction_loss(
    prediction: Tensor,
    target: Tensor,
    is_masked: Tensor | None = None,
    is_value: Tensor | None = None,
) -> Tensor:
    """Return the squared error, averaged over the values of hidden patches, then over images.

    Args:
        prediction: [N, L, D].
        target: [N, L, D], the patches or their normalised form.
        is_masked: bool [N, L]; the patches that count, as many in each image. None: all that are
            given, hidden ones only.
        is_value: the values that count. Each image weighs the same, however many it has, so that
            the mean over a batch does not depend on how it is split; one without any adds 0.

    Computed in float32 at least, whatever the prediction's type.
    """
    accurate = torch.promote_types(prediction.dtype, torch.float32)
    difference = prediction.to(accurate) - target.to(accurate)
    if is_masked is None:
        is_masked = torch.ones_like(difference[..., 0], dtype=torch.bool)
        is_scored = is_value
    else:
        # Nobody trains what is predicted of visible patches: it may overflow, and infinity times 0
        # is NaN, in the loss and in its gradient.
        is_scored = is_masked.unsqueeze(-1)
        is_scored = is_scored if is_value is None else is_scored & is_value
    if is_scored is not None:
        difference = difference.masked_fill(~is_scored, 0)
    squares = difference.square()
    error = squares.mean(dim=-1)  # [N, L]
    if is_value is None:
        return error.sum() / is_masked.sum()
    count = is_value.sum(dim=-1)  # [N, L]
    known = squares.sum(dim=-1) / count.clamp_min(1)
    error = torch.where(count == is_value.shape[-1], error, known)
    # Weights make a mean over an image's values of its means over patches: all are 1 without holes.
    counted = count * is_masked
    hidden = is_masked.sum(dim=1, keepdim=True)
    total = counted.sum(dim=1, keepdim=True).clamp_min(1)
    weight = (counted * hidden).to(accurate) / total.to(accurate)
    return (error * weight).sum() / is_masked.sum()
