"""Reads images the way an encoder expects them: size, channels, normalisation, value range."""

from __future__ import annotations

from fcmae.data import (
    EvaluationDataset,
    EvaluationTransform,
    ImageList,
    Loader,
    in_order,
    make_loader,
)
from fcmae.weights.info import EncoderInfo


def evaluation_loader(
    images: ImageList, info: EncoderInfo, *, batch_size: int = 32, workers: int = 0
) -> Loader:
    """Return batches of every image once, in order, without randomness."""
    transform = EvaluationTransform(info.image_size, mean=info.mean, std=info.std)
    dataset = EvaluationDataset(
        images, transform, in_chans=info.in_chans, value_range=info.value_range
    )
    return make_loader(dataset, in_order(len(images), batch_size), workers)
