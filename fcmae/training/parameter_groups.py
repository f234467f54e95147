"""Which parameters decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: weights of convolutions and linear layers, nothing else.

    Norms, biases, GRN weights, layer scale and the mask token do not decay, also where a backend
    stores them with more than one dimension.

    Deviation: the released pretraining decays GRN weights and the mask token. Held by
        test_only_matrices_decay.
    """
    return parameter.dim() >= 2 and name.rpartition(".")[2] in ("weight", "kernel")


def decay_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """Return AdamW's two groups of the trainable parameters, in a fixed order."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            groups[decays(name, parameter)].append(parameter)
    return [
        {"params": groups[True], "weight_decay": weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]
