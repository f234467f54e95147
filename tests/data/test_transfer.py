"""Batches for a GPU: what is asked of its streams, in order; on a CPU nothing is read ahead."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fcmae.data.transfer import DeviceBatches

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


class Streams:
    """Stands for torch.cuda and writes down what is asked of it.

    Attributes:
        calls: what was asked, in order.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.now = "current"

    def Stream(self, device: torch.device) -> _Stream:
        self.calls.append(f"a stream of {device}")
        return _Stream("side", self)

    def current_stream(self, device: torch.device) -> _Stream:
        return _Stream(self.now, self)

    @contextlib.contextmanager
    def stream(self, stream: _Stream) -> Iterator[None]:
        self.now = stream.name
        yield
        self.now = "current"


class _Stream:
    def __init__(self, name: str, streams: Streams) -> None:
        self.name, self.streams = name, streams

    def wait_stream(self, other: _Stream) -> None:
        self.streams.calls.append(f"{self.name} waits for {other.name}")


class Pixels(torch.Tensor):
    """A tensor that writes down where it goes."""

    label: str
    streams: Streams

    def pin_memory(self, *_: Any) -> Pixels:  # type: ignore[override]
        self.streams.calls.append(f"pin {self.label}")
        return self

    def to(self, device: Any, non_blocking: bool = False) -> Pixels:  # type: ignore[override]
        assert non_blocking
        self.streams.calls.append(f"copy {self.label} to {device} on {self.streams.now}")
        return self

    def record_stream(self, stream: Any) -> None:
        self.streams.calls.append(f"{self.label} is used on {stream.name}")


def batches(streams: Streams, count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        image = torch.zeros(2).as_subclass(Pixels)
        image.label, image.streams = f"batch {number}", streams
        streams.calls.append(f"read batch {number}")
        yield {"image": image, "path": [str(number)]}


def test_the_next_batch_is_copied_on_a_stream_of_its_own_behind_the_work_of_this_one() -> None:
    streams = Streams()
    sent = DeviceBatches(batches(streams, 2), GPU, streams)
    for batch, on_device in sent:
        assert batch["path"] == on_device["path"]
        streams.calls.append(f"work on batch {batch['path'][0]}")
        sent.read_ahead()
        sent.read_ahead()  # done already
    assert streams.calls == [
        "a stream of cuda:0",
        "read batch 0",
        "pin batch 0",
        "copy batch 0 to cuda:0 on side",
        "current waits for side",
        "batch 0 is used on current",
        "work on batch 0",
        "read batch 1",
        "pin batch 1",
        "copy batch 1 to cuda:0 on side",
        "current waits for side",
        "batch 1 is used on current",
        "work on batch 1",
    ]


def failing(good: int) -> Iterator[dict[str, Any]]:
    streams = Streams()
    yield from batches(streams, good)
    raise OSError("the disk is gone")


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
@pytest.mark.parametrize("is_ahead", [False, True])
def test_what_goes_wrong_is_raised_where_its_batch_is_asked_for(
    is_ahead: bool, device: torch.device
) -> None:
    sent = DeviceBatches(failing(2), device, Streams())
    seen = []
    with pytest.raises(OSError, match="the disk is gone"):  # noqa: PT012  (which step raises)
        for batch, _ in sent:
            if is_ahead:
                sent.read_ahead()
            seen.append(batch["path"])
    assert seen == [["0"], ["1"]]


def test_an_interrupt_is_not_put_off() -> None:
    def interrupted() -> Iterator[dict[str, Any]]:
        yield {"path": []}
        raise KeyboardInterrupt

    sent = DeviceBatches(interrupted(), GPU, Streams())
    next(sent)
    with pytest.raises(KeyboardInterrupt):
        sent.read_ahead()


def test_on_a_cpu_nothing_is_read_before_it_is_asked_for() -> None:
    streams = Streams()
    source = [{"image": torch.ones(1), "path": [str(number)]} for number in range(3)]
    taken = iter(source)
    sent = DeviceBatches(taken, CPU, streams)
    batch, on_device = next(sent)
    sent.read_ahead()
    assert batch is source[0]
    assert on_device["image"] is batch["image"]
    assert next(taken) is source[1]
    assert streams.calls == []
