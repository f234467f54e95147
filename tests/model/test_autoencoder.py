"""FCMAE as a whole: prediction, loss, leakage, reconstruction, learning."""

from __future__ import annotations

import copy
import dataclasses

import naive
import pytest
import torch
from backend_contract import paint_patches
from comparison import assert_relative, assert_same_bits
from small_model import build, draw_images
from timm.models.convnext import ConvNeXt
from torch import Tensor

from fcmae import FCMAE
from fcmae.model.backbones import VARIANTS
from fcmae.model.decoder import Decoder
from fcmae.model.loss import normalize_patches, reconstruction_loss
from fcmae.model.patches import patchify

BACKENDS = ["native", "masked_dense"]
TRAINABLE = {  # encoder and decoder 512 x 1, by the paper's layers
    "atto": 7_257_992,
    "femto": 8_751_472,
    "pico": 12_521_792,
    "nano": 19_016_592,
    "tiny": 31_965_568,
    "base": 91_922_432,
    "large": 200_910_592,
    "huge": 662_616_192,
}


def natural_images(count: int, size: int, seed: int = 0) -> Tensor:
    """Images whose amplitudes fall as 1 / frequency, as those of photographs do."""
    rng = torch.Generator().manual_seed(seed)
    frequency = torch.fft.fftfreq(size).square()
    frequency = (frequency.unsqueeze(1) + frequency.unsqueeze(0)).sqrt().clamp_min(1 / size)
    noise = torch.randn(count, 3, size, size, generator=rng)
    images = torch.fft.ifft2(torch.fft.fft2(noise) / frequency).real
    return (images - images.mean()) / images.std()


def photographs(count: int, size: int) -> Tensor:
    """Crops of the two photographs that scikit-learn ships, normalised as ImageNet is."""
    datasets = pytest.importorskip("sklearn.datasets")
    rng = torch.Generator().manual_seed(0)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    crops = []
    for number in range(count):
        picture = datasets.load_sample_images().images[number % 2]
        picture = torch.tensor(picture).permute(2, 0, 1) / 255
        top, left = (int(torch.randint(side - size, (1,), generator=rng)) for side in (427, 640))
        crops.append((picture[:, top : top + size, left : left + size] - mean) / deviation)
    return torch.stack(crops)


# The algorithm


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"backend": "masked_dense"},
        {"normalize_targets": False},
        {"in_chans": 1, "image_size": (64, 32)},
        {"in_chans": 4, "decoder_depth": 2},
        {"patch_size": 64, "image_size": (64, 128)},
        {"grn_scope": "batch"},
        {"stem_stride": 1, "patch_size": 16, "image_size": (16, 48)},
    ],
    ids=str,
)
def test_prediction_and_loss_equal_the_naive_reference(
    small: None, settings: dict[str, object]
) -> None:
    model = build(**{"image_size": (32, 96)} | settings)
    images = draw_images(model)
    out = model(images, generator=torch.Generator().manual_seed(2))
    features = naive.encode(
        model.encoder, images, out.visible, model.patch_size, settings.get("grn_scope", "image")
    )
    cell_size = model.sparse_encoder.architecture.total_stride
    prediction = naive.predict(model.decoder, features, out.visible, model.grid, cell_size)
    expected = torch.where(out.is_masked.unsqueeze(-1), prediction, 0)
    assert_relative(out.prediction, expected, 1e-10)
    loss = naive.loss(
        prediction,
        naive.patchify(images, model.patch_size),
        out.is_masked,
        normalize_targets=model.normalize_targets,
    )
    assert out.loss.item() == pytest.approx(loss, rel=1e-10)


