"""Whole images by the native backend: timm's values to rounding, timm's model untouched."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator

import pytest
import timm
import torch
from backend_contract import small_convnext
from comparison import assert_relative, assert_same_bits
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from sparse import whole
from sparse.backends import native
from sparse.ops.compiler import forget_kernels, missing_kernels
from sparse.whole import native_blocks

SIZES = [(1, 64, 64), (2, 67, 93), (3, 128, 224), (2, 33, 40)]
MODELS = {
    "V2": {},
    "V2, 1x1 convolutions": {"conv_mlp": True},
    "V2, classifier": {"num_classes": 4},
    "V1, classifier": {"version": 1, "num_classes": 4},
    "V1, 1x1 convolutions": {"version": 1, "conv_mlp": True},
    "V1, norm before the head": {"version": 1, "head_norm_first": True},
    "stem stride 2": {"patch_size": 2},
    "stem stride 1": {"patch_size": 1},
    "overlapping stem": {"stem_type": "overlap", "dims": (8, 5, 6, 7)},
    "grey": {"in_chans": 1},
    "seven channels": {"in_chans": 7},
    "wide": {"dims": (40, 64, 96, 130)},
    "3x3 kernels": {"kernel_sizes": 3},
    "no convolution bias": {"conv_bias": False},
}
needs_kernels = pytest.mark.skipif(missing_kernels() is not None, reason="no C compiler")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The blocks that the native backend computed."""
    found: list[object] = []

    def noting(block: nn.Module, *arguments: object) -> Tensor:
        found.append(block)
        result: Tensor = native.run_block(block, *arguments)  # type: ignore[arg-type]
        return result

    monkeypatch.setattr(whole, "run_block", noting)
    monkeypatch.setattr(whole, "is_for_onednn", lambda maps: True)  # as on AMD, for V1
    return found


def model_of(**settings: object) -> ConvNeXt:
    return small_convnext(**settings).float().eval()


def pictures(model: ConvNeXt, count: int, height: int, width: int) -> Tensor:
    rng = torch.Generator().manual_seed(3)
    convolution = next(part for part in model.modules() if isinstance(part, nn.Conv2d))
    return torch.randn(count, convolution.in_channels, height, width, generator=rng)


@needs_kernels
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_features_and_classes_of_whole_images_are_timms(
    name: str, size: tuple[int, int, int], computed: list[object]
) -> None:
    model = model_of(**MODELS[name])
    images = pictures(model, *size)
    with torch.no_grad():
        features, outputs = model.forward_features(images), model(images)
        assert computed == []
        with native_blocks(model):
            ours = model.forward_features(images)
            assert len(computed) == 5  # every block
            assert_relative(ours, features, 2e-5)  # sums of float32 in another order
            assert_relative(model(images), outputs, 2e-5)


@needs_kernels
@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_training_are_timms_with_the_same_paths_dropped(
    name: str, computed: list[object]
) -> None:
    model = model_of(**MODELS[name], drop_path_rate=0.5).train()
    images = pictures(model, 4, 64, 96).requires_grad_()
    wanted = [images, *(one for one in model.parameters() if one.requires_grad)]

    def gradients() -> list[Tensor]:
        torch.manual_seed(5)  # of the paths that are dropped
        outputs = model(images)
        return [outputs.detach(), *torch.autograd.grad(outputs.square().sum(), wanted)]

    expected = gradients()
    with native_blocks(model):
        found = gradients()
    assert len(computed) == 5
    for mine, timms in zip(found, expected, strict=True):
        assert_relative(mine, timms, 1e-3)  # some are float32 sums that nearly cancel


@needs_kernels
@pytest.mark.parametrize("name", ["convnextv2_atto", "convnextv2_pico"])
def test_feature_maps_of_a_model_for_other_tasks_are_timms(
    name: str, computed: list[object]
) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, features_only=True).eval()
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad(), native_blocks(model):
        ours = model(images)
    assert computed
    with torch.no_grad():
        for mine, expected in zip(ours, model(images), strict=True):
            assert_relative(mine, expected, 1e-5)


def saved(model: nn.Module) -> bytes:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.getvalue()


def test_a_model_is_as_it_was_also_while_it_computes_and_after_an_error() -> None:
    model = model_of()
    before, modules = saved(model), [dict(vars(part)) for part in model.modules()]

    def fail() -> None:
        with torch.no_grad(), native_blocks(model, model), native_blocks(model):
            model(pictures(model, 1, 64, 64))
            assert saved(model) == before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert saved(model) == before
    assert [dict(vars(part)) for part in model.modules()] == modules


def half(model: ConvNeXt, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.bfloat16()(images.bfloat16())


def under_autocast(model: ConvNeXt, images: Tensor) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        return model(images)


def listened_to(model: ConvNeXt, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handles = [
        part.mlp.act.register_forward_hook(lambda *what: seen.append(what[-1]))
        for stage in model.stages
        for part in stage.blocks
    ]
    with torch.no_grad():
        found: Tensor = model(images)
    for handle in handles:
        handle.remove()
    assert len(seen) == 5
    return found


def listened_to_backwards(model: ConvNeXt, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handles = [
        part.mlp.register_full_backward_hook(lambda *what: seen.append(what[-1][0]))
        for stage in model.stages
        for part in stage.blocks
    ]
    (found,) = torch.autograd.grad(model(images.requires_grad_()).sum(), [images])
    for handle in handles:
        handle.remove()
    assert len(seen) == 5
    return found


ELSEWHERE: dict[str, Callable[[ConvNeXt, Tensor], Tensor]] = {
    "float64": lambda model, images: model.double()(images.double()).detach(),
    "bfloat16": half,
    "autocast": under_autocast,
    "listened to": listened_to,
    "listened to backwards": listened_to_backwards,
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_elsewhere_timms_own_forward_runs(name: str, computed: list[object]) -> None:
    images = pictures(model_of(), 2, 64, 96)
    expected = ELSEWHERE[name](model_of(), images)
    model = model_of()
    with native_blocks(model):
        found = ELSEWHERE[name](model, images)
    assert computed == []
    assert_same_bits(found, expected)


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(os.environ, "FCMAE_COMPILED", "0")
    forget_kernels()
    yield
    monkeypatch.undo()
    forget_kernels()


@pytest.mark.usefixtures("without_kernels")
def test_without_compiled_kernels_timms_own_forward_runs(computed: list[object]) -> None:
    model = model_of()
    with torch.no_grad(), native_blocks(model):
        model(pictures(model, 1, 64, 64))
    assert computed == []


def test_blocks_that_the_backend_does_not_know_are_timms(computed: list[object]) -> None:
    torch.manual_seed(0)
    dilated = ConvNeXt(dims=(8, 8, 8, 8), depths=(1, 1, 1, 1), use_grn=True, output_stride=16)
    other_norm = ConvNeXt(
        dims=(8, 8, 8, 8), depths=(1, 1, 1, 1), use_grn=True, norm_layer="rmsnorm2d"
    )
    for model, known in ((dilated.eval(), 3), (other_norm.eval(), 0)):
        images = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            expected = model(images)
            with native_blocks(model):
                assert_relative(model(images), expected, 1e-5)
        assert len(computed) <= known
        computed.clear()
