"""Pixels without data: never context, never loss; by hand, by loops, bit for bit."""

from __future__ import annotations

import copy
import math

import naive
import pytest
import torch
from comparison import assert_same_bits
from small_model import build, draw_images
from torch import Tensor

from fcmae.model.loss import normalize_patches, patch_statistics, reconstruction_loss
from fcmae.model.masking import draw_visible, num_visible_patches, valid_patches
from fcmae.model.patches import patchify

NAN = float("nan")


def draw_valid(seed: int = 0, num_images: int = 2) -> Tensor:
    """Images of 64 x 96 px, two by three patches: one without data, one with little, spots."""
    rng = torch.Generator().manual_seed(seed)
    valid = torch.rand(num_images, 1, 64, 96, generator=rng) > 0.05
    valid[:, :, :32, :32] = False  # patch 0
    valid[:, :, 32:40, 64:] = False  # a quarter of patch 5
    return valid


# The loss


def test_the_loss_by_hand() -> None:
    prediction = torch.tensor([[[1.0, 2.0], [0.0, 7.0]], [[0.0, 0.0], [3.0, 5.0]]])
    target = torch.zeros(2, 2, 2)
    is_masked = torch.tensor([[True, True], [True, True]])
    is_value = torch.tensor([[[True, True], [True, False]], [[False, False], [True, True]]])
    # (1 + 4 + 0) / 3 of the first image, (9 + 25) / 2 of the second
    found = reconstruction_loss(prediction, target, is_masked, is_value)
    assert found.item() == pytest.approx((5 / 3 + 17) / 2, rel=1e-6)


def test_statistics_by_hand() -> None:
    patch = torch.tensor([[[1.0, NAN, 3.0, 5.0], [7.0, NAN, NAN, NAN]]], dtype=torch.float64)
    mean, deviation = patch_statistics(patch, ~patch.isnan())
    assert mean.flatten().tolist() == [3, 7]
    # 8 / (3 - 1) of three values; one value has no spread
    expected = [math.sqrt(4 + 1e-6), 1e-3]
    assert deviation.flatten().tolist() == pytest.approx(expected, rel=1e-12)
    target = normalize_patches(patch, ~patch.isnan())
    assert target[0, 0, 1] == 0
    assert target.isfinite().all()


