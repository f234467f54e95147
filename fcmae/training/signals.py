"""Turns SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 into a request to stop after the current step."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, ClassVar

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_STDERR = 2


class StopRequest:
    """While entered, the first signal asks to stop and a second one leaves at once.

    Leaving at once harms no file: every file of a run is complete or absent.

    Attributes:
        name: the signal received, such as SIGTERM; None while there is none.
        latest: the name of the signal that this process received last, for a launcher that must
            know whether its scheduler or a person stopped the run.
    """

    latest: ClassVar[str | None] = None

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.name is not None:
            _tell(f"{name}: leaving at once.")
            os._exit(128 + number)
        self.name = StopRequest.latest = name
        _tell(f"{name}: stopping after this step, with a checkpoint; once more leaves at once.")


def _tell(sentence: str) -> None:
    """Write without Python's buffers, which the interrupted code may hold."""
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(_STDERR, f"\nfcmae: {sentence}\n".encode())
