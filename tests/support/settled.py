"""Settings in which nothing is left to a rule: the paper's values wherever `auto` stands."""

from __future__ import annotations

from typing import Any

from fcmae.settings.auto import autos, with_values

FLIPS = {"horizontal_flip": True, "vertical_flip": False, "rotate90": False}
PUBLISHED: dict[str, Any] = {
    **{f"data.{name}": value for name, value in FLIPS.items()},
    **{f"augment.{name}": value for name, value in FLIPS.items()},
    "data.crop_scale": (0.2, 1.0),
    "data.image_size": 224,
    "model.name": "convnextv2_atto",
    "train.batch_size": 64,
    "model.drop_path": 0.0,
    "model.head_start": "random",
    "mask.patch_size": 32,
    "optim.base_lr": 1.5e-4,
    "optim.schedule": "cosine",
    "optim.weight_decay": 0.05,
    "optim.warmup_steps": None,
    "optim.layer_decay": 0.9,
    "augment.crop_scale": (0.08, 1.0),
    "augment.rand_augment": None,
    "augment.reprob": 0.0,
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
    "augment.smoothing": 0.1,
    "ema.decay": None,
    "compare.scratch_base_lr": None,
}


def settled(config: Any) -> Any:
    """Return the config without any `auto`; what it says itself stays."""
    return with_values(config, {name: PUBLISHED[name] for name in autos(config)})
