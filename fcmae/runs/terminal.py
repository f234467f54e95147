"""What a run shows at the terminal: sentences and a progress bar on stderr, last words on stdout.

A terminal that is gone, or a full disk in its place, is no failure of the run.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

from fcmae.errors import abandon_dead_streams

Item = TypeVar("Item")

# tqdm's own lock is one of multiprocessing: whoever is killed while holding it takes it along, and
# all that were forked from the same process wait for ever. Bars are drawn by one process each.
tqdm.set_lock(threading.RLock())


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
    tqdm.write(f"fcmae: {sentence}", file=_TERMINAL)


def tell(text: str) -> None:
    """Print on stdout what a training says that is in its folder, too."""
    try:
        print(text, flush=True)
    except OSError:
        abandon_dead_streams()


def progress_bar(
    items: Iterable[Item],
    *,
    unit: str,
    total: int,
    done: int = 0,
    title: str = "",
    is_shown: bool = True,
) -> tqdm[Item]:
    """Return `items` with a bar that moves as they are taken.

    Args:
        items: what is still to do.
        unit: one of them, in the singular.
        total: how many there are, with those `done` before.
        done: how many were taken before, in an earlier life of the run.
        title: what stands before the bar.
        is_shown: False draws nothing, in processes other than the main one.
    """
    return tqdm(
        items,
        title or None,
        total,
        initial=done,
        unit=unit,
        file=_TERMINAL,
        dynamic_ncols=True,
        disable=not is_shown,
    )
