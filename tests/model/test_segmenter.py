"""Networks of segmentation: shapes, the encoder's names, and norms that ask no other image."""

from __future__ import annotations

import sys
from typing import Any, get_args

import pytest
import real_runs  # noqa: F401  (registers convnextv2_speck)
import torch

from fcmae.errors import ConfigError
from fcmae.model.backbones import create_backbone
from fcmae.model.segmenter import Architecture, build_segmenter, encoder_state, timm_name

ARCHITECTURES = get_args(Architecture)


def build(architecture: Any = "upernet", **changes: Any) -> torch.nn.Module:
    """Return a tiny network with weights that are always the same."""
    torch.manual_seed(0)
    how: dict[str, Any] = {"in_chans": 4, "num_classes": 3, "decoder_channels": 32, **changes}
    return build_segmenter(architecture, how.pop("name", "convnextv2_speck"), **how)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_pixel_gets_logits_and_every_weight_a_gradient(architecture: str) -> None:
    network = build(architecture).train()
    logits = network(torch.randn(1, 4, 64, 96))
    assert logits.shape == (1, 3, 64, 96)
    logits.square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pretrained_encoder_takes_exactly_the_encoder_s_place(architecture: str) -> None:
    network = build(architecture)
    backbone = create_backbone("convnextv2_speck", in_chans=4, num_classes=7)
    state = encoder_state(backbone.state_dict())
    own = network.state_dict()
    assert set(state) == {name for name in own if name.startswith("encoder.")}
    network.load_state_dict({**own, **state})
    images = torch.randn(2, 4, 64, 64)
    features: Any = network.eval().encoder
    whole = backbone.eval().forward_intermediates(images, intermediates_only=True)
    for got, expected in zip(features(images)[-2:], whole[-2:], strict=True):
        if got.shape == expected.shape:  # deeplabv3plus dilates the last stage
            torch.testing.assert_close(got, expected)


def test_parameters_of_the_encoder_have_timm_s_names() -> None:
    backbone = create_backbone("convnextv2_speck", in_chans=4)
    names = {timm_name(name) for name in build().state_dict()}
    assert None in names
    inside = {name for name in backbone.state_dict() if not name.startswith("head.")}
    assert names - {None} == inside


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_one_image_gets_does_not_depend_on_the_others(architecture: str) -> None:
    network = build(architecture).train()
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
            module.p = 0.0
    images = torch.randn(3, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    together, alone = network(images)[:1], network(images[:1])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_batch_norm_is_smp_s_own() -> None:
    kinds = {type(module).__name__ for module in build(norm="batch").modules()}
    assert "BatchNorm2d" in kinds
    assert "BatchNorm2d" not in {type(module).__name__ for module in build().modules()}


def test_a_convnext_of_the_first_version_is_an_encoder_too() -> None:
    network = build("upernet", name="convnext_atto", decoder_channels=16)
    assert network.eval()(torch.zeros(1, 4, 32, 32)).shape == (1, 3, 32, 32)


def test_a_missing_smp_is_told_by_the_name_of_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(
        ConfigError, match=r"install the extra: pip install 'fcmae\[segmentation\]'"
    ):
        build()
