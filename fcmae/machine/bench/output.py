"""Results of a benchmark as a table, as JSON and as pictures."""

import dataclasses
import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fcmae.machine.bench.measuring import Measurement
from fcmae.machine.bench.subjects import Subject
from fcmae.runs.durable import write_atomically, write_text
from fcmae.settings.bench import BenchSettings

MIB = 2**20
HEADER = ("model", "part", "precision", "batch", "px", "contender", "ratio", "ms", "spread",
          "images/s", "time", "roofline", "peak MiB")  # fmt: skip


def as_table(results: Sequence[Measurement], rates: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table; `time` is over that of the partner, named in brackets."""
    rows = [HEADER, tuple("---" for _ in HEADER)]
    for result in results:
        subject, best = result.subject, max(rates[result.subject.precision].values())
        share = result.flops / result.times.median / best if result.flops else None
        rows.append(
            (
                subject.model,
                subject.part,
                subject.precision,
                str(subject.batch_size),
                str(subject.image_size),
                subject.title,
                "" if subject.contender == "dense" else f"{subject.ratio:g}",
                f"{result.times.median * 1e3:.1f}",
                f"{result.times.spread:.0%}",
                f"{result.images_per_second:.1f}",
                f"{result.versus:.2f} ({result.partner})" if result.versus else "",
                f"{share:.0%}" if share else "",
                f"{result.peak_bytes / MIB:.0f}" if result.peak_bytes is not None else "",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    )


def describe_scaling(results: Sequence[Measurement]) -> str:
    """Return, line by line, the time at every further size over that at the first, per contender.

    Ratios are taken round by round, as all sizes take turns.
    """
    first: dict[Subject, Measurement] = {}
    lines = []
    for result in results:
        subject = result.subject
        alike = dataclasses.replace(subject, batch_size=0, image_size=0, threads=0)
        reference = first.setdefault(alike, result)
        if reference is not result:
            lines.append(
                f"{subject.model}, {subject.part}, {subject.precision}, {subject.title}, "
                f"ratio {subject.ratio:g}: "
                f"{_size(subject)} take {result.times.ratio(reference.times):.2f} times as long as "
                f"{_size(reference.subject)}"
            )
    return "\n".join(lines)


def _size(subject: Subject) -> str:
    threads = f" on {subject.threads} thread{'s' * (subject.threads > 1)}" * (subject.threads > 0)
    return f"{subject.batch_size} x {subject.image_size} px{threads}"


def describe_rates(rates: dict[str, dict[str, float]]) -> str:
    """Return the measured matrix products, one line per precision."""
    lines = []
    for precision, by_name in rates.items():
        listed = ", ".join(f"{rate / 1e9:.0f} by {name}" for name, rate in by_name.items())
        lines.append(f"matrix products, {precision}: {listed} GFLOP/s; roofline is the best.")
    return "\n".join(lines)


def write_json(
    path: Path,
    settings: BenchSettings,
    results: Sequence[Measurement],
    rates: dict[str, dict[str, float]],
    machine: str,
) -> None:
    """Write settings, machine, date, rates and every round of every measurement."""
    content: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine,
        "settings": dataclasses.asdict(settings),
        "matmul_flops_per_second": rates,
        "results": [dataclasses.asdict(result) for result in results],
    }
    write_text(path, json.dumps(content, indent=1) + "\n")


def draw(path: Path, results: Sequence[Measurement], part: str) -> None:
    """Draw time and memory of one part against the masking ratio, a line per contender.

    Of several sizes the first is drawn.
    """
    from matplotlib.figure import Figure

    chosen = [
        result
        for result in results
        if result.subject.part == part and _size(result.subject) == _size(results[0].subject)
    ]
    names = list(dict.fromkeys((r.subject.model, r.subject.precision) for r in chosen))
    figure = Figure(figsize=(9, 3.2 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 2, squeeze=False)
    for (model, precision), (time_axis, memory_axis) in zip(names, axes, strict=True):
        group = [r for r in chosen if (r.subject.model, r.subject.precision) == (model, precision)]
        for axis, label, values in (
            (time_axis, "ms", [r.times.median * 1e3 for r in group]),
            (memory_axis, "peak MiB", [(r.peak_bytes or 0) / MIB for r in group]),
        ):
            _draw_lines(axis, group, values)
            axis.set(title=f"{model}, {precision}, {part}", xlabel="masking ratio", ylabel=label)
            axis.set_ylim(bottom=0)
        time_axis.legend(fontsize="small")
    write_atomically(path, lambda partial: figure.savefig(partial, dpi=120))


def _draw_lines(axis: Any, group: list[Measurement], values: list[float]) -> None:
    keys = [r.subject.title for r in group]
    for key in dict.fromkeys(keys):
        points = [
            (result.subject.ratio, value)
            for result, value, its_key in zip(group, values, keys, strict=True)
            if its_key == key
        ]
        if key.startswith("dense"):
            axis.axhline(points[0][1], linestyle="--", color="grey", label=key)
        else:
            axis.plot(*zip(*sorted(points), strict=True), marker="o", label=key)