@pytest.mark.parametrize("settings", [{}, {"patch_size": 64, "image_size": (64, 128)}], ids=str)
@pytest.mark.parametrize("has_holes", [False, True])
def test_the_head_sees_hidden_patches_only_and_no_gradient_changes(
    small: None, settings: dict[str, object], has_holes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, shapes = build(**settings), []
    images = draw_images(model)
    valid = torch.ones(2, 1, *model.image_size, dtype=torch.bool)
    valid[:, :, -9:, -13:] = not has_holes
    predict = Decoder.predict

    def seen(self: Decoder, cells: Tensor) -> Tensor:
        shapes.append(tuple(cells.shape[:-1]))
        return predict(self, cells)

    monkeypatch.setattr(Decoder, "predict", seen)
    visible = torch.tensor([[0], [1]])
    out = model(images, visible, valid=valid)
    side = model.patch_size // 32
    assert shapes == [(2, model.num_patches - 1, side, side)]
    found = torch.autograd.grad(out.loss, list(model.decoder.parameters()))

    # The head at every patch, as the loss's definition has it.
    images = images.masked_fill(~valid, 0)
    features = naive.encode(model.encoder, images, visible, model.patch_size, "image")
    everywhere = naive.predict(model.decoder, features, visible, model.grid, 32)
    counted = model.values_with_data(valid)
    target = normalize_patches(naive.patchify(images, model.patch_size), counted)
    loss = reconstruction_loss(everywhere, target, out.is_masked, counted)
    assert out.loss.item() == pytest.approx(loss.item(), rel=1e-10)
    for one, other in zip(
        found, torch.autograd.grad(loss, list(model.decoder.parameters())), strict=True
    ):
        assert_relative(one, other, 1e-9)


def test_is_masked_says_which_patches_were_hidden(small: None) -> None:
    model = build()
    out = model(draw_images(model), torch.tensor([[0, 5], [2, 1]]))
    assert out.is_masked.tolist() == [
        [False, True, True, True, True, False],
        [True, False, False, True, True, True],
    ]
    assert out.visible.tolist() == [[0, 5], [2, 1]]
    assert out.hidden.tolist() == [[1, 2, 3, 4], [0, 3, 4, 5]]
    assert out.hidden_prediction.shape == (2, 4, 32 * 32 * 3)
    assert out.prediction.shape == (2, 6, 32 * 32 * 3)


def test_the_ratio_of_the_constructor_decides_what_is_drawn(small: None) -> None:
    for ratio, kept in ((0.2, 4), (0.5, 3), (0.8, 1)):
        model = build(mask_ratio=ratio)
        assert model(draw_images(model)).visible.shape == (2, kept)
        assert model.effective_mask_ratio == pytest.approx(1 - kept / 6)
        assert model.num_patches == 6


def test_a_generator_makes_the_draw_reproducible(small: None) -> None:
    model = build()
    images = draw_images(model)
    first, again, other = (
        model(images, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first.visible, again.visible)
    assert_same_bits(first.loss, again.loss)
    assert not torch.equal(first.visible, other.visible)


def test_the_order_of_visible_changes_no_prediction(small: None) -> None:
    model = build()
    images = draw_images(model)
    out = model(images, torch.tensor([[0, 2, 5], [1, 3, 4]]))
    shuffled = model(images, torch.tensor([[5, 0, 2], [4, 3, 1]]))
    assert_relative(shuffled.prediction, out.prediction, 1e-10)


def test_bfloat16_autocast_keeps_the_loss_in_float32(small: None) -> None:
    model = build().float()
    images, visible = draw_images(model).float(), torch.tensor([[0, 2, 5], [1, 3, 4]])
    expected = model(images, visible).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(images, visible)
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, expected, rtol=2e-2, atol=0)
    assert out.loss != expected, "autocast had no effect"


# What may not leak


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pixel", [1e6, float("nan")])
def test_hidden_pixels_change_no_prediction_bit_for_bit(
    small: None, backend: str, pixel: float
) -> None:
    model = build(backend=backend).float()
    images = draw_images(model).float()
    out = model(images)
    hidden = [row.nonzero().flatten().tolist() for row in out.is_masked]
    changed = paint_patches(images, hidden, 32, pixel)
    assert_same_bits(model(changed, out.visible).prediction, out.prediction)


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_mates_change_no_prediction_bit_for_bit(small: None, backend: str) -> None:
    model = build(backend=backend).float()
    images = draw_images(model, batch=3).float()
    out = model(images)
    other, visible = images.clone(), out.visible.clone()
    other[0], other[2] = -7, images[2] * 100
    visible[0] = torch.tensor([3, 4, 5]) if visible[0, 0] == 0 else torch.tensor([0, 1, 2])
    assert_same_bits(model(other, visible).prediction[1], out.prediction[1])


def test_hidden_pixels_get_gradient_through_the_target_only(small: None) -> None:
    model = build()
    images = draw_images(model).requires_grad_()
    out = model(images)
    hidden = [row.nonzero().flatten().tolist() for row in out.is_masked]
    is_hidden = paint_patches(torch.zeros_like(images), hidden, 32, 1.0).bool()
    (through_all,) = torch.autograd.grad(out.loss, images, retain_graph=True)
    (through_prediction,) = torch.autograd.grad(out.prediction.square().sum(), images)
    target = normalize_patches(patchify(images, 32))
    (through_target,) = torch.autograd.grad(
        reconstruction_loss(out.prediction.detach(), target, out.is_masked), images
    )
    assert through_prediction[is_hidden].eq(0).all()
    assert through_prediction[~is_hidden].ne(0).all()
    assert_same_bits(through_all[is_hidden], through_target[is_hidden])
    assert through_target[is_hidden].ne(0).all()


# Parameters


@pytest.mark.parametrize("variant", VARIANTS)
def test_number_of_trainable_parameters_is_the_papers(variant: str) -> None:
    with torch.device("meta"):
        model = FCMAE(f"convnextv2_{variant}")
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == TRAINABLE[variant]


def test_only_the_norm_of_the_head_is_frozen_and_gets_no_gradient() -> None:
    model = FCMAE("convnextv2_atto", image_size=64)
    model(natural_images(2, 64)).loss.backward()
    frozen = {name for name, p in model.named_parameters() if p.grad is None}
    assert frozen == {"encoder.head.norm.weight", "encoder.head.norm.bias"}
    assert frozen == {name for name, p in model.named_parameters() if not p.requires_grad}


def test_each_parameter_is_initialised_once_with_declared_std(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[int] = []

    def record(module: str) -> None:
        draw = torch.nn.init.trunc_normal_

        def recorded(tensor: Tensor, std: float = 1.0) -> Tensor:
            drawn.append(tensor.data_ptr())
            return draw(tensor, std=std)

        monkeypatch.setattr(f"{module}.trunc_normal_", recorded)

    record("timm.models.convnext")
    record("torch.nn.init")
    model = FCMAE("convnextv2_atto", image_size=64)
    weights = {n: p for n, p in model.named_parameters() if p.dim() > 1}
    assert sorted(drawn) == sorted(p.data_ptr() for p in weights.values())
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            tolerance = 0.1 if parameter.numel() > 500 else 0.25
            assert parameter.std().item() == pytest.approx(0.02, rel=tolerance), name
        else:
            is_norm = name.endswith((".weight", "gamma")) and ".grn." not in name
            assert parameter.eq(float(is_norm)).all(), name


def test_a_state_dict_holds_each_weight_once_and_loads_into_a_new_model(small: None) -> None:
    model = build()
    state = model.state_dict()
    assert {name.split(".")[0] for name in state} == {"encoder", "decoder"}
    other = FCMAE("small", image_size=(64, 96), decoder_dim=6, mask_ratio=0.5).double().eval()
    other.load_state_dict(state)
    images, visible = draw_images(model), torch.tensor([[0, 2, 5], [1, 3, 4]])
    assert_same_bits(other(images, visible).loss, model(images, visible).loss)


def test_a_deep_copy_runs_on_its_own_weights(small: None) -> None:
    model = build()
    twin = copy.deepcopy(model)
    assert twin.sparse_encoder.dense is twin.encoder
    assert model.sparse_encoder.dense is model.encoder
    assert twin.encoder is not model.encoder


# Reconstruction


@pytest.mark.parametrize("settings", [{}, {"in_chans": 1}, {"normalize_targets": False}], ids=str)
def test_a_perfect_prediction_reconstructs_the_images(
    small: None, settings: dict[str, object]
) -> None:
    model = build(**settings)
    images = 40 * draw_images(model) + 100
    patches = naive.patchify(images, 32)
    if model.normalize_targets:
        rows = [naive.normalize(patch.tolist()) for patch in patches.flatten(0, 1)]
        patches = torch.tensor(rows, dtype=torch.float64).view_as(patches)
    out = model(images)
    hidden = torch.stack([rows[chosen] for rows, chosen in zip(patches, out.hidden, strict=True)])
    out = dataclasses.replace(out, hidden_prediction=hidden)
    assert_relative(model.reconstruct(out, images), images, 1e-10)


def test_reconstruction_replaces_hidden_patches_and_leaves_visible_ones_bit_identical(
    small: None,
) -> None:
    model = build().float()
    images = draw_images(model).float()
    out = model(images)
    pasted = model.reconstruct(out, images)
    hidden = [row.nonzero().flatten().tolist() for row in out.is_masked]
    is_hidden = paint_patches(torch.zeros_like(images), hidden, 32, 1.0).bool()
    assert_same_bits(pasted[~is_hidden], images[~is_hidden])
    assert pasted[is_hidden].ne(images[is_hidden]).all()
    patches, predicted = naive.patchify(images, 32), naive.patchify(pasted, 32)
    patch = hidden[1][0]
    true = patches[1, patch].double()
    deviation = (true.var() + 1e-6).sqrt()
    expected = out.prediction[1, patch].double() * deviation + true.mean()
    assert_relative(predicted[1, patch], expected, 1e-5)
    assert not pasted.requires_grad


def test_predictions_are_pasted_as_they_are_when_targets_are_pixels(small: None) -> None:
    model = build(normalize_targets=False, patch_size=64, image_size=(64, 128))
    images = draw_images(model)
    out = model(images, torch.tensor([[0], [1]]))
    pasted = naive.patchify(model.reconstruct(out, images), 64)
    assert_same_bits(pasted[0, 1], out.prediction[0, 1])
    assert_same_bits(pasted[1, 0], out.prediction[1, 0])


# Learning


@pytest.mark.parametrize("source", [natural_images, photographs])
def test_first_loss_is_one_on_photographs(source) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FCMAE("convnextv2_atto")
    out = model(source(4, 224), generator=torch.Generator().manual_seed(1))
    assert out.loss.item() == pytest.approx(1.0, rel=0.1)


def test_eight_images_are_memorised(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, **_: object) -> ConvNeXt:
        sizes = {"dims": (16, 24, 32, 48), "depths": (1, 1, 1, 1)}
        return ConvNeXt(num_classes=0, use_grn=True, ls_init_value=None, **sizes)

    monkeypatch.setattr("fcmae.model.autoencoder.create_backbone", create)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FCMAE("small", image_size=96, decoder_dim=64)
    images = natural_images(8, 96)
    visible = model(images, generator=torch.Generator().manual_seed(2)).visible
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    losses = []
    for _ in range(60):
        loss = model(images, visible).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1.0, rel=0.1)
    assert losses[-1] < 0.15  # 0.02 to 0.05 over seeds
