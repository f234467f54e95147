"""A ConvNeXt V2 of 20,000 parameters by a name of timm, for what has another subject than models.

Its steps, checkpoints and exports take milliseconds where those of an atto take a second. A process
that did not import this file does not know the name.
"""

from __future__ import annotations

from typing import Any

import timm
from timm.models import convnext, register_model
from timm.models.convnext import ConvNeXt

SPECK = "convnextv2_speck"
# A fine-tuning of three steps, as options of its settings.
THREE_STEPS: dict[str, object] = {
    "data.image_size": 32,
    "data.workers": 0,
    "data.val_share": 0.5,
    "model.name": SPECK,
    "train.batch_size": 4,
    "train.steps": 3,
    "train.device": "cpu",
    "log.every_steps": 1,
    "log.tensorboard": "false",
    "checkpoint.every_steps": 1,
}


@register_model
def convnextv2_speck(pretrained: bool = False, **kwargs: Any) -> ConvNeXt:
    """Four stages of one block each."""
    sizes = {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 20), "use_grn": True}
    settings = {**kwargs, "pretrained_cfg": kwargs.get("pretrained_cfg") or {}}
    model: ConvNeXt = convnext._create_convnext(
        SPECK, pretrained, ls_init_value=None, **sizes, **settings
    )
    return model


assert SPECK in timm.list_models("convnextv2_*")
