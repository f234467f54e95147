"""Progress where there is no terminal: whole lines, the longer the work the fewer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

FIRST_SECONDS = 2.0  # shorter work says nothing
LEAST_SECONDS, MOST_SECONDS = 10.0, 600.0  # between two lines
GROWTH = 0.5  # the next line comes when so much more time has passed


class PlainLines(Generic[Item]):
    """Gives items one by one, and tells now and then how many are done; used like a bar of tqdm.

    Args:
        items: what is still to do.
        tell: called with one sentence.
        title: what is done.
        unit: one of them, in the singular.
        total: how many there are, with those `done` before; None where nobody knows.
        done: how many were taken before.
        clock: gives seconds.
    """

    def __init__(
        self,
        items: Iterable[Item],
        tell: Callable[[str], None],
        *,
        title: str,
        unit: str,
        total: int | None,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._items, self._tell, self._clock = items, tell, clock
        self._title, self._unit, self._total = title, unit, total
        self._first = self._done = done
        self._postfix = ""
        self._start = clock()
        self._next = self._start + FIRST_SECONDS
        self._told: int | None = None

    def __iter__(self) -> Iterator[Item]:
        with self:
            for item in self._items:
                yield item
                self.update()

    def __enter__(self) -> PlainLines[Item]:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        """Count what was done since, and tell it if it is time."""
        self._done += count
        now = self._clock()
        is_over = self._told is None and self._done == self._total  # who waited knows it
        if now >= self._next and not is_over:
            passed = now - self._start
            self._next = now + min(max(LEAST_SECONDS, GROWTH * passed), MOST_SECONDS)
            self._say(passed)

    def set_postfix_str(self, text: str) -> None:
        """Let `text` stand behind the next lines."""
        self._postfix = text

    def close(self) -> None:
        """Tell the end of what has told its middle."""
        if self._told is not None and self._told != self._done:
            self._say(self._clock() - self._start)

    def _say(self, passed: float) -> None:
        self._told = self._done
        unit = self._unit if (self._total or self._done) == 1 else in_plural(self._unit)
        if self._total:
            share = f"({100 * self._done / self._total:.0f} %)"
            said = f"{self._done:,} of {self._total:,} {unit} {share} in {_in_words(passed)}"
        else:
            said = f"{self._done:,} {unit} in {_in_words(passed)}"
        here = self._done - self._first
        if self._total and here > 0 and self._done < self._total:
            left = passed / here * (self._total - self._done)
            said += f", about {_in_words(left)} left"
        if self._postfix:
            said += f"; {self._postfix}"
        self._tell(f"{self._title}: {said}.")


def in_plural(unit: str) -> str:
    """Return the plural of a unit of work: files, batches."""
    return f"{unit}es" if unit.endswith(("ch", "s", "x")) else f"{unit}s"


def _in_words(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
