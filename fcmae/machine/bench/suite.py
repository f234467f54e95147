"""The whole table of one machine: every backend, precision and size, within a time budget.

Written so that the first hour on a card measures everything: time, memory, share of the measured
matrix rate, launches and waits of a step, beside the dense timm model, a ViT-MAE, dense masking.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fcmae.machine.bench.measuring import Measurement, partner_of
from fcmae.machine.bench.output import as_table
from fcmae.machine.bench.roofline import counted_flops, matmul_rates
from fcmae.machine.bench.subjects import ALTERNATIVES, Subject, prepare
from fcmae.machine.bench.timing import time_in_turns
from fcmae.model.compiling import GRAPHS
from fcmae.model.precision import multiplying
from fcmae.runs.durable import write_text
from fcmae.settings.sections import Compiling

RESERVE = 20.0  # seconds of the budget for what has begun
ROUNDS, FEW_ROUNDS = 7, 1
LAUNCHES = (
    *("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx"),
    "cudaGraphLaunch",  # of a whole graph
)
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
# (model, images per step): as many as keep a card busy, and dense masking below 70 GiB
SIZES = (
    ("convnextv2_tiny", 256),
    ("convnextv2_atto", 512),
    ("convnextv2_base", 128),
    ("convnextv2_large", 64),
)
RATIO, OTHER_RATIOS = 0.6, (0.4, 0.75, 0.9)
FEW_IMAGES = 128  # of tiny: eager steps wait for the host, which CUDA graphs relieve
FEW_IMAGES_IN: tuple[Compiling, ...] = (False, "default", GRAPHS)
AGAIN = 1.0  # seconds between calls that time is up: a library may swallow one


class _TimeIsUp(BaseException):
    """Called into what is being measured; no Exception, which libraries catch."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What was found of one subject.

    Attributes:
        measurement: time, and what it is compared with.
        busy_seconds: how long the device computed in a step; None on a CPU. What the step took
            longer, it waited for the host.
        launches: kernels of a step; on a CPU the operations of torch.
        waits: how often the host waited for the device in a step; 0 on a CPU.
    """

    measurement: Measurement
    busy_seconds: float | None
    launches: int
    waits: int


@dataclasses.dataclass(frozen=True)
class Found:
    """What the suite has found.

    Attributes:
        rows: one of each subject.
        rates: operations per second of matrix products, by precision and product.
        left_out: what was not measured, and why.
    """

    rows: list[Row]
    rates: dict[str, dict[str, float]]
    left_out: list[str]


def groups(device: torch.device, *, is_small: bool) -> Iterator[list[Subject]]:
    """Yield subjects that take turns, most wanted first; compiled ones take a minute each.

    `is_small` is the same table in shape on the smallest model and images, for machines that build.
    """
    if device.type != "cuda" or is_small:
        sizes = [("convnextv2_atto", 2)] if is_small else [(name, 8) for name, _ in SIZES[:2]]
        for (name, batch), precision in itertools.product(sizes, ("fp32", "bf16")):
            for part in ("backward", "step"):
                yield _compared(name, batch, precision, part, image_size=64 if is_small else 224)
        return
    (first, first_batch), *others = SIZES
    for part in ("backward", "step"):
        yield _compared(first, first_batch, "bf16", part, with_canvas=True)
    yield _compared(first, first_batch, "bf16", "backward", compiling="default")
    for name, batch in others:
        for part in ("step", "backward"):
            yield _compared(name, batch, "bf16", part, with_canvas=True)
    for name, batch in SIZES[:2]:
        yield [_native(name, batch, ratio) for ratio in (RATIO, *OTHER_RATIOS)]
    yield _compared(first, first_batch, "bf16", "step", compiling="default")
    for name, batch in others:
        for part in ("step", "backward"):
            yield _compared(name, batch, "bf16", part, compiling="default")
    for name, batch in SIZES[:2]:
        for part in ("backward", "step"):
            yield _compared(name, batch // 2, "tf32", part)
    for part in ("backward", "step"):
        for mode in FEW_IMAGES_IN:
            yield _compared(first, FEW_IMAGES, "bf16", part, compiling=mode)
    for part in ("backward", "step"):
        yield _compared(first, first_batch, "bf16", part, compiling="max-autotune-no-cudagraphs")


def _native(name: str, batch: int, ratio: float) -> Subject:
    return Subject(
        model=name,
        contender="native",
        ratio=ratio,
        precision="bf16",
        part="step",
        batch_size=batch,
        image_size=224,
    )


def _compared(
    name: str,
    batch: int,
    precision: str,
    part: str,
    *,
    image_size: int = 224,
    compiling: Compiling = False,
    with_canvas: bool = False,
) -> list[Subject]:
    """Native beside dense masking; of whole steps also beside a ViT-MAE and the dense model."""
    first = dataclasses.replace(
        _native(name, batch, RATIO),
        precision=precision,
        part=part,
        image_size=image_size,
        compiling=compiling,
    )
    found = [first, dataclasses.replace(first, contender="masked_dense")]
    if with_canvas:
        found.insert(1, dataclasses.replace(first, is_on_canvas=True))
    if part == "step":
        found.append(dataclasses.replace(first, contender="vit_mae"))
        found.append(dataclasses.replace(first, contender="dense", ratio=0.0))
    return found


def run_suite(
    device: torch.device,
    *,
    is_small: bool,
    seconds: float = 520.0,
    tell: Callable[[str], None] = print,
    keep: Callable[[Found], None] = lambda found: None,
) -> Found:
    """Measure until all is done or the seconds are spent; `keep` gets what there is by group.

    A card that is lent, or a job, may end before the suite does. A contender that fails is left
    out, and what is being measured when the seconds are spent is ended, where the system can.
    """
    deadline = time.monotonic() + seconds
    found = Found([], {}, [])
    for subjects in groups(device, is_small=is_small):
        first = subjects[0]
        mode = f", compiled ({first.compiling})" if first.is_compiled else ""
        title = f"{first.model}, {first.precision}, {first.part}, {first.batch_size} images{mode}"
        if time.monotonic() >= deadline:
            found.left_out.append(f"{title}: no time left")
            continue
        tell(f"{title}: {len(subjects)} contenders ...")
        try:
            with _ending_at(deadline), multiplying(first.precision):
                if first.precision not in found.rates:
                    found.rates[first.precision] = matmul_rates(device, first.precision)
                rounds = FEW_ROUNDS if is_small else ROUNDS
                found.rows.extend(_measure(subjects, rounds, device, title, found.left_out))
        except _TimeIsUp:
            found.left_out.append(f"{title}: no time left to end it")
        except Exception as error:
            found.left_out.append(_failed(title, error))
        _forget(device, first.is_compiled)
        keep(found)
    keep(found)
    return found


@contextlib.contextmanager
def _ending_at(deadline: float) -> Iterator[None]:
    """Raise _TimeIsUp inside at this time of the clock; where there are no timers, never."""
    if not hasattr(signal, "setitimer") or (
        threading.current_thread() is not threading.main_thread()
    ):
        yield
        return
    is_inside = True

    def ring(*_: object) -> None:
        if is_inside:
            raise _TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(deadline - time.monotonic(), 1e-3), AGAIN)
        yield
    finally:
        is_inside = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _forget(device: torch.device, was_compiled: bool) -> None:
    """Free what a group leaves behind."""
    if was_compiled:
        torch.compiler.reset()  # compiled code keeps its models and the memory of its graphs
    gc.collect()  # an optimizer is part of cycles
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _failed(title: str, error: Exception) -> str:
    said = " ".join(str(error).split())[:200]
    return f"{title}: {type(error).__name__}: {said}"


def _measure(
    subjects: Sequence[Subject], rounds: int, device: torch.device, title: str, left_out: list[str]
) -> list[Row]:
    """Return the rows of those subjects that run; say of the others why they do not."""
    works: dict[Subject, Callable[[], None]] = {}
    for subject in subjects:
        try:
            work = prepare(subject, device)
            work()
        except Exception as error:  # memory, or a compiler that is missing
            left_out.append(_failed(f"{title}, {subject.title}", error))
            _forget(device, was_compiled=False)
        else:
            works[subject] = work
    running = list(works)
    times = dict(zip(running, time_in_turns(list(works.values()), rounds, device), strict=True))
    found = []
    for subject, work in works.items():
        partner = partner_of(subject, running)
        measurement = Measurement(
            subject=subject,
            times=times[subject],
            versus=times[subject].ratio(times[partner]) if partner else None,
            partner=partner.contender if partner else None,
            peak_bytes=_peak(work, device),
            flops=None if subject.contender in ALTERNATIVES else counted_flops(subject),
        )
        found.append(Row(measurement, *profiled(work, device)))
    return found


def profiled(work: Callable[[], None], device: torch.device) -> tuple[float | None, int, int]:
    """Return the device's busy seconds, launches and waits of one step.

    On a CPU operations of torch stand for launches.
    """
    on_card = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]
    with profile(activities=activities) as recorded:
        work()
        if on_card:
            torch.cuda.synchronize(device)
    launches, waits, busy = 0, -1 if on_card else 0, 0.0  # the last wait is this function's
    for event in recorded.key_averages():
        is_launch = event.key in LAUNCHES if on_card else event.key.startswith("aten::")
        launches += event.count * is_launch
        waits += event.count * (event.key in WAITS)
        if event.device_type == torch.autograd.DeviceType.CUDA:
            busy += event.self_device_time_total / 1e6
    return busy if on_card else None, launches, waits


def _peak(work: Callable[[], None], device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before


def as_markdown(machine: str, found: Found) -> str:
    """Return the table with the machine's name, the date and what was left out."""
    table = as_table([row.measurement for row in found.rows], found.rates).splitlines()
    ends = [" busy ms | launches | waits |", " --- | --- | --- |"]
    for row in found.rows:
        busy = "" if row.busy_seconds is None else f"{row.busy_seconds * 1e3:.1f}"
        ends.append(f" {busy} | {row.launches} | {row.waits} |")
    lines = [f"# {machine}", "", datetime.now(timezone.utc).strftime("%Y-%m-%d"), ""]
    lines += [f"- matrix products, {name}: {max(by.values()) / 1e12:.2f} TFLOP/s"
              for name, by in found.rates.items()]  # fmt: skip
    lines += ["", *(line + end for line, end in zip(table, ends, strict=True))]
    lines += ["", *(f"- left out: {reason}" for reason in found.left_out)] if found.left_out else []
    return "\n".join(lines) + "\n"


def write_suite(folder: Path, machine: str, found: Found) -> None:
    """Write suite.json and suite.md."""
    content: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine,
        "matmul_flops_per_second": found.rates,
        "left_out": found.left_out,
        "rows": [dataclasses.asdict(row) for row in found.rows],
    }
    write_text(folder / "suite.json", json.dumps(content, indent=1) + "\n")
    write_text(folder / "suite.md", as_markdown(machine, found))
