"""The loss, by hand and by loops."""

from __future__ import annotations

import math

import naive
import pytest
import torch
from comparison import assert_same_bits

from fcmae.model.loss import normalize_patches, patch_statistics, reconstruction_loss


def test_loss_by_hand() -> None:
    prediction = torch.tensor([[[1.0, 2.0], [0.0, 0.0], [5.0, 5.0]], [[9.0, 9.0]] * 3])
    target = torch.tensor([[[0.0, 0.0], [3.0, 3.0], [5.0, 8.0]], [[9.0, 7.0]] * 3])
    is_masked = torch.tensor([[True, False, True], [False, True, False]])
    # hidden patches: (1 + 4) / 2, (0 + 9) / 2, (0 + 4) / 2
    assert reconstruction_loss(prediction, target, is_masked).item() == pytest.approx(9 / 3)


def test_normalised_patch_by_hand() -> None:
    patch = torch.tensor([[[1.0, 3.0, 5.0]]], dtype=torch.float64)
    mean, deviation = patch_statistics(patch)
    assert mean.item() == 3
    assert deviation.item() == pytest.approx(math.sqrt(4 + 1e-6), rel=1e-12)  # 8 / (3 - 1)
    expected = [-2 / deviation.item(), 0, 2 / deviation.item()]
    assert normalize_patches(patch)[0, 0].tolist() == pytest.approx(expected, rel=1e-12)


def test_a_constant_patch_has_a_target_of_zeros() -> None:
    assert normalize_patches(torch.full((1, 1, 12), 0.25)).abs().max() == 0


@pytest.mark.parametrize("normalize_targets", [False, True])
def test_loss_equals_loops(normalize_targets: bool) -> None:
    rng = torch.Generator().manual_seed(2)
    prediction = torch.randn(2, 4, 12, generator=rng, dtype=torch.float64)
    patches = 3 * torch.randn(2, 4, 12, generator=rng, dtype=torch.float64) + 1
    is_masked = torch.tensor([[True, False, True, True], [False, True, True, True]])
    target = normalize_patches(patches) if normalize_targets else patches
    assert reconstruction_loss(prediction, target, is_masked).item() == pytest.approx(
        naive.loss(prediction, patches, is_masked, normalize_targets=normalize_targets), rel=1e-12
    )


def test_predictions_of_visible_patches_change_nothing_and_get_no_gradient() -> None:
    rng = torch.Generator().manual_seed(2)
    prediction, target = torch.randn(2, 2, 4, 6, generator=rng)
    is_masked = torch.tensor([[True, False, True, True], [False, True, True, True]])
    other = prediction.clone()
    other[~is_masked] = 1e6
    other.requires_grad_()
    loss = reconstruction_loss(other, target, is_masked)
    assert_same_bits(loss.detach(), reconstruction_loss(prediction, target, is_masked))
    loss.backward()
    assert other.grad[~is_masked].eq(0).all()
    assert other.grad[is_masked].ne(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_of_half_precision_predictions_is_summed_in_float32(dtype: torch.dtype) -> None:
    prediction = torch.full((1, 2, 4), 300.0, dtype=dtype)  # 300 squared is no float16
    is_masked = torch.tensor([[True, False]])
    loss = reconstruction_loss(prediction, torch.zeros(1, 2, 4), is_masked)
    assert loss.dtype == torch.float32
    assert loss.item() == 90_000


@pytest.mark.parametrize("overflow", [float("inf"), float("nan")])
def test_what_is_predicted_of_visible_patches_may_overflow(overflow: float) -> None:
    rng = torch.Generator().manual_seed(0)
    target = torch.randn(2, 4, 12, generator=rng)
    is_masked = torch.tensor([[True, False, True, False], [False, True, False, True]])
    values = torch.randn(2, 4, 12, generator=rng)
    prediction = torch.where(is_masked.unsqueeze(-1), values, overflow).requires_grad_()
    plain = values.clone().requires_grad_()
    loss = reconstruction_loss(prediction, target, is_masked)
    expected = reconstruction_loss(plain, target, is_masked)
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    assert prediction.grad is not None
    assert torch.equal(prediction.grad, plain.grad)


def test_hidden_patches_alone_have_the_loss_that_they_have_among_all() -> None:
    rng = torch.Generator().manual_seed(2)
    prediction, target = torch.randn(2, 2, 4, 6, generator=rng, dtype=torch.float64)
    is_masked = torch.tensor([[True, False, True, True], [False, True, True, True]])
    is_value = torch.rand(2, 4, 6, generator=rng) > 0.3
    alone = [values[is_masked].view(2, 3, 6) for values in (prediction, target, is_value)]
    for among, apart in ((None, None), (is_value, alone[2])):
        expected = reconstruction_loss(prediction, target, is_masked, among)
        found = reconstruction_loss(alone[0], alone[1], is_value=apart)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
