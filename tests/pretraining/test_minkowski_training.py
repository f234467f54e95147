"""Pretraining on the minkowski backend follows pretraining on native, step by step."""

from __future__ import annotations

import minkowski_engine
import pytest
import torch

from fcmae import FCMAE
from fcmae.model.masking import draw_visible

pytestmark = pytest.mark.minkowski
STEPS = 30


def losses(backend: str) -> list[float]:
    """Train the atto model on four fixed images of noise and stripes, masks drawn by a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FCMAE("convnextv2_atto", image_size=96, decoder_dim=32, backend=backend)
    rng = torch.Generator().manual_seed(1)
    stripes = torch.arange(96).div(8, rounding_mode="floor").remainder(2).float()
    images = torch.randn(4, 3, 96, 96, generator=rng) * 0.1 + stripes
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    history = []
    for _ in range(STEPS):
        visible = draw_visible(4, model.num_patches, 0.6, rng)
        loss = model(images, visible).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


def test_thirty_steps_have_the_losses_of_native() -> None:
    minkowski_engine.need()
    native, minkowski = losses("native"), losses("minkowski")
    assert native[-1] < 0.9 * native[0], "nothing was learned, so nothing was compared"
    torch.testing.assert_close(minkowski, native, rtol=1e-4, atol=0)
