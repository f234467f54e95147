"""How a batch goes from the process that reads it to the one that computes.

Large tensors go through shared memory. Where /dev/shm has no room, or the process no file
descriptor left, they go through a pipe as bytes, which works everywhere and is slower.
"""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from fcmae.errors import descriptor_advice, lacks_descriptors

SMALLEST_SHARED = 1 << 16  # bytes; to map less costs more than to copy it
BY_PIPE = "by_pipe"  # of an opened batch: why it did not come through shared memory


class Sender:
    """Wraps the batches of one reader for their way.

    Attributes:
        obstacle: why shared memory is no longer tried; None while it works.
    """

    def __init__(self) -> None:
        self.obstacle: str | None = None

    def wrap(self, batch: dict[str, Any]) -> Parcel:
        """Return what unpickles to `batch` in another process, with BY_PIPE where it came so."""
        return Parcel(self, batch)


class Parcel:
    """A batch on its way; see Sender. Pickled in a thread, where an error would go unseen."""

    def __init__(self, sender: Sender, batch: dict[str, Any]) -> None:
        self._sender = sender
        self._batch = batch

    def __reduce__(self) -> tuple[Any, ...]:
        large = {
            name: value
            for name, value in self._batch.items()
            if isinstance(value, Tensor) and value.nbytes >= SMALLEST_SHARED
        }
        others = {name: value for name, value in self._batch.items() if name not in large}
        if self._sender.obstacle is None:
            try:
                _ask_for_room([value for value in large.values() if not value.is_shared()])
                return _open, (bytes(ForkingPickler.dumps(large)), _as_arrays(others))
            except (OSError, RuntimeError) as error:  # torch's error where memory is shared
                self._sender.obstacle = " ".join(str(error).split())
        others[BY_PIPE] = self._sender.obstacle
        return _open, (None, _as_arrays({**large, **others}))


def _as_arrays(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the batch with arrays in place of tensors, which pickle as bytes."""
    return {
        name: value.numpy() if isinstance(value, Tensor) else value for name, value in batch.items()
    }


def _open(shared: bytes | None, plain: dict[str, Any]) -> dict[str, Any]:
    """Return the batch in the process that computes."""
    batch: dict[str, Any] = {} if shared is None else pickle.loads(shared)
    for name, value in plain.items():
        is_array = hasattr(value, "__array_interface__")
        batch[name] = torch.from_numpy(value) if is_array else value
    return batch


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors of one shape as one of a dimension more, ready to be shared if there is room.

    In a worker torch stacks straight into shared memory, which spares a copy.
    """
    try:
        _ask_for_room(tensors)
        stacked: Tensor = default_collate(list(tensors))
    except (OSError, RuntimeError):  # no room there, or shapes that differ, which stack says, too
        return torch.stack(list(tensors))
    return stacked


def _ask_for_room(tensors: Sequence[Tensor]) -> None:
    """Raise OSError where /dev/shm cannot hold copies of tensors.

    Older versions of torch do not ask: the process dies as it writes there.
    """
    try:
        free = shutil.disk_usage("/dev/shm").free
    except FileNotFoundError:  # a system that keeps shared memory elsewhere
        return
    if sum(tensor.nbytes for tensor in tensors) > free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/dev/shm")


def obstacle_sentence(obstacle: str) -> str:
    """Say why batches do not come through shared memory, and what to change."""
    if lacks_descriptors(obstacle):
        why = "the readers have no file descriptor left to share memory"
        change = descriptor_advice()
    else:
        why = "/dev/shm has no room for them"
        change = "give a container more (docker run --shm-size=1g)"
    return (
        f"data.workers: batches come through pipes, which is slower, since {why} ({obstacle}); "
        f"{change}, or use fewer workers."
    )
