"""What decays: matrices and kernels, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fcmae.model.autoencoder import FCMAE
from fcmae.training.optimization import decays, parameter_groups


@pytest.fixture(scope="module")
def model() -> FCMAE:
    return FCMAE("convnextv2_atto", image_size=64, decoder_dim=16)


def test_only_matrices_decay(model: FCMAE) -> None:
    decaying = {name for name, value in model.named_parameters() if decays(name, value)}
    block = "encoder.stages.1.blocks.0."
    assert {name.removeprefix(block) for name in decaying if name.startswith(block)} == {
        "conv_dw.weight",
        "mlp.fc1.weight",
        "mlp.fc2.weight",
    }
    others = {name for name, _ in model.named_parameters()} - decaying
    assert {name.removeprefix(block) for name in others if name.startswith(block)} == {
        "conv_dw.bias",
        "norm.weight",
        "norm.bias",
        "mlp.fc1.bias",
        "mlp.fc2.bias",
        "mlp.grn.weight",
        "mlp.grn.bias",
    }
    tokens = [name for name in others if "mask_token" in name]
    assert len(tokens) == 1


def test_every_trainable_parameter_is_in_exactly_one_group(model: FCMAE) -> None:
    groups = parameter_groups(model.named_parameters(), 0.05)
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]  # the order in checkpoints
    assert [group["lr_scale"] for group in groups] == [1.0, 1.0]
    grouped = [id(value) for group in groups for value in group["params"]]
    trainable = [id(value) for value in model.parameters() if value.requires_grad]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(trainable)


def test_frozen_parameters_are_in_no_group() -> None:
    layer = nn.Linear(3, 2)
    layer.weight.requires_grad = False
    groups = parameter_groups(layer.named_parameters(), 0.1)
    assert [len(group["params"]) for group in groups] == [1]


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("a.kernel", (9, 4, 4), True),
        ("a.weight", (4,), False),
        ("a.bias", (1, 4), False),
        ("mask_token", (1, 4, 1, 1), False),
        ("a.gamma", (1, 4), False),
    ],
)
def test_name_and_shape_decide(name: str, shape: tuple[int, ...], expected: bool) -> None:
    assert decays(name, nn.Parameter(torch.zeros(shape))) is expected
