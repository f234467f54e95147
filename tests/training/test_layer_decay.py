"""The learning rate of every parameter, in the two forms of the paper."""

from __future__ import annotations

import functools
import math
import re
from typing import Any

import pytest
import timm
import torch
from timm.models.convnext import ConvNeXt

from fcmae.errors import ConfigError
from fcmae.training.optimization import lr_scale, parameter_groups

DEPTHS = {"atto": (2, 2, 6, 2), "tiny": (3, 3, 9, 3), "base": (3, 3, 27, 3)}


def model_of(variant: str) -> ConvNeXt:
    with torch.device("meta"):
        return timm.create_model(f"convnextv2_{variant}", num_classes=5)


def layer_groups(model: ConvNeXt, weight_decay: float, decay: float) -> list[dict[str, Any]]:
    scale = functools.partial(lr_scale, depths=DEPTHS["atto"], decay=decay, assigner="single")
    return parameter_groups(model.named_parameters(), weight_decay, scale)


def single_layer(name: str, depths: tuple[int, ...]) -> int:
    """The layer by walking through the network block by block."""
    if name.startswith("head."):
        return sum(depths) + 1
    layer = 0
    for stage, depth in enumerate(depths):
        for block in range(depth):
            layer += 1
            is_first = block == 0
            if name.startswith(f"stages.{stage}.blocks.{block}."):
                return layer
            if is_first and name.startswith(f"stages.{stage}.downsample."):
                return layer
            if is_first and stage == 0 and name.startswith("stem."):
                return layer
    raise AssertionError(name)


# Prefix of the name -> layer of the `group` form, for 3, 3, 27, 3 blocks, from the paper's table.
GROUP_TABLE = {
    r"stem\.": 0,
    r"stages\.0\.": 1,
    r"stages\.1\.": 2,
    r"stages\.2\.downsample\.": 3,
    **{
        rf"stages\.2\.blocks\.({3 * triple}|{3 * triple + 1}|{3 * triple + 2})\.": 3 + triple
        for triple in range(9)
    },
    r"stages\.3\.": 12,
    r"head\.": 13,
}


@pytest.mark.parametrize("variant", ["atto", "tiny", "base"])
def test_single_form_of_every_parameter(variant: str) -> None:
    depths = DEPTHS[variant]
    names = [name for name, _ in model_of(variant).named_parameters()]
    assert len(names) > 100
    for name in names:
        expected = 0.9 ** (sum(depths) + 1 - single_layer(name, depths))
        found = lr_scale(name, depths=depths, decay=0.9, assigner="single")
        assert found == pytest.approx(expected, rel=1e-12), name


def test_group_form_of_every_parameter() -> None:
    names = [name for name, _ in model_of("base").named_parameters()]
    seen = set()
    for name in names:
        layers = [layer for prefix, layer in GROUP_TABLE.items() if re.match(prefix, name)]
        assert len(layers) == 1, name
        found = lr_scale(name, depths=DEPTHS["base"], decay=0.6, assigner="group")
        assert found == pytest.approx(0.6 ** (13 - layers[0]), rel=1e-12), name
        seen.add(layers[0])
    assert seen == set(range(14))


@pytest.mark.parametrize(
    ("variant", "decay", "assigner", "expected"),
    [
        ("atto", 0.9, "single", 0.282),
        ("tiny", 0.9, "single", 0.150),
        ("base", 0.6, "group", 0.0013),
    ],
)
def test_stem_has_the_published_factor(
    variant: str, decay: float, assigner: str, expected: float
) -> None:
    found = lr_scale(
        "stem.0.weight",
        depths=DEPTHS[variant],
        decay=decay,
        assigner=assigner,  # type: ignore[arg-type]
    )
    assert found == pytest.approx(expected, abs=5e-4 if expected > 0.01 else 5e-5)


def test_deeper_third_stages_never_learn_slower_than_earlier_layers() -> None:
    depths = (3, 4, 30, 3)
    scales = [
        lr_scale(f"stages.2.blocks.{block}.norm.weight", depths=depths, decay=0.6, assigner="group")
        for block in range(30)
    ]
    last = lr_scale("stages.3.blocks.0.norm.weight", depths=depths, decay=0.6, assigner="group")
    assert scales == sorted(scales)
    assert scales[-1] <= last


def test_every_parameter_is_in_exactly_one_group_with_its_decay() -> None:
    model = model_of("atto")
    groups = layer_groups(model, 0.3, 0.9)
    place = {}
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            assert id(parameter) not in place
            place[id(parameter)] = number
    assert len(place) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        group = groups[place[id(parameter)]]
        is_matrix = parameter.dim() >= 2 and name.endswith(".weight")
        assert group["weight_decay"] == (0.3 if is_matrix else 0.0), name
        assert group["lr_scale"] == lr_scale(
            name, depths=DEPTHS["atto"], decay=0.9, assigner="single"
        )
    assert len(groups) == 2 * 13  # twelve blocks and the head, with and without decay


def test_without_layer_decay_there_are_two_groups() -> None:
    groups = layer_groups(model_of("atto"), 0.1, 1.0)
    assert [group["lr_scale"] for group in groups] == [1.0, 1.0]
    assert [group["weight_decay"] for group in groups] == [0.0, 0.1]  # the order in checkpoints


def test_frozen_parameters_are_left_out() -> None:
    model = model_of("atto")
    model.stem.requires_grad_(False)
    groups = layer_groups(model, 0.1, 0.9)
    num_elements = sum(p.numel() for group in groups for p in group["params"])
    stem = sum(math.prod(p.shape) for p in model.stem.parameters())
    assert num_elements == sum(math.prod(p.shape) for p in model.parameters()) - stem


def test_a_name_of_another_network_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"layer4.0.conv1.weight.*no layer of a ConvNeXt"):
        lr_scale("layer4.0.conv1.weight", depths=(1, 1, 1, 1), decay=0.9, assigner="single")
