"""Turns signals, and the end of torchrun, into a request to stop after the current step."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
import time
from types import FrameType
from typing import Any, ClassVar

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
_STDOUT, _STDERR = 1, 2
# Schedulers, shells and torchrun tell one wish by several signals within a second or two.
REPEAT_SECONDS = 5.0
# torchrun started this process, and its end is noticed by another parent taking its place.
_TORCHRUN = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None


class StopRequest:
    """While entered, the first signal asks to stop; one that comes much later leaves at once.

    Signals within REPEAT_SECONDS of the first say the same wish. Leaving at once harms no file:
    every file of a run is complete or absent. The end of the torchrun that started this process
    asks to stop, too: nobody would start it again after a fault, or stop it with the others. One
    that is entered inside of another begins with what that was asked.

    Attributes:
        latest: the name of the signal that this process received last, for a launcher that must
            know whether its scheduler or a person stopped the run.
        never_at_once: a scheduler will kill this process when its time is over, hence later
            signals but Ctrl-C do not hurry it.
    """

    latest: ClassVar[str | None] = None
    _entered: ClassVar[StopRequest | None] = None
    never_at_once: ClassVar[bool] = False

    def __init__(self) -> None:
        self._name: str | None = None
        self._received = 0.0
        self._outer: StopRequest | None = None
        self._previous: dict[int, Any] = {}

    @property
    def name(self) -> str | None:
        """What asked to stop, such as SIGTERM; None while there is nothing."""
        if self._name is None and _TORCHRUN is not None and os.getppid() != _TORCHRUN:
            self._name = "the end of torchrun"
            _tell("torchrun is gone: stopping after this step, with a checkpoint.")
        return self._name

    def __enter__(self) -> StopRequest:
        outer, StopRequest._entered = StopRequest._entered, self
        self._outer = outer
        if outer is not None:  # what was asked for while everything was prepared
            self._name, self._received = outer._name, outer._received
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                is_nohup = number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN
                if not is_nohup:
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *raised: object) -> None:
        StopRequest._entered = self._outer
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGHUP:
            _leave_terminal()
        if self._name is None:
            self._name, self._received = name, time.monotonic()
            StopRequest.latest = name
            _tell(
                f"{name}: stopping after this step, with a checkpoint; once more, after "
                f"{REPEAT_SECONDS:.0f} seconds, leaves at once."
            )
        elif time.monotonic() - self._received < REPEAT_SECONDS:
            # The user's signal comes before or after SIGTERM: a scheduler sent both.
            StopRequest.latest = "SIGUSR2" if "SIGUSR2" in (name, StopRequest.latest) else name
        elif number == signal.SIGINT or not StopRequest.never_at_once:
            _tell(f"{name}: leaving at once.")
            os._exit(128 + number)


def _leave_terminal() -> None:
    """Let output to a terminal go nowhere: it was closed, and each write would be an error."""
    for descriptor in (_STDOUT, _STDERR):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def _tell(sentence: str) -> None:
    """Write without Python's buffers, which the interrupted code may hold."""
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(_STDERR, f"\nfcmae: {sentence}\n".encode())
