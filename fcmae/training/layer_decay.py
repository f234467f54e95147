"""Layer-wise learning rates of fine-tuning, in the two forms of ConvNeXt V2's recipes.

Knows timm's parameter names only; the rates themselves come from schedule.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from fcmae.errors import ConfigError
from fcmae.training.parameter_groups import decays

Assigner = Literal["single", "group"]

_NUM_GROUPS = 12  # of the `group` form, written for 27 blocks in the third stage
_BLOCKS_PER_GROUP = 3


def lr_scale(name: str, *, depths: tuple[int, ...], decay: float, assigner: Assigner) -> float:
    """Return the factor of the learning rate for the parameter of this timm name.

    `single`: every block is a layer; the stem counts as the first block and a downsample layer as
    the first block behind it. `group`: 13 layers whatever the depth, 0 for the stem, 1 and 2 for
    stages 0 and 1 (a downsample layer belongs to the stage behind it, except that the one before
    stage 2 is layer 3), 3 to 11 for triples of blocks of stage 2, 12 for stage 3. The factor falls
    by `decay` per layer from the last one to the first; the final norm and the classifier have 1.

    Source: ConvNeXt V2, appendix A.1 and the released fine-tuning code.

    Raises:
        ConfigError: a name that is no part of a ConvNeXt.
    """
    num_layers = sum(depths) if assigner == "single" else _NUM_GROUPS
    return decay ** (num_layers + 1 - _layer(name, depths, num_layers, assigner))


def _layer(name: str, depths: tuple[int, ...], num_layers: int, assigner: Assigner) -> int:
    """Return the number of a parameter's layer; num_layers + 1 behind the last block."""
    if name.startswith("stem."):
        return 1 if assigner == "single" else 0
    if name.startswith(("norm_pre.", "head.")):
        return num_layers + 1
    found = re.match(r"stages\.(\d+)\.(?:downsample|blocks\.(\d+))\.", name)
    if found is None:
        raise ConfigError(
            f"optim.layer_decay: parameter {name!r} belongs to no layer of a ConvNeXt; "
            "set optim.layer_decay to 1 for this model."
        )
    stage, block = int(found[1]), int(found[2] or 0)
    if assigner == "single":
        return sum(depths[:stage]) + block + 1
    if stage == 2:
        return min(3 + block // _BLOCKS_PER_GROUP, num_layers)
    return (1, 2, 3, num_layers)[stage]


def finetune_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    depths: tuple[int, ...],
    weight_decay: float,
    layer_decay: float,
    assigner: Assigner,
) -> list[dict[str, Any]]:
    """Return AdamW's groups of the trainable parameters, by layer and decay, in a fixed order.

    Every group carries `lr_scale`, by which the schedule multiplies its rate, and `weight_decay`.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            scale = (
                1.0
                if layer_decay == 1
                else lr_scale(name, depths=depths, decay=layer_decay, assigner=assigner)
            )
            groups.setdefault((scale, decays(name, parameter)), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr_scale": scale,
            "weight_decay": weight_decay if has_decay else 0.0,
        }
        for (scale, has_decay), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
