"""In which arithmetic a model computes: fp32 (IEEE), tf32, bf16 and fp16, and where each is had."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from fcmae.errors import ConfigError

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which a model computes in fp32, tf32, bf16 or fp16; see `set_tf32`."""
    if precision in ("fp32", "tf32"):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=_AUTOCAST[precision])


def check_precision(precision: str, device: torch.device) -> None:
    """Raise ConfigError where a precision is asked for that the device does not have."""
    if precision in ("fp16", "tf32") and device.type != "cuda":
        raise ConfigError(
            f"train.precision: {precision} needs a GPU, and this run computes on the "
            f"{device.type}; use bf16 or fp32."
        )


def set_tf32(precision: str) -> None:
    """Let GPUs multiply float32 as `precision` says: fp32 is IEEE, tf32 has 10 bits and is fast.

    torch's own defaults mix both: TF32 in convolutions, none in matrix products. bf16 and fp16
    leave them, for the little that stays in float32.
    """
    if precision in ("fp32", "tf32"):
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"


@contextlib.contextmanager
def multiplying(precision: str) -> Iterator[None]:
    """Multiply as `set_tf32` says inside, and as before afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    set_tf32(precision)
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
