"""A small FCMAE for tests that take the fixture `small`."""

from __future__ import annotations

import torch
from backend_contract import randomize
from torch import Tensor

from fcmae import FCMAE


def build(**settings: object) -> FCMAE:
    """A small model in float64 on a 2 x 3 grid with every parameter random."""
    arguments = {"image_size": (64, 96), "decoder_dim": 6, "mask_ratio": 0.5} | settings
    model = randomize(FCMAE("small", **arguments).double(), seed=6)
    return model.eval()


def draw_images(model: FCMAE, batch: int = 2, seed: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    shape = (batch, model.in_chans, *model.image_size)
    return torch.randn(shape, generator=rng, dtype=torch.float64)
