"""How each part of a pretraining step scales with the threads of a CPU, by torch's profiler.

Command: `python studies/threads.py [--model convnextv2_atto] [--batch 32] [--rounds 7]`, on two or
more cores with nothing else to do. Steps with one thread and with two take turns. A row per kind of
operation: its time with one thread, how much faster two are, and what 16 would take if the share
that two did not share out is never shared out (Amdahl): an estimate on paper, which knows nothing
of the caches and the memory that 16 cores have together.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from fcmae.machine.bench.subjects import Subject, prepare

MANY = 16
# What a part of an operation's name says of it; the first that fits counts.
KINDS = (
    ("products", ("mm", "linear", "mkldnn", "convolution", "conv2d")),
    ("depthwise layer", ("depthwise",)),
    ("GELU and GRN", ("_compiled",)),  # sparse/ops/activation.c
    ("layer norms", ("norm",)),
    ("optimizer", ("adam", "optimizer")),
)
OTHER = "all else: copies, gathering, sums"


def kind_of(name: str) -> str:
    """Return the kind of an operation."""
    low = name.lower()
    return next((kind for kind, words in KINDS if any(word in low for word in words)), OTHER)


def seconds_by_kind(work: Callable[[], None]) -> dict[str, float]:
    """Return the seconds of one step, by kind of operation."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        work()
    found: dict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        found[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    return found


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="convnextv2_atto")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    subject = Subject(
        model=given.model,
        contender="native",
        ratio=0.6,
        precision="fp32",
        part="step",
        batch_size=given.batch,
        image_size=224,
    )
    work = prepare(subject, torch.device("cpu"))
    work()
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    for _ in range(given.rounds):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for kind, seconds in seconds_by_kind(work).items():
                times[kind, threads].append(seconds)
    print(f"{given.model}, {given.batch} images of 224 px, torch {torch.__version__}")
    print("| part | 1 thread, ms | share | 2 threads over 1 | 16 on paper, ms |")
    print("|---|---|---|---|---|")
    middle = {place: 1e3 * statistics.median(found) for place, found in times.items()}
    kinds = sorted({kind for kind, _ in middle}, key=lambda kind: -middle[kind, 1])
    total = {threads: sum(middle[kind, threads] for kind in kinds) for threads in (1, 2)}
    on_paper = 0.0
    for kind in kinds:
        one, two = middle[kind, 1], middle[kind, 2]
        alone = min(max(2 * two - one, 0.0), one)  # what two threads did not share out
        many = alone + (one - alone) / MANY
        on_paper += many
        print(f"| {kind} | {one:.0f} | {one / total[1]:.0%} | {one / two:.2f} | {many:.0f} |")
    print(f"| all | {total[1]:.0f} | | {total[1] / total[2]:.2f} | {on_paper:.0f} |")


if __name__ == "__main__":
    main()
