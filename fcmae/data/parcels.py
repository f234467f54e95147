"""How a batch goes from the process that reads it to the one that computes.

Large tensors go through shared memory. Where /dev/shm has no room, or the process no file
descriptor left, they go through a pipe as bytes, which works everywhere and is slower.
"""

from __future__ import annotations

import copy
import errno
import multiprocessing.context
import multiprocessing.queues
import os
import pickle
import queue
import shutil
import struct
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from fcmae.errors import descriptor_advice, lacks_descriptors

PIECE_BYTES = 1 << 20  # taken from a pipe at a time
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


class PatientQueue(multiprocessing.queues.Queue):
    """A queue with one receiver, whose `get` gives up in time in the midst of a message, too.

    A process killed while it sends leaves a part of a message in the pipe. The library's `get`
    waits for the rest for ever, since other processes hold the sending end open as well.
    """

    _reader: Connection
    _sem: Any  # counts what is on its way

    def __init__(self, maxsize: int = 0, *, ctx: Any) -> None:
        super().__init__(maxsize, ctx=ctx)
        self._received = bytearray()

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self._received = bytearray()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Return the next object; raise queue.Empty where it has not come whole in `timeout`."""
        if not block:
            timeout = 0.0
        end = None if timeout is None else time.monotonic() + timeout
        while (message := self._whole_message()) is None:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not self._reader.poll(left):
                raise queue.Empty
            piece = os.read(self._reader.fileno(), PIECE_BYTES)  # what is there, however little
            if not piece:
                raise EOFError
            self._received += piece
        self._sem.release()
        return ForkingPickler.loads(message)

    def _whole_message(self) -> bytes | None:
        """Take the first message out of what was received, framed as Connection.send_bytes does."""
        for layout, skipped in (("!i", 0), ("!Q", 4)):
            start = skipped + struct.calcsize(layout)
            if len(self._received) < start:
                return None
            (size,) = struct.unpack_from(layout, self._received, skipped)
            if size >= 0:  # -1 announces the longer number
                break
        if len(self._received) < start + size:
            return None
        message = bytes(memoryview(self._received)[start : start + size])
        del self._received[: start + size]
        return message


def patient_context(method: str | None) -> multiprocessing.context.BaseContext:
    """Return multiprocessing's context of a start method whose queues are patient ones."""
    context = copy.copy(multiprocessing.get_context(method))
    context.Queue = partial(PatientQueue, ctx=context)  # type: ignore[method-assign]
    return context
