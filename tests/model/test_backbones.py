"""Creating the dense timm model by name."""

from __future__ import annotations

import pytest
import torch
from timm.layers import DropPath

from fcmae.errors import ConfigError
from fcmae.model.backbones import VARIANTS, backbone_names, check_backbone_name, create_backbone


def test_all_eight_sizes_of_the_paper_are_known() -> None:
    assert {f"convnextv2_{variant}" for variant in VARIANTS} <= set(backbone_names())
    assert len(VARIANTS) == 8
    assert "convnext_xxlarge" in backbone_names()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("convnextv2_ato", "Did you mean convnextv2_atto"),
        ("convnext_v2_tiny", "convnextv2_tiny"),
        ("ConvNeXtV2_pico", "convnextv2_pico"),
        ("resnet50", r"'resnet50' is not a ConvNeXt of timm; expected convnextv2_\{atto,femto,"),
        ("", "Try convnextv2_atto"),
    ],
)
def test_an_unknown_name_is_refused_with_near_names(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.name: .*{hint}"):
        check_backbone_name(name)
    with pytest.raises(ConfigError, match=hint):
        create_backbone(name, in_chans=3)


def test_settings_reach_the_model() -> None:
    dense = create_backbone("convnextv2_atto", in_chans=2, stem_stride=2, drop_path=0.3)
    assert dense.stem[0].weight.shape == (40, 2, 2, 2)
    assert dense.num_classes == 0
    rates = [m.drop_prob for m in dense.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.3 * i / 11 for i in range(1, 12)])
    assert create_backbone("convnextv2_atto", in_chans=3, num_classes=5).head.fc.out_features == 5


@pytest.mark.parametrize(("stem_stride", "total"), [(1, 8), (2, 32), (4, 32)])
def test_total_stride_is_what_the_message_says(stem_stride: int, total: int) -> None:
    dense = create_backbone("convnextv2_atto", in_chans=1, stem_stride=stem_stride)
    assert dense.feature_info[-1]["reduction"] == total
    with torch.no_grad():
        assert dense.forward_features(torch.zeros(1, 1, 64, 32)).shape[2:] == (
            64 // total,
            32 // total,
        )


@pytest.mark.parametrize("stem_stride", [0, 3, 8, -4])
def test_an_impossible_stem_is_refused(stem_stride: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"model.stem_stride: got {stem_stride} px, expected 1, 2"
    ):
        create_backbone("convnextv2_atto", in_chans=3, stem_stride=stem_stride)


@pytest.mark.parametrize("in_chans", [0, -3])
def test_fewer_than_one_channel_is_refused(in_chans: int) -> None:
    with pytest.raises(ConfigError, match=rf"data.in_chans: got {in_chans}, expected 1 or more"):
        create_backbone("convnextv2_atto", in_chans=in_chans)


def test_weights_come_from_torchs_generator_alone() -> None:
    weights = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            weights.append(create_backbone("convnextv2_atto", in_chans=3).stem[0].weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
