"""Which timm models can run at visible sites only, and what is said of the others."""

from __future__ import annotations

import pytest
import timm
import torch
from backend_contract import small_convnext
from torch import nn

from fcmae.model.backbones import backbone_names
from sparse import UnsupportedModelError, read_architecture


def test_the_description_of_atto_is_that_of_the_paper() -> None:
    with torch.device("meta"):
        architecture = read_architecture(timm.create_model("convnextv2_atto", in_chans=5))
    assert architecture.in_chans == 5
    assert architecture.strides == (4, 8, 16, 32)
    assert architecture.dims == (40, 80, 160, 320)
    assert architecture.depths == (2, 2, 6, 2)
    assert architecture.kernel_sizes == (7, 7, 7, 7)
    assert architecture.total_stride == 32


@pytest.mark.parametrize(
    ("stem", "strides"), [(1, (1, 2, 4, 8)), (2, (4, 8, 16, 32)), (4, (4, 8, 16, 32))]
)
def test_strides_follow_the_stem(stem: int, strides: tuple[int, ...]) -> None:
    assert read_architecture(small_convnext(patch_size=stem)).strides == strides


def test_kernel_sizes_of_each_stage_are_read() -> None:
    dense = small_convnext(kernel_sizes=(3, 5, 7, 9))
    assert read_architecture(dense).kernel_sizes == (3, 5, 7, 9)


@pytest.mark.parametrize("name", backbone_names())
def test_every_timm_convnext_is_supported_or_refused_for_a_stated_reason(name: str) -> None:
    with torch.device("meta"):
        dense = timm.create_model(name, num_classes=0)
    if "_ols" in name:
        reason = "stem: its convolution overlaps"
    elif "_rms" in name:
        reason = "it is a (Rms|Simple)Norm2d; expected a LayerNorm layer"
    else:
        assert read_architecture(dense).total_stride == 32
        return
    with pytest.raises(UnsupportedModelError, match=reason):
        read_architecture(dense)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stem_type": "overlap"}, "stem: its convolution overlaps"),
        ({"stem_type": "overlap_tiered"}, "stem: its convolution overlaps"),
        ({"stem_type": "overlap_act"}, "stem: its convolution overlaps"),
        ({"output_stride": 8}, "stages.2.downsample: it is dilated or overlaps"),
        ({"output_stride": 16}, "stages.3.downsample: it is dilated or overlaps"),
        ({"norm_layer": "rmsnorm"}, "stem.1: it is a RmsNorm2d; expected a LayerNorm layer"),
        ({"norm_layer": "simplenorm"}, "stem.1: it is a SimpleNorm2d"),
        ({"norm_layer": "batchnorm2d", "conv_mlp": True}, "stem.1: it is a BatchNorm2d"),
        ({"kernel_sizes": (7, 7, 4, 7)}, r"stages.2.blocks.0.conv_dw: its kernel is \(4, 4\)"),
    ],
)
def test_a_layer_that_looks_across_patches_is_refused_by_name(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read_architecture(small_convnext(**settings))


def surgery(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Replace one module of a model."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
    return model


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        ("stem.0", nn.Conv2d(3, 3, (4, 2), (4, 2)), "stem: its convolution overlaps"),
        ("stem.0", nn.Conv2d(3, 3, 4, 4, padding=1), "stem: its convolution overlaps"),
        ("stem.0", nn.Conv2d(3, 3, 4, 4, groups=3), "stem: its convolution overlaps"),
        ("stages.1.downsample.1", nn.Conv2d(3, 5, 3, 2, 1), "stages.1.downsample: it is dilated"),
        ("stages.2.blocks.1.conv_dw", nn.Conv2d(6, 6, 7, padding=6, dilation=2), "it is dilated"),
        ("stages.2.blocks.1.conv_dw", nn.Conv2d(6, 6, 7), r"1.conv_dw: its kernel is \(7, 7\)"),
        ("stages.2.blocks.1.conv_dw", nn.Conv2d(6, 6, (7, 5), padding=(3, 2)), "centred odd"),
        ("stages.3.blocks.0.norm", nn.GroupNorm(1, 7), "0.norm: it is a GroupNorm"),
        ("stages.3.blocks.0.shortcut", nn.Conv2d(7, 7, 1), "0.shortcut: it is not the identity"),
        ("norm_pre", nn.BatchNorm2d(7), "norm_pre: it is a BatchNorm2d"),
    ],
)
def test_a_changed_layer_is_refused_by_name(name: str, module: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read_architecture(surgery(small_convnext(), name, module))


def test_another_kind_of_model_is_refused_with_what_to_create_instead() -> None:
    with pytest.raises(UnsupportedModelError, match=r"is a Linear, expected a timm ConvNeXt; crea"):
        read_architecture(nn.Linear(2, 3))
