"""Times of several pieces of work that take turns, so that disturbance meets them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

WARMUP_ROUNDS = 2


@dataclass(frozen=True)
class Times:
    """Seconds of one piece of work in each round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        if len(self.rounds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return (high - low) / self.median

    def ratio(self, other: Times) -> float:
        """Median over rounds of this one's time over the other's in the same round."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)


def time_in_turns(
    works: Sequence[Callable[[], None]], repeats: int, device: torch.device
) -> list[Times]:
    """Run all works once per round, after warm-up rounds; CUDA is timed by its own events."""
    clock = _cuda_seconds if device.type == "cuda" else _seconds
    for _ in range(WARMUP_ROUNDS):
        for work in works:
            work()
    rounds = [[clock(work) for work in works] for _ in range(repeats)]
    return [Times(times) for times in zip(*rounds, strict=True)]


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _cuda_seconds(work: Callable[[], None]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3
