"""Creates networks that name a class for every pixel: a timm ConvNeXt below a decoder of smp.

smp is segmentation_models_pytorch. The encoder's names are those of timm's features_only, so that
weights of an encoder fit after `encoder_state`; nothing here reads or writes a file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal, cast

from torch import Tensor, nn

from fcmae.errors import ConfigError
from fcmae.model.backbones import check_backbone_name

Architecture = Literal["upernet", "unet", "deeplabv3plus", "fpn"]
Norm = Literal["group", "batch"]
ENCODER = "encoder.model."  # how the names of the encoder's weights begin in a network of smp
SIDE_PX = 32  # height and width of what a network is given are multiples of it
_NORM_GROUPS = 32  # at most, of _GROUP_CHANNELS at least: pooled maps have one pixel alone
_GROUP_CHANNELS = 8
_TIMM_STAGE = re.compile(r"^(stem|stages)\.(\d+)\.")
_FEATURES_STAGE = re.compile(r"^(stem|stages)_(\d+)\.")


def import_smp() -> ModuleType:
    """Return segmentation_models_pytorch.

    Raises:
        ConfigError: the extra `segmentation` is not installed.
    """
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise ConfigError(
            f"task: segmentation needs segmentation-models-pytorch, which cannot be imported "
            f"({' '.join(str(error).split())}); install the extra: "
            "pip install 'fcmae[segmentation]'."
        ) from error
    return cast(ModuleType, smp)


def build_segmenter(
    architecture: Architecture,
    encoder_name: str,
    *,
    in_chans: int,
    num_classes: int,
    decoder_channels: int = 256,
    norm: Norm = "group",
    drop_path: float = 0.0,
) -> nn.Module:
    """Create an untrained network, drawing weights from torch's global generator.

    It maps images [N, in_chans, H, W], H and W multiples of SIDE_PX, to logits
    [N, num_classes, H, W].

    Args:
        architecture: of the decoder.
        encoder_name: a timm ConvNeXt with a stem of stride 4.
        in_chans: image channels.
        num_classes: two or more.
        decoder_channels: width of the decoder; of a U-Net, of its first block.
        norm: group: of one image's pixels, the same whatever the batch and the number of
            processes; batch: smp's own batch norm.
        drop_path: rate of the encoder's last block, rising linearly from 0.

    Raises:
        ConfigError: smp is missing, or an unknown encoder.
    """
    check_backbone_name(encoder_name)
    smp = import_smp()
    kind: Any = {
        "upernet": smp.UPerNet,
        "unet": smp.Unet,
        "deeplabv3plus": smp.DeepLabV3Plus,
        "fpn": smp.FPN,
    }[architecture]
    network: nn.Module = kind(
        f"tu-{encoder_name}",
        encoder_weights=None,
        in_channels=in_chans,
        classes=num_classes,
        drop_path_rate=drop_path,
        **_decoder_width(architecture, decoder_channels),
    )
    if norm == "group":
        _use_group_norm(network)
    return network


def _decoder_width(architecture: Architecture, channels: int) -> dict[str, Any]:
    """Return smp's arguments for a decoder so wide."""
    if architecture == "unet":
        return {"decoder_channels": tuple(max(1, channels // 2**block) for block in range(5))}
    if architecture == "fpn":  # smp's own norm has 32 groups
        segmentation = max(_NORM_GROUPS, channels // 2)
        return {"decoder_pyramid_channels": channels, "decoder_segmentation_channels": segmentation}
    return {"decoder_channels": channels}


def _use_group_norm(network: nn.Module) -> None:
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                channels = child.num_features
                most = max(1, channels // _GROUP_CHANNELS)
                groups = math.gcd(_NORM_GROUPS, channels, most)
                setattr(module, name, nn.GroupNorm(groups, channels))


def encoder_state(timm_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an encoder's weights by the names that they have in a network of `build_segmenter`.

    The final norm and the classifier of timm's model, which it does not have, are left out.
    """
    return {
        ENCODER + _TIMM_STAGE.sub(r"\1_\2.", name): value
        for name, value in timm_state.items()
        if _TIMM_STAGE.match(name)
    }


def timm_name(name: str) -> str | None:
    """Return timm's name of a parameter of the encoder; None of one of the decoder."""
    if not name.startswith(ENCODER):
        return None
    return _FEATURES_STAGE.sub(r"\1.\2.", name.removeprefix(ENCODER))
