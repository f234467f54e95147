"""What a run writes while it trains: metrics.jsonl, one line per event, and TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fcmae.durable import write_text

WALL_CLOCK = frozenset({"seconds", "images_per_second"})  # the only values that a rerun changes


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a metrics file; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return [line for line in lines if isinstance(line, dict) and "step" in line]


class MetricsLog:
    """Appends lines to metrics.jsonl and scalars to TensorBoard.

    Args:
        folder: the run folder.
        resumed_step: lines of later steps are dropped: they will be written again.
        tensorboard: write events beside the lines.
        report: called with one sentence when something cannot be written; training goes on, and
            lines wait in memory until the disk takes them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        resumed_step: int = 0,
        tensorboard: bool = True,
        report: Callable[[str], None] = print,
    ) -> None:
        self._path = folder / "metrics.jsonl"
        self._report = report
        self._waiting: list[str] = []
        self._is_failing = False
        kept = [line for line in read_metrics(self._path) if line["step"] <= resumed_step]
        write_text(self._path, "".join(map(_to_line, kept)))
        self._size = self._path.stat().st_size
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(
                str(folder / "tensorboard"), purge_step=resumed_step + 1, flush_secs=30
            )

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Write one line {"step": step, **values}; numbers go to TensorBoard, too."""
        self._waiting.append(_to_line({"step": step, **values}))
        self._flush()
        if self._writer is not None:
            try:
                for name, value in values.items():
                    if isinstance(value, (int, float)):
                        self._writer.add_scalar(name, value, step)
            except OSError as error:
                self._report(f"TensorBoard events cannot be written ({error}); they stop here.")
                self._writer = None

    def close(self) -> None:
        """Write what waits and close the files."""
        self._flush()
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                self._report(f"the last TensorBoard events are lost ({error}).")

    def _flush(self) -> None:
        text = "".join(self._waiting).encode()
        try:
            with self._path.open("r+b") as file:
                # A full disk may have taken half a line: begin again where the last good one ends.
                file.truncate(self._size)
                file.seek(self._size)
                file.write(text)
        except OSError as error:
            if not self._is_failing:
                self._report(
                    f"{self._path}: cannot be written ({error.strerror}); training goes on and "
                    "the lines wait in memory."
                )
            self._is_failing = True
            return
        self._is_failing = False
        self._size += len(text)
        self._waiting.clear()


def _to_line(values: dict[str, Any]) -> str:
    return json.dumps(values) + "\n"
