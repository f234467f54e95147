"""Batches on their way to the device: a GPU gets the next one while it computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Any]


class DeviceBatches:
    """Batches in their order, each with its copy on the device.

    Iterating yields (batch, the same with its tensors on the device). On CUDA the copies are made
    on a stream of their own, from page-locked memory, and whoever calls `read_ahead` behind the
    work that a batch began has the next one read and copied beside that work. What goes wrong in
    reading ahead is raised where that batch is asked for. On a CPU nothing is read ahead.

    Args:
        batches: dicts as `fcmae.data.collate` makes them.
        device: where their tensors go.
        cuda: torch.cuda, or what stands for it.
    """

    def __init__(self, batches: Iterable[Batch], device: torch.device, cuda: Any = torch.cuda):
        self._batches = iter(batches)
        self._device = device
        self._cuda = cuda
        self._side = cuda.Stream(device) if device.type == "cuda" else None
        self._ahead: tuple[Batch, Batch] | Exception | None = None

    def __iter__(self) -> Iterator[tuple[Batch, Batch]]:
        return self

    def __next__(self) -> tuple[Batch, Batch]:
        found, self._ahead = self._ahead, None
        if isinstance(found, Exception):  # the end of the batches, too
            raise found
        if found is None:
            found = self._read()
        if self._side is not None:
            current = self._cuda.current_stream(self._device)
            current.wait_stream(self._side)
            for value in found[1].values():
                if isinstance(value, Tensor):  # not free for the next copy before its use has ended
                    value.record_stream(current)
        return found

    def read_ahead(self) -> None:
        """Read the next batch and begin its copy, on CUDA, unless that is done."""
        if self._side is None or self._ahead is not None:
            return
        try:
            self._ahead = self._read()
        except Exception as error:
            self._ahead = error

    def _read(self) -> tuple[Batch, Batch]:
        batch = next(self._batches)
        if self._side is None:
            return batch, _on(self._device, batch)
        with self._cuda.stream(self._side):
            return batch, _on(self._device, batch)


def _on(device: torch.device, batch: Batch) -> Batch:
    return {name: _moved(value, device) for name, value in batch.items()}


def _moved(value: Any, device: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    # A copy from memory that the system may move would wait for the stream.
    value = value.pin_memory() if device.type == "cuda" else value
    return value.to(device, non_blocking=True)
