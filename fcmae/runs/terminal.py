"""What a run shows at the terminal: sentences and a progress bar on stderr, last words on stdout.

Where stderr is no terminal, progress is lines; in a notebook, a widget or a bar of letters.
A terminal that is gone, or a full disk in its place, is no failure of the run.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from tqdm import TqdmWarning

from fcmae.errors import abandon_dead_streams
from fcmae.runs.plain_lines import FIRST_SECONDS, PlainLines, in_plural

with warnings.catch_warnings():
    warnings.simplefilter("ignore", TqdmWarning)  # a notebook without widgets gets a bar of letters
    from tqdm.auto import tqdm

Item = TypeVar("Item")
BRIEF_SECONDS = FIRST_SECONDS
_RUN: ContextVar[str] = ContextVar("run of several", default="")


class Bar(tqdm):
    """tqdm's bar, with a lock that no other process holds and without a thread of its own.

    tqdm's lock is one of multiprocessing: whoever is killed while holding it takes it along, and
    all that were forked from the same process wait for ever. Bars are drawn by one process each.
    """

    monitor_interval = 0


Bar.set_lock(threading.RLock())


class _Terminal:
    """sys.stderr, whose failures - a full disk below a log, a closed pipe - are nobody's."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()


_TERMINAL: Any = _Terminal()


def say(sentence: str) -> None:
    """Print one sentence, above the progress bar where there is one."""
    Bar.write(f"fcmae: {sentence}", file=_TERMINAL)


def tell(text: str) -> None:
    """Print on stdout what a training says that is in its folder, too, above the bar."""
    try:
        with Bar.external_write_mode(file=_TERMINAL):
            print(text, flush=True)
    except OSError:
        abandon_dead_streams()


@contextlib.contextmanager
def numbered(number: int, total: int, title: str) -> Iterator[None]:
    """Say which run of several begins; the bars inside begin with it: `run 3 of 12`.

    Args:
        number: of the run, from 1.
        total: of all runs.
        title: the run in words.
    """
    name = f"run {number} of {total}"
    if _is_first_process():
        say(f"{name}: {title}.")
    token = _RUN.set(name)
    try:
        yield
    finally:
        _RUN.reset(token)


def progress_bar(
    items: Iterable[Item],
    *,
    unit: str,
    total: int | None = None,
    done: int = 0,
    title: str = "",
    is_shown: bool = True,
    is_brief: bool = False,
) -> Any:
    """Return `items` with a bar that moves as they are taken, or lines where no terminal is.

    Args:
        items: what is still to do.
        unit: one of them, in the singular.
        total: how many there are, with those `done` before; None: as many as `items` says, if it
            does.
        done: how many were taken before, in an earlier life of the run.
        title: what stands before the bar.
        is_shown: False draws nothing, in processes other than the main one.
        is_brief: mostly done within two seconds: nothing is drawn before, and nothing stays.
    """
    run = _RUN.get()
    is_shown = is_shown and _is_first_process()
    if total is None:
        with contextlib.suppress(TypeError):
            total = done + len(items)  # type: ignore[arg-type]
    if not (is_shown and _is_terminal()):
        words = ", ".join(filter(None, (run, title or in_plural(unit))))
        tell = say if is_shown else _say_nothing
        return PlainLines(items, tell, title=words, unit=unit, total=total, done=done)
    return Bar(
        items,
        ", ".join(filter(None, (run, title))) or None,
        total,
        initial=done,
        unit=unit,
        file=_TERMINAL,
        dynamic_ncols=True,
        miniters=1,  # there is no thread that draws what comes late
        delay=BRIEF_SECONDS if is_brief else 0,
        leave=not is_brief,
    )


def _is_terminal() -> bool:
    """Whether stderr is a screen, or the output of a notebook's cell, which can be drawn anew."""
    if type(sys.stderr).__module__.startswith("ipykernel"):
        return True
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return sys.stderr.isatty()
    return False


def _say_nothing(sentence: str) -> None:
    """Take the place of `say` in processes other than the first."""


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
