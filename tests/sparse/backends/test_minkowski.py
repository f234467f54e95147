"""The minkowski backend keeps the contract, and its module is the authors' sparse encoder."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import minkowski_engine
import pytest
import torch
from backend_contract import BackendContract, Case, Encoder, randomize, small_convnext
from comparison import assert_relative, assert_same_bits
from timm.models.convnext import ConvNeXt, convnextv2_atto
from torch import Tensor, nn

from sparse import SparseConvNeXt
from sparse.backends.minkowski import MinkowskiConvNeXt, encode, without_storage
from sparse.sites import VisiblePatches

pytestmark = pytest.mark.minkowski


@pytest.fixture(autouse=True)
def _need_minkowski_engine() -> None:
    minkowski_engine.need()


class TestMinkowski(BackendContract):
    def build(self, dense: ConvNeXt, *, patch_size: int, grn_scope: str) -> Encoder:
        return SparseConvNeXt(
            dense, backend="minkowski", grn_scope=grn_scope, patch_size=patch_size
        )


def patches_and_images(dtype: torch.dtype = torch.float64) -> tuple[VisiblePatches, Tensor]:
    """Two images of 2 x 3 patches, two of them visible, in no order."""
    images, _ = Case("module").inputs()
    return VisiblePatches.from_indices(torch.tensor([[4, 1], [0, 2]]), 2, 3), images.to(dtype)


def run(module: MinkowskiConvNeXt) -> Tensor:
    patches, images = patches_and_images(module.downsample_layers[0][0].weight.dtype)
    return module(images, patches, False)


def test_names_and_shapes_are_those_of_the_authors_sparse_encoder() -> None:
    shapes = {
        name: tuple(weight.shape)
        for name, weight in MinkowskiConvNeXt(convnextv2_atto(num_classes=0)).state_dict().items()
    }
    assert len(shapes) == 136
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 3_386_760
    expected = {
        "downsample_layers.0.0.weight": (40, 3, 4, 4),
        "downsample_layers.0.0.bias": (40,),
        "downsample_layers.0.1.weight": (40,),
        "downsample_layers.2.0.ln.bias": (80,),
        "downsample_layers.2.1.kernel": (4, 80, 160),
        "downsample_layers.2.1.bias": (1, 160),
        "stages.3.1.dwconv.kernel": (49, 320),
        "stages.3.1.dwconv.bias": (1, 320),
        "stages.3.1.norm.ln.weight": (320,),
        "stages.3.1.pwconv1.linear.weight": (1280, 320),
        "stages.3.1.pwconv2.linear.bias": (320,),
        "stages.3.1.grn.gamma": (1, 1280),
        "stages.3.1.grn.beta": (1, 1280),
    }
    assert {name: shapes[name] for name in expected} == expected


def test_layer_scale_of_v1_keeps_its_name_and_shape() -> None:
    state = MinkowskiConvNeXt(small_convnext(version=1)).state_dict()
    assert state["stages.2.1.gamma"].shape == (6,)


def test_kernels_are_numbered_with_the_row_fastest() -> None:
    dense = small_convnext()
    state = MinkowskiConvNeXt(dense).state_dict()
    depthwise = dense.stages[1].blocks[0].conv_dw.weight
    full = dense.stages[2].downsample[1].weight
    for row, column in ((0, 1), (6, 2), (3, 5)):
        kernel = state["stages.1.0.dwconv.kernel"][row + 7 * column]
        assert_same_bits(kernel, depthwise[:, 0, row, column])
    assert_same_bits(state["downsample_layers.2.1.kernel"][2], full[:, :, 0, 1].T)


@pytest.mark.parametrize("version", [1, 2])
def test_weights_go_to_the_authors_layout_and_back_bit_for_bit(version: int) -> None:
    dense, other = small_convnext(version=version), small_convnext(version=version, seed=6)
    MinkowskiConvNeXt(dense).write_to_dense(other)
    for (name, weight), back in zip(dense.named_parameters(), other.parameters(), strict=True):
        assert name.startswith("head.") or weight.equal(back), name


def test_module_owns_its_weights_and_gets_their_gradients() -> None:
    dense = small_convnext()
    module = MinkowskiConvNeXt(dense)
    run(module).square().sum().backward()
    assert dense.stem[0].weight.grad is None
    _, images = patches_and_images()
    encoder = SparseConvNeXt(dense, backend="native")
    encoder(images, torch.tensor([[4, 1], [0, 2]])).square().sum().backward()
    gradients = {name: weight.grad for name, weight in module.named_parameters()}
    with torch.no_grad():  # from here on the parameters hold gradients
        for weight in [*module.parameters(), *dense.parameters()]:
            weight.copy_(torch.zeros(()) if weight.grad is None else weight.grad)
    for name, gradient in module.weights_of(dense).items():
        assert gradients[name].abs().max() > 0
        assert_relative(gradients[name], gradient, 1e-9)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("grn_scope", ["image", "batch"])
def test_float32_gradients_are_within_1e_5_of_native_in_float64(
    version: int, grn_scope: str
) -> None:
    images, visible = Case("float32", batch=4).inputs()
    gradients = []
    for backend, dtype in (("native", torch.float64), ("minkowski", torch.float32)):
        dense = small_convnext(version=version).to(dtype)
        dense.head.requires_grad_(False)
        encoder = SparseConvNeXt(dense, backend=backend, grn_scope=grn_scope)
        batch = images.to(dtype, copy=True).requires_grad_()
        encoder(batch, visible).square().mean().backward()
        own = {name: p.grad for name, p in dense.named_parameters() if p.requires_grad}
        gradients.append({"images": batch.grad} | own)
    for name, expected in gradients[0].items():
        assert_relative(gradients[1][name], expected, 1e-5)


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "torch.save"])
def test_copies_of_the_module_compute_the_same_and_share_nothing(copied: str) -> None:
    module = MinkowskiConvNeXt(small_convnext()).eval()
    expected = run(module).detach()
    if copied == "deepcopy":
        twin = copy.deepcopy(module)
    elif copied == "pickle":
        twin = pickle.loads(pickle.dumps(module))
    else:
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert not twin.training
    assert all(weight.requires_grad for weight in twin.parameters())
    randomize(module, seed=9)
    assert_same_bits(run(twin), expected)


def test_a_copy_of_the_encoder_computes_the_same() -> None:
    encoder = SparseConvNeXt(small_convnext(), backend="minkowski")
    images, visible = Case("copy").inputs()
    expected = encoder(images, visible)
    assert_same_bits(copy.deepcopy(encoder)(images, visible), expected)
    assert_same_bits(pickle.loads(pickle.dumps(encoder))(images, visible), expected)


def test_building_draws_nothing_from_the_global_generator() -> None:
    dense = small_convnext()
    state = torch.get_rng_state()
    SparseConvNeXt(dense, backend="minkowski")
    assert torch.get_rng_state().equal(state)


def test_the_encoder_has_the_parameters_of_the_dense_model_and_no_others() -> None:
    dense = small_convnext()
    encoder = SparseConvNeXt(dense, backend="minkowski")
    assert [id(p) for p in encoder.parameters()] == [id(p) for p in dense.parameters()]


@pytest.mark.parametrize("is_training", [True, False])
def test_drop_path_decides_for_whole_images_as_native_does(is_training: bool) -> None:
    dense = small_convnext(drop_path_rate=0.5).train(not is_training)
    images, visible = Case("drop path", batch=5).inputs()
    encoders = [SparseConvNeXt(dense, backend=name) for name in ("native", "minkowski")]
    dense.train(is_training)
    results = []
    for encoder in encoders:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            results.append(encoder(images, visible))
    assert_relative(results[1], results[0], 1e-10)


def test_autocast_around_it_changes_nothing() -> None:
    encoder = SparseConvNeXt(small_convnext().float(), backend="minkowski")
    images, visible = Case("autocast").inputs()
    expected = encoder(images.float(), visible)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = encoder(images.bfloat16().float(), visible)
        again = encoder(images.float(), visible)
    assert features.dtype == torch.float32
    assert_same_bits(again, expected)


def test_half_precision_weights_are_refused() -> None:
    encoder = SparseConvNeXt(small_convnext().bfloat16(), backend="minkowski")
    images, visible = Case("half").inputs()
    with pytest.raises(ValueError, match=r"torch\.bfloat16, expected torch\.float32 or"):
        encoder(images.bfloat16(), visible)


@pytest.mark.parametrize("is_standalone", [True, False])
def test_recomputing_activations_changes_no_gradient(is_standalone: bool) -> None:
    images, visible = Case("checkpointing").inputs()
    patches = VisiblePatches.from_indices(visible, 2, 3)
    gradients = []
    for is_checkpointing in (False, True):
        dense = small_convnext(drop_path_rate=0.5)
        dense.set_grad_checkpointing(is_checkpointing)
        module = MinkowskiConvNeXt(dense if is_standalone else without_storage(dense))
        runs: list[str] = []
        module.stages[0][0].register_forward_pre_hook(lambda *_, runs=runs: runs.append("block"))
        with torch.random.fork_rng():
            torch.manual_seed(2)
            if is_standalone:
                features = module(images, patches, False, is_checkpointing)
            else:
                features = encode(module, dense, images, patches, grn_over_batch=False)
            features.square().sum().backward()
        assert len(runs) == 1 + is_checkpointing
        owner = module if is_standalone else dense
        gradients.append({n: p.grad for n, p in owner.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert_same_bits(gradients[1][name], gradient)


def test_a_site_whose_features_are_all_zero_stays_active() -> None:
    dense = small_convnext()
    with torch.no_grad():
        dense.stem[1].weight.zero_()
        dense.stem[1].bias.zero_()
    images, visible = Case("zero").inputs()
    expected = SparseConvNeXt(dense, backend="masked_dense")(images, visible)
    assert_relative(SparseConvNeXt(dense, backend="minkowski")(images, visible), expected, 1e-10)


def _train_one_step(rank: int, folder: str, is_distributed: bool) -> dict[str, Tensor]:
    """Return the gradients of one process's half of a batch, or of all of it."""
    torch.set_num_threads(1)
    dense = small_convnext()
    dense.head.requires_grad_(False)
    encoder: nn.Module = SparseConvNeXt(dense, backend="minkowski")
    images, visible = Case("ddp").inputs()
    if is_distributed:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
        )
        encoder = nn.parallel.DistributedDataParallel(encoder)
        images, visible = images[rank : rank + 1], visible[rank : rank + 1]
    encoder(images, visible).square().mean().backward()
    gradients = {n: p.grad for n, p in dense.named_parameters() if p.grad is not None}
    if is_distributed:
        torch.save(gradients, f"{folder}/{rank}.pt")
        torch.distributed.destroy_process_group()
    return gradients


@pytest.mark.ddp
def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    start: Callable[..., object] = torch.multiprocessing.spawn
    start(_train_one_step, args=(str(tmp_path), True), nprocs=2)
    expected = _train_one_step(0, "", False)
    for rank in range(2):
        gradients = torch.load(tmp_path / f"{rank}.pt")
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            assert_relative(gradient, expected[name], 1e-9)
