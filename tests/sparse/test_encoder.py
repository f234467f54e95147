"""SparseConvNeXt beyond the contract: real variants, training aids, precision, capture."""

from __future__ import annotations

import copy
import warnings

import pytest
import timm
import torch
from backend_contract import as_map, loss_weights, randomize, small_convnext, used_parameters
from comparison import assert_relative, assert_same_bits
from torch import Tensor, nn

from fcmae.model.backbones import VARIANTS
from sparse import SparseConvNeXt

BACKENDS = ["native", "masked_dense"]
NAMES = [f"convnextv2_{variant}" for variant in VARIANTS]
NAMES += ["convnext_atto", "convnext_tiny", "convnext_base", "convnext_tiny_hnf"]
WIDTHS = (3, 4, 5, 6)


def narrow(name: str) -> nn.Module:
    """Create timm's variant with its own depths and layers, a few channels wide, in float64."""
    return randomize(timm.create_model(name, num_classes=0, dims=WIDTHS).double(), seed=3)


def draw(
    batch: int, rows: int, columns: int, visible: int, *, patch: int = 32, channels: int = 3
) -> tuple[Tensor, Tensor]:
    """Random images in float64 and sorted random visible patches."""
    rng = torch.Generator().manual_seed(7)
    shape = (batch, channels, rows * patch, columns * patch)
    images = torch.randn(shape, generator=rng, dtype=torch.float64)
    order = torch.rand(batch, rows * columns, generator=rng).argsort(dim=1)
    return images, order[:, :visible].sort(dim=1).values


