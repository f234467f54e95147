"""Losses of predictors that learn nothing, against loops over patches and pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fcmae.evaluation.health.trivial import (
    blurred_surroundings_loss,
    nearest_patch_loss,
    patch_mean_loss,
)
from fcmae.model.masking import is_masked_from_visible

EPS = 1e-6


def patch_of(image: Tensor, row: int, column: int, side: int) -> Tensor:
    return image[:, row * side : (row + 1) * side, column * side : (column + 1) * side].double()


def standardised(patch: Tensor) -> Tensor:
    return (patch - patch.mean()) / (patch.var(unbiased=True) + EPS).sqrt()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))


GRID, SIDE = (2, 3), 4
VISIBLE = torch.tensor([[0, 4], [2, 3]])


@pytest.fixture(scope="module")
def is_masked() -> Tensor:
    return is_masked_from_visible(VISIBLE, 6)


def test_the_patch_mean_costs_one_up_to_the_unbiased_variance(
    images: Tensor, is_masked: Tensor
) -> None:
    values = 3 * SIDE**2
    assert patch_mean_loss(images, is_masked, SIDE) == pytest.approx(1 - 1 / values, rel=1e-5)


def test_the_patch_mean_of_flat_patches_costs_nothing(is_masked: Tensor) -> None:
    assert patch_mean_loss(torch.ones(2, 3, 8, 12), is_masked, SIDE) == 0


def nearest_by_loops(images: Tensor) -> float:
    losses = []
    for image, visible in zip(images, VISIBLE.tolist(), strict=True):
        for hidden in set(range(6)) - set(visible):
            row, column = divmod(hidden, 3)
            # min takes the first of equals, as the visible patches ascend
            near = min(visible, key=lambda v: (v // 3 - row) ** 2 + (v % 3 - column) ** 2)
            guess = standardised(patch_of(image, *divmod(near, 3), SIDE))
            truth = standardised(patch_of(image, row, column, SIDE))
            losses.append((guess - truth).square().mean())
    return float(torch.stack(losses).mean())


def test_the_nearest_patch_equals_loops(images: Tensor, is_masked: Tensor) -> None:
    expected = nearest_by_loops(images)
    found = nearest_patch_loss(images, is_masked, SIDE, GRID)
    assert found == pytest.approx(expected, rel=1e-5)  # float32 against float64


def test_the_nearest_patch_is_free_where_patches_repeat(is_masked: Tensor) -> None:
    tile = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    images = tile.repeat(2, 1, 2, 3)
    assert nearest_patch_loss(images, is_masked, SIDE, GRID) == pytest.approx(0, abs=1e-10)


def blurred_by_loops(images: Tensor) -> float:
    """Fill every hidden pixel by a sum over all visible pixels within three deviations."""
    deviation, losses = SIDE / 2, []
    reach = round(3 * deviation)
    height, width = images.shape[2:]
    for image, visible in zip(images.double(), VISIBLE.tolist(), strict=True):
        filled = torch.zeros_like(image)
        for y in range(height):
            for x in range(width):
                total, weights = torch.zeros(3, dtype=torch.float64), 0.0
                for v in range(max(0, y - reach), min(height, y + reach + 1)):
                    for u in range(max(0, x - reach), min(width, x + reach + 1)):
                        if (v // SIDE) * 3 + u // SIDE in visible:
                            distance = (v - y) ** 2 + (u - x) ** 2
                            weight = math.exp(-0.5 * distance / deviation**2)
                            total += weight * image[:, v, u]
                            weights += weight
                filled[:, y, x] = total / weights if weights else 0.0
        for hidden in set(range(6)) - set(visible):
            guess = patch_of(filled, *divmod(hidden, 3), SIDE)
            patch = patch_of(image, *divmod(hidden, 3), SIDE)
            guess = (guess - guess.mean()) / (patch.var(unbiased=True) + EPS).sqrt()
            losses.append((guess - standardised(patch)).square().mean())
    return float(torch.stack(losses).mean())


def test_blurred_surroundings_equal_loops(images: Tensor, is_masked: Tensor) -> None:
    found = blurred_surroundings_loss(images, is_masked, SIDE, GRID)
    assert found == pytest.approx(blurred_by_loops(images), rel=1e-5)  # float32 against float64


def test_blurred_surroundings_of_an_image_without_them_cost_what_the_mean_costs() -> None:
    images = torch.randn(1, 1, 4, 24, generator=torch.Generator().manual_seed(2))
    is_masked = torch.tensor([[False, False, False, False, False, True]])
    images[..., :20] = 0.0  # nothing to blur: the guess is flat
    found = blurred_surroundings_loss(images, is_masked, 4, (1, 6))
    assert found == pytest.approx(patch_mean_loss(images, is_masked, 4), rel=1e-6)


def test_the_guess_does_not_move_with_the_hidden_pixels(images: Tensor, is_masked: Tensor) -> None:
    changed = images.clone()
    changed[0, :, 0:4, 4:8] = changed[0, :, 0:4, 4:8].flip(2)  # patch 1 of image 0 is hidden
    mirrored = nearest_patch_loss(changed, is_masked, SIDE, GRID)
    guess = standardised(patch_of(images[0], 0, 0, SIDE))
    truth = patch_of(images[0], 0, 1, SIDE)
    before = (guess - standardised(truth)).square().mean()
    after = (guess - standardised(truth.flip(2))).square().mean()
    expected = nearest_patch_loss(images, is_masked, SIDE, GRID) + float(after - before) / 8
    assert mirrored == pytest.approx(expected, rel=1e-5)
