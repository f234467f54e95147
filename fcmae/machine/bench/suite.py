"""The whole table of one machine: every backend, precision and size, within a time budget.

Written so that the first hour on a card measures everything: time, memory, share of the measured
matrix rate, launches and waits of a step, beside the dense timm model, a ViT-MAE, dense masking.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fcmae.machine.bench.measuring import Measurement, partner_of
from fcmae.machine.bench.output import as_table
from fcmae.machine.bench.roofline import encoder_flops, matmul_rates
from fcmae.machine.bench.subjects import ALTERNATIVES, Subject, prepare
from fcmae.machine.bench.timing import time_in_turns
from fcmae.model.precision import multiplying
from fcmae.runs.durable import write_text

BUDGET_SECONDS = 520.0  # of 540; what is left out is listed
ROUNDS, FEW_ROUNDS = 7, 1
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


@dataclasses.dataclass(frozen=True)
class Row:
    """What was found of one subject.

    Attributes:
        measurement: time, and what it is compared with.
        uses_triton: whether FCMAE_TRITON=1 was set.
        launches: kernels of a step; on a CPU the operations of torch.
        waits: how often the host waited for the device in a step; 0 on a CPU.
    """

    measurement: Measurement
    uses_triton: bool
    launches: int
    waits: int


def groups(device: torch.device, *, is_small: bool) -> Iterator[tuple[list[Subject], bool]]:
    """Yield subjects that take turns, most wanted first, and whether Triton's kernels run.

    `is_small` is the same table in shape on the smallest model and images, for machines that build.
    """
    on_card = device.type == "cuda"
    precisions = ("bf16", "tf32") if on_card and not is_small else ("fp32", "bf16")
    sizes = [("convnextv2_tiny", 128), ("convnextv2_atto", 256), ("convnextv2_base", 64)]
    sizes += [("convnextv2_large", 32)]
    pixels = 224
    ratios: tuple[float, ...] = (0.6, 0.4, 0.75, 0.9)
    if is_small:
        sizes, pixels, ratios = [("convnextv2_atto", 2)], 64, (0.5,)
    compiled = (False, True) if on_card else (False,)
    for name, batch in sizes:
        for precision in precisions:
            for part in ("backward", "step"):
                made = [
                    Subject(
                        model=name,
                        contender=contender,
                        ratio=ratio,
                        precision=precision,
                        part=part,
                        batch_size=batch,
                        image_size=pixels,
                        is_compiled=is_compiled,
                    )
                    for is_compiled in compiled
                    for contender, ratio in _contenders(part, ratios, name)
                ]
                yield made, False
                if on_card:
                    native = [s for s in made if s.contender == "native" and not s.is_compiled]
                    yield native, True


def _contenders(part: str, ratios: Sequence[float], name: str) -> list[tuple[str, float]]:
    """The first ratio beside everything; the others of the native backend, of tiny and atto."""
    found = [("native", ratios[0]), ("masked_dense", ratios[0])]
    if name in ("convnextv2_tiny", "convnextv2_atto"):
        found += [("native", ratio) for ratio in ratios[1:]]
    return [*found, ("vit_mae", ratios[0]), ("dense", 0.0)] if part == "step" else found


def run_suite(
    device: torch.device, *, is_small: bool, tell: Callable[[str], None] = print
) -> tuple[list[Row], dict[str, dict[str, float]], list[str]]:
    """Measure until all is done or the budget is spent.

    Returns the rows, the rates of matrix products by precision, and what was left out and why.
    """
    began = time.monotonic()
    rates: dict[str, dict[str, float]] = {}
    rows: list[Row] = []
    left_out: list[str] = []
    for subjects, uses_triton in groups(device, is_small=is_small):
        first = subjects[0]
        title = f"{first.model}, {first.precision}, {first.part}{', Triton' * uses_triton}"
        if time.monotonic() - began > BUDGET_SECONDS:
            left_out.append(f"{title}: no time left")
            continue
        if first.precision not in rates:
            with multiplying(first.precision):
                rates[first.precision] = matmul_rates(device, first.precision)
        tell(f"{title}: {len(subjects)} contenders ...")
        rounds = FEW_ROUNDS if is_small else ROUNDS
        with _triton(is_on=uses_triton), multiplying(first.precision):
            try:
                rows += _measure(subjects, uses_triton, rounds, device)
            except (RuntimeError, ImportError) as error:  # memory, or a compiler that is missing
                said = " ".join(str(error).split())[:200]
                left_out.append(f"{title}: {type(error).__name__}: {said}")
        gc.collect()  # an optimizer is part of cycles
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows, rates, left_out


def _measure(
    subjects: list[Subject], uses_triton: bool, rounds: int, device: torch.device
) -> list[Row]:
    works = [prepare(subject, device) for subject in subjects]
    times = dict(zip(subjects, time_in_turns(works, rounds, device), strict=True))
    found = []
    for subject, work in zip(subjects, works, strict=True):
        partner = partner_of(subject, subjects)
        launches, waits = count_calls(work, device)
        measurement = Measurement(
            subject=subject,
            times=times[subject],
            versus=times[subject].ratio(times[partner]) if partner else None,
            partner=partner.contender if partner else None,
            peak_bytes=_peak(work, device),
            flops=None if subject.contender in ALTERNATIVES else encoder_flops(subject),
        )
        found.append(Row(measurement, uses_triton, launches, waits))
    return found


def count_calls(work: Callable[[], None], device: torch.device) -> tuple[int, int]:
    """Return launches and waits of one step; on a CPU operations of torch stand for launches."""
    on_card = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]
    with profile(activities=activities) as recorded:
        work()
    launches = waits = 0
    for event in recorded.key_averages():
        is_launch = event.key in LAUNCHES if on_card else event.key.startswith("aten::")
        launches += event.count * is_launch
        waits += event.count * (event.key in WAITS)
    return launches, waits


def _peak(work: Callable[[], None], device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before


@contextlib.contextmanager
def _triton(*, is_on: bool) -> Iterator[None]:
    before = os.environ.get("FCMAE_TRITON")
    os.environ["FCMAE_TRITON"] = "1" if is_on else "0"
    try:
        yield
    finally:
        os.environ.pop("FCMAE_TRITON")
        if before is not None:
            os.environ["FCMAE_TRITON"] = before


def as_markdown(
    machine: str, rows: list[Row], rates: dict[str, dict[str, float]], left_out: list[str]
) -> str:
    """Return the table with the machine's name, the date and what was left out."""
    table = as_table([row.measurement for row in rows], rates).splitlines()
    ends = [" Triton | launches | waits |", " --- | --- | --- |"]
    ends += [f" {'yes' if r.uses_triton else ''} | {r.launches} | {r.waits} |" for r in rows]
    lines = [f"# {machine}", "", datetime.now(timezone.utc).strftime("%Y-%m-%d"), ""]
    lines += [f"- matrix products, {name}: {max(by.values()) / 1e12:.2f} TFLOP/s"
              for name, by in rates.items()]  # fmt: skip
    lines += ["", *(line + end for line, end in zip(table, ends, strict=True))]
    lines += ["", *(f"- left out: {reason}" for reason in left_out)] if left_out else []
    return "\n".join(lines) + "\n"


def write_suite(
    folder: Path,
    machine: str,
    rows: list[Row],
    rates: dict[str, dict[str, float]],
    left_out: list[str],
) -> None:
    """Write suite.json and suite.md."""
    content: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine,
        "matmul_flops_per_second": rates,
        "left_out": left_out,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    write_text(folder / "suite.json", json.dumps(content, indent=1) + "\n")
    write_text(folder / "suite.md", as_markdown(machine, rows, rates, left_out))
