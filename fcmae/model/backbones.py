"""Creates the dense timm ConvNeXt that is pretrained, exported and fine-tuned."""

import difflib

import timm
from timm.models.convnext import ConvNeXt

from fcmae.errors import ConfigError

VARIANTS = ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")


def backbone_names() -> list[str]:
    """Return every ConvNeXt that timm knows, V2 and V1, without pretrained tags."""
    return timm.list_models("convnextv2_*") + timm.list_models("convnext_*")


def check_backbone_name(name: str) -> None:
    """Raise ConfigError, naming near names, unless `name` is a ConvNeXt of timm."""
    names = backbone_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(near)}?" if near else "Try convnextv2_atto."
        raise ConfigError(
            f"model.name: {name!r} is not a ConvNeXt of timm; expected convnextv2_"
            f"{{{','.join(VARIANTS)}}} or convnext_*. {hint}"
        )


def create_backbone(
    name: str,
    *,
    in_chans: int,
    stem_stride: int = 4,
    drop_path: float = 0.0,
    num_classes: int = 0,
) -> ConvNeXt:
    """Create the untrained timm model, drawing weights from torch's global generator.

    Args:
        name: a timm ConvNeXt such as convnextv2_atto.
        in_chans: image channels.
        stem_stride: side of the stem's square of pixels; timm keeps stage 1 at stride 4 or below.
        drop_path: rate of the last block, rising linearly from 0.
        num_classes: outputs of the classifier; 0 means features only.

    Raises:
        ConfigError: unknown name, or a stem that this variant does not have.
    """
    check_backbone_name(name)
    if in_chans < 1:
        raise ConfigError(f"data.in_chans: got {in_chans}, expected 1 or more image channels.")
    if stem_stride not in (1, 2, 4):
        raise ConfigError(
            f"model.stem_stride: got {stem_stride} px, expected 1, 2 or 4 "
            "(total strides 8, 32 and 32)."
        )
    # A variant's own stem stride is kept where the default is asked for (overlapping stems, too).
    stem = {} if stem_stride == 4 else {"patch_size": stem_stride}
    return timm.create_model(
        name,
        pretrained=False,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path,
        **stem,
    )
