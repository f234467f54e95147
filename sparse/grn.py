"""Global response normalisation over the active sites of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def global_response_norm(
    features: Tensor, weight: Tensor, bias: Tensor, *, eps: float, over_batch: bool
) -> Tensor:
    """Apply GRN to [N, ..., C], pooling over all dimensions between the first and the last.

    Only active sites may stand in `features`: each one adds to the pooled response. The sums are
    taken in float32 at least.

    Args:
        features: [N, ..., C].
        weight: [C], gamma of the paper.
        bias: [C], beta of the paper.
        eps: added to the mean response, the divisor.
        over_batch: pool over the images too, as the released PyTorch layer does.

    Source: ConvNeXt V2 (arXiv 2301.00808), section 3.2 and algorithm 1.
    Deviation: the authors' sparse layer pools over the whole batch; the default is per image, as
        in the dense model. Held by test_output_does_not_depend_on_batch_mates.
    """
    pooled = tuple(range(0 if over_batch else 1, features.dim() - 1))
    accurate = torch.promote_types(features.dtype, torch.float32)
    response = torch.linalg.vector_norm(features, dim=pooled, keepdim=True, dtype=accurate)
    ratio = response / (response.mean(dim=-1, keepdim=True) + eps)
    # x + bias + weight * (x * ratio), in one pass over the features
    scale = (1 + weight * ratio).to(features.dtype)
    return torch.addcmul(bias.to(features.dtype), features, scale)