@pytest.mark.parametrize("normalize_targets", [False, True])
@pytest.mark.parametrize("min_valid", [0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_loss_equals_loops(
    small: None, normalize_targets: bool, min_valid: float, channels: int
) -> None:
    model = build(in_chans=channels, normalize_targets=normalize_targets, min_valid=min_valid)
    images, valid = draw_images(model), draw_valid()
    valid[:, :, 32:, :32] = True  # patch 3 is whole
    visible = torch.tensor([[1, 2, 4], [0, 1, 5]])
    out = model(images, visible, valid=valid)
    has_data = naive.patchify(valid.expand_as(images).double(), 32).bool()
    expected = naive.loss_with_holes(
        out.prediction.detach(),
        naive.patchify(images, 32),
        out.is_masked,
        has_data,
        normalize_targets=normalize_targets,
        min_valid=min_valid,
    )
    assert out.loss.item() == pytest.approx(expected, rel=1e-10)


def test_images_weigh_the_same_however_a_batch_is_split(small: None) -> None:
    model = build()
    images, valid = draw_images(model, 4), draw_valid(num_images=4)
    valid[1] = True
    valid[2, :, :, 50:] = False
    visible = torch.tensor([[1, 2, 3]] * 4)
    whole = model(images, visible, valid=valid).loss
    parts = [
        model(images[rows], visible[rows], valid=None if rows == [1] else valid[rows]).loss
        for rows in ([0], [1], [2], [3])
    ]
    torch.testing.assert_close(whole, torch.stack(parts).mean(), rtol=1e-12, atol=0)


def test_an_image_with_nothing_to_score_adds_no_loss_and_no_nan(small: None) -> None:
    model = build()
    images, valid = draw_images(model), draw_valid()
    visible = torch.tensor([[1, 2, 3]] * 2)
    one = model(images[:1], visible[:1], valid=valid[:1]).loss
    valid[1, :, 32:, 32:] = valid[1, :, :32, :32] = False  # its hidden patches: 0, 4, 5
    both = model(images, visible, valid=valid).loss
    torch.testing.assert_close(both, one / 2, rtol=1e-12, atol=0)


# Everything valid


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("normalize_targets", [False, True])
def test_with_everything_valid_no_bit_changes(
    small: None, dtype: torch.dtype, normalize_targets: bool
) -> None:
    plain = build(in_chans=3, normalize_targets=normalize_targets).to(dtype)
    told = copy.deepcopy(plain)
    images = draw_images(plain, 3).to(dtype)
    rng = torch.Generator().manual_seed(4)
    visible = draw_visible(3, 6, 0.5, rng)
    out = plain(images, visible)
    out.loss.backward()
    other = told(images, visible, valid=torch.ones(3, 64, 96, dtype=torch.bool))
    other.loss.backward()
    assert_same_bits(other.loss.detach(), out.loss.detach())
    assert_same_bits(other.prediction.detach(), out.prediction.detach())
    gradients = [p.grad for p in plain.parameters() if p.grad is not None]
    others = [p.grad for p in told.parameters() if p.grad is not None]
    assert len(gradients) == len(others) > 20
    for found, expected in zip(others, gradients, strict=True):
        assert_same_bits(found, expected)


def test_a_whole_patch_has_its_numbers_whatever_the_others_have() -> None:
    patches = torch.randn(2, 3, 768, generator=torch.Generator().manual_seed(0))
    is_value = torch.rand(patches.shape, generator=torch.Generator().manual_seed(1)) > 0.5
    is_value[:, 1] = True
    found = normalize_patches(patches, is_value)
    assert_same_bits(found[:, 1], normalize_patches(patches)[:, 1])
    assert not torch.equal(found[:, 0], normalize_patches(patches)[:, 0])


@pytest.mark.parametrize("seed", range(5))
def test_the_draw_with_everything_valid_is_that_of_today(seed: int) -> None:
    draws = [
        draw_visible(3, 49, 0.6, torch.Generator().manual_seed(seed), valid)
        for valid in (None, torch.ones(3, 49, dtype=torch.bool))
    ]
    assert torch.equal(*draws)


# What is seen


def test_visible_patches_are_drawn_among_valid_ones_all_of_them_alike() -> None:
    valid = torch.ones(4000, 6, dtype=torch.bool)
    valid[:, [1, 4]] = False
    visible = draw_visible(4000, 6, 0.5, torch.Generator().manual_seed(0), valid)
    assert visible.shape == (4000, num_visible_patches(6, 0.5))
    shares = torch.bincount(visible.flatten(), minlength=6) / 4000
    assert shares[[1, 4]].tolist() == [0, 0]
    assert shares[[0, 2, 3, 5]].tolist() == pytest.approx([0.75] * 4, abs=0.03)


def test_a_hidden_valid_patch_must_be_left() -> None:
    valid = torch.tensor([[True, True, True, False, False, False]])
    with pytest.raises(ValueError, match=r"has 3 of them, expected 4 or more: 3 visible ones"):
        draw_visible(1, 6, 0.5, None, valid)


@pytest.mark.parametrize(
    ("min_valid", "expected"),
    [(0.25, [False, True, True]), (0.5, [False, False, True]), (0.75, [False, False, True])],
)
def test_valid_patches_by_hand(min_valid: float, expected: list[bool]) -> None:
    valid = torch.ones(1, 1, 4, 12, dtype=torch.bool)
    valid[..., 0:4] = False
    valid[..., :3, 4:8] = False  # 4 of 16 are left
    valid[..., 0, 8:12] = False  # 12 of 16 are left
    assert valid_patches(valid, 4, min_valid)[0].tolist() == expected


def test_the_share_is_not_lost_in_float_noise() -> None:
    valid = torch.zeros(1, 1, 10, 10, dtype=torch.bool)
    valid.view(-1)[:70] = True
    assert valid_patches(valid, 10, 0.7).all()  # 0.7 * 100 is 70.00000000000001 in places
    assert not valid_patches(valid, 10, 0.71).any()


# Leakage


@pytest.mark.parametrize("garbage", [1e30, NAN, float("inf"), -7.0])
@pytest.mark.parametrize("backend", ["native", "masked_dense"])
def test_pixels_without_data_change_nothing(small: None, garbage: float, backend: str) -> None:
    models = [build(backend=backend) for _ in range(2)]
    images, valid = draw_images(models[0]), draw_valid()
    visible = draw_visible(
        2, 6, 0.5, torch.Generator().manual_seed(0), models[0].valid_patches(valid)
    )
    outputs, features = [], []
    for model, pixels in zip(models, (images, torch.where(valid, images, garbage)), strict=True):
        model.sparse_encoder.register_forward_hook(lambda _, __, found: features.append(found))
        outputs.append(model(pixels, visible, valid=valid))
        outputs[-1].loss.backward()
    assert_same_bits(features[1].detach(), features[0].detach())
    assert_same_bits(outputs[1].prediction.detach(), outputs[0].prediction.detach())
    assert_same_bits(outputs[1].loss.detach(), outputs[0].loss.detach())
    for found, expected in zip(models[1].parameters(), models[0].parameters(), strict=True):
        assert (found.grad is None) == (expected.grad is None)
        if expected.grad is not None:
            assert_same_bits(found.grad, expected.grad)


def test_predictions_of_what_has_no_data_get_no_gradient_and_all_others_do(small: None) -> None:
    model = build()
    images, valid = draw_images(model), draw_valid()
    out = model(images, torch.tensor([[1, 2, 3]] * 2), valid=valid)
    out.hidden_prediction.retain_grad()
    out.loss.backward()
    counts = patchify(valid, 32).repeat_interleave(3, dim=-1)
    counts[:, 0] = False  # hidden, and without data
    counts = counts[:, [0, 4, 5]]  # those that are hidden
    gradient = out.hidden_prediction.grad
    assert gradient[~counts].eq(0).all()
    assert gradient[counts].ne(0).all()


def test_gradients_of_a_loss_with_holes() -> None:
    rng = torch.Generator().manual_seed(3)
    prediction = torch.randn(2, 3, 8, generator=rng, dtype=torch.float64, requires_grad=True)
    patches = torch.randn(2, 3, 8, generator=rng, dtype=torch.float64)
    is_value = torch.rand(2, 3, 8, generator=rng) > 0.4
    is_value[0, 1] = True
    is_value[1, 2] = False
    is_masked = torch.tensor([[True, True, False], [False, True, True]])
    target = normalize_patches(patches, is_value)

    def loss(prediction: Tensor) -> Tensor:
        return reconstruction_loss(prediction, target, is_masked, is_value)

    assert torch.autograd.gradcheck(loss, (prediction,))


def test_predictions_are_pasted_only_where_they_are_scored(small: None) -> None:
    model = build(normalize_targets=False)
    images, valid = draw_images(model), draw_valid()
    out = model(images, torch.tensor([[1, 2, 3]] * 2), valid=valid)
    pasted = naive.patchify(model.reconstruct(out, images, valid), 32)
    is_scored = naive.patchify(valid.expand(-1, 3, -1, -1).double(), 32).bool()
    is_scored &= out.is_masked.unsqueeze(-1)
    is_scored[:, 0] = False
    expected = torch.where(is_scored, out.prediction, naive.patchify(images, 32))
    assert torch.equal(pasted, expected)


@pytest.mark.parametrize(
    "valid",
    [
        torch.ones(2, 1, 64, 95, dtype=torch.bool),
        torch.ones(2, 3, 64, 96, dtype=torch.bool),
        torch.ones(1, 64, 96, dtype=torch.bool),
        torch.ones(2, 1, 64, 96),
    ],
)
def test_a_mask_that_does_not_fit_is_one_sentence(small: None, valid: Tensor) -> None:
    model = build()
    with pytest.raises(ValueError, match=r"valid: got .* expected torch.bool \[2, 1, 64, 96\]"):
        model(draw_images(model), valid=valid)


def test_without_visible_they_are_drawn_among_valid_patches(small: None) -> None:
    model = build()
    images, valid = draw_images(model, 50), draw_valid(num_images=50)
    out = model(images, valid=valid, generator=torch.Generator().manual_seed(0))
    assert not (out.visible == 0).any()
    assert out.loss.isfinite()
