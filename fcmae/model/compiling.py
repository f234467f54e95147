"""torch.compile in the mode that a setting names, with shapes that stay."""

from __future__ import annotations

from typing import Literal, TypeVar

import torch

from fcmae.errors import ConfigError
from fcmae.settings.sections import Compiling

GRAPHS: Literal["reduce-overhead"] = "reduce-overhead"  # CUDA graphs: a step is one launch

Called = TypeVar("Called")


def compiled(called: Called, mode: Compiling) -> Called:
    """Return a module or function through torch.compile, or itself where `mode` is false.

    A batch of another shape is compiled for itself: shapes that are left open cost every step.
    """
    if mode is False:
        return called
    found: Called = torch.compile(  # type: ignore[call-overload]
        called, mode="default" if mode is True else mode, dynamic=False
    )
    return found


def holds_graphs(mode: Compiling, device: torch.device) -> bool:
    """Whether the results of a compiled call lie where the next call writes its own."""
    return mode == GRAPHS and device.type == "cuda"


def begin_call(mode: Compiling, device: torch.device) -> None:
    """Say that nothing which earlier calls returned is needed any more; before each call."""
    if holds_graphs(mode, device):
        torch.compiler.cudagraph_mark_step_begin()


def check_compiling(mode: Compiling, num_processes: int) -> None:
    """Raise ConfigError for CUDA graphs in several processes."""
    if mode == GRAPHS and num_processes > 1:
        raise ConfigError(
            f"train.compile: got {GRAPHS} in {num_processes} processes, expected default or "
            "max-autotune-no-cudagraphs: a CUDA graph cannot hold the exchange of gradients."
        )
