"""Turns SIGTERM, SIGINT and SIGUSR1 into a request to stop after the current step."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """While entered, the first signal asks to stop and a second one leaves at once.

    Leaving at once harms no file: every file of a run is complete or absent.

    Attributes:
        name: the signal received, such as SIGTERM; None while there is none.
    """

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
            os.write(sys.stderr.fileno(), f"\n{name}: leaving at once.\n".encode())
            os._exit(128 + number)
        self.name = name
        text = f"\n{name}: stopping after this step, with a checkpoint; once more leaves at once.\n"
        os.write(sys.stderr.fileno(), text.encode())