def gradients(
    encoder: SparseConvNeXt, images: Tensor, visible: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Features, and the gradients of the images and of every parameter."""
    encoder.zero_grad(set_to_none=True)
    images = images.clone().requires_grad_()
    features = encoder(images, visible)
    (features * loss_weights(features)).sum().backward()
    result = {name: p.grad.clone() for name, p in used_parameters(encoder.dense).items()}
    return features.detach(), {**result, "images": images.grad}


@pytest.mark.parametrize("name", NAMES)
def test_fully_visible_equals_the_dense_model_for_every_structure(name: str) -> None:
    dense = narrow(name)
    images, visible = draw(2, 1, 2, 2)
    expected = dense.forward_features(images)
    for backend in BACKENDS:
        features = SparseConvNeXt(dense, backend=backend)(images, visible)
        assert_relative(as_map(features, (1, 2)), expected, 1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_narrow_copies_have_the_depths_of_the_variant(name: str) -> None:
    with torch.device("meta"):
        full = timm.create_model(name, num_classes=0)
    assert SparseConvNeXt(narrow(name)).architecture.depths == tuple(
        len(stage.blocks) for stage in full.stages
    )


@pytest.mark.parametrize("grn_scope", ["image", "batch"])
@pytest.mark.parametrize("name", ["convnextv2_atto", "convnext_atto"])
def test_backends_agree_on_the_whole_atto_in_float32(name: str, grn_scope: str) -> None:
    dense = randomize(timm.create_model(name, num_classes=0), seed=3)
    images, visible = draw(2, 3, 2, 2)
    with torch.no_grad():
        native, reference = (
            SparseConvNeXt(dense, backend=backend, grn_scope=grn_scope)(images.float(), visible)
            for backend in BACKENDS
        )
    assert_relative(native, reference, 1e-5)


@pytest.mark.parametrize("visible", [1, 4, 19])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_backends_agree_with_gradients_on_larger_grids(batch: int, visible: int) -> None:
    dense = small_convnext()
    images, indices = draw(batch, 4, 5, visible)
    native, reference = (
        gradients(SparseConvNeXt(dense, backend=backend), images, indices) for backend in BACKENDS
    )
    assert_relative(native[0], reference[0], 1e-10)
    for name, gradient in native[1].items():
        torch.testing.assert_close(gradient, reference[1][name], rtol=1e-10, atol=1e-9, msg=name)


def test_the_parameters_are_those_of_the_dense_model() -> None:
    dense = small_convnext()
    encoder = SparseConvNeXt(dense)
    assert {id(p) for p in encoder.parameters()} == {id(p) for p in dense.parameters()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_drop_path_decides_once_per_image(backend: str) -> None:
    dense = small_convnext(version=1, depths=(1, 1, 1, 1), drop_path_rate=0.5)
    for stage in dense.stages[:3]:
        stage.blocks[0].drop_path = nn.Identity()
    encoder = SparseConvNeXt(dense, backend=backend).train()
    images, visible = draw(6, 2, 2, 3)
    kept, dropped = copy.deepcopy(encoder).eval(), copy.deepcopy(encoder).eval()
    kept.dense.stages[3].blocks[0].gamma.data.mul_(2)  # 1 / (1 - 0.5)
    dropped.dense.stages[3].blocks[0].gamma.data.zero_()
    with torch.random.fork_rng():
        torch.manual_seed(4)
        features = encoder(images, visible)
    alternatives = kept(images, visible), dropped(images, visible)
    is_kept = [torch.allclose(features[n], alternatives[0][n], atol=1e-12) for n in range(6)]
    is_dropped = [torch.allclose(features[n], alternatives[1][n], atol=1e-12) for n in range(6)]
    assert [k != d for k, d in zip(is_kept, is_dropped, strict=True)] == [True] * 6
    assert 0 < sum(is_kept) < 6


def test_drop_path_with_one_seed_gives_one_result_in_both_backends() -> None:
    dense = small_convnext(drop_path_rate=0.6)
    images, visible = draw(5, 2, 2, 3)
    results = []
    for backend in [*BACKENDS, "native"]:
        encoder = SparseConvNeXt(dense, backend=backend).train()
        with torch.random.fork_rng():
            torch.manual_seed(9)
            results.append(encoder(images, visible))
    assert_relative(results[1], results[0], 1e-10)
    assert_same_bits(results[2], results[0])
    assert not torch.allclose(results[0], encoder.eval()(images, visible))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_activation_checkpointing_changes_no_gradient(backend: str, drop_path_rate: float) -> None:
    encoder = SparseConvNeXt(small_convnext(drop_path_rate=drop_path_rate), backend=backend)
    images, visible = draw(2, 2, 3, 3)
    results = []
    for enable in (False, True):
        encoder.dense.set_grad_checkpointing(enable)
        with torch.random.fork_rng():
            torch.manual_seed(2)
            results.append(gradients(encoder.train(), images, visible))
    assert_same_bits(results[1][0], results[0][0])
    for name, gradient in results[0][1].items():
        assert_same_bits(results[1][1][name], gradient)


def test_activation_checkpointing_keeps_fewer_activations() -> None:
    encoder = SparseConvNeXt(small_convnext(depths=(2, 2, 2, 2)))
    images, visible = draw(2, 2, 3, 3)
    weights = {parameter.data_ptr() for parameter in encoder.parameters()}
    saved = []
    for enable in (False, True):
        encoder.dense.set_grad_checkpointing(enable)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: sizes.append(x.numel() * (x.data_ptr() not in weights)) or x,
            lambda x: x,
        ):
            encoder(images, visible)
        saved.append(sum(sizes))
    assert saved[1] < saved[0] / 2


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_autocast_stays_close_to_float32(backend: str, version: int) -> None:
    encoder = SparseConvNeXt(small_convnext(version=version).float(), backend=backend)
    images, visible = draw(2, 2, 3, 3)
    images = images.float()
    expected = encoder(images, visible)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = encoder(images, visible)
    features.float().square().sum().backward()
    difference = (features.float() - expected).norm() / expected.norm()
    assert difference < 2e-2  # bfloat16 has 8 bits
    assert difference > 1e-4, "autocast had no effect"
    assert all(p.grad.isfinite().all() for p in used_parameters(encoder.dense).values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_deep_copy_computes_with_its_own_parameters(backend: str) -> None:
    encoder = SparseConvNeXt(small_convnext(), backend=backend)
    images, visible = draw(1, 2, 2, 2)
    twin = copy.deepcopy(encoder)
    features = encoder(images, visible)
    for parameter in encoder.parameters():
        parameter.data.zero_()
    assert_same_bits(twin(images, visible), features)


def test_compile_captures_the_native_encoder_as_one_graph() -> None:
    encoder = SparseConvNeXt(small_convnext(depths=(1, 1, 1, 1)))
    images, visible = draw(2, 2, 3, 3)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # other tests compile, too
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # inside torch's own tracing
        compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
        features = compiled(images, visible)
        assert_relative(features, encoder(images, visible), 1e-10)
        other = visible.flip(0)  # other positions, the same graph
        assert_relative(compiled(images, other), encoder(images, other), 1e-10)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


def test_an_image_or_grid_that_does_not_fit_is_refused() -> None:
    encoder = SparseConvNeXt(small_convnext(in_chans=1))
    visible = torch.tensor([[0, 1]])
    with pytest.raises(ValueError, match=r"got shape \[1, 3, 32, 64\], expected \[N, 1, H, W\]"):
        encoder(torch.zeros(1, 3, 32, 64), visible)
    with pytest.raises(ValueError, match="48 x 64 px is not tiled by patches of 32 px"):
        encoder(torch.zeros(1, 1, 48, 64), visible)
    with pytest.raises(ValueError, match="0 x 64 px is not tiled"):
        encoder(torch.zeros(1, 1, 0, 64), visible)
    with pytest.raises(ValueError, match="got 1 rows for 2 images"):
        encoder(torch.zeros(2, 1, 32, 64), visible)


@pytest.mark.parametrize("patch_size", [0, -32, 16, 48])
def test_a_patch_that_cells_do_not_tile_is_refused(patch_size: int) -> None:
    message = rf"patch_size: {patch_size} px .* total stride \(32 px\)\. Use 32, 64"
    with pytest.raises(ValueError, match=message):
        SparseConvNeXt(small_convnext(), patch_size=patch_size)


def test_an_unknown_backend_or_scope_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="backend: got 'dense', expected one of native, masked_de"):
        SparseConvNeXt(small_convnext(), backend="dense")
    with pytest.raises(ValueError, match="grn_scope: got 'group', expected one of image, batch"):
        SparseConvNeXt(small_convnext(), grn_scope="group")


def test_the_printed_encoder_says_how_it_computes() -> None:
    encoder = SparseConvNeXt(small_convnext(), grn_scope="batch", patch_size=64)
    assert "backend=native, grn_scope=batch, patch_size=64" in repr(encoder)
