"""What a run writes while it trains: metrics.jsonl, one line per event, and trackers."""

import functools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fcmae.runs.durable import sync
from fcmae.runs.events import ScalarEvents
from fcmae.runs.looking import Looks
from fcmae.runs.trackers import Tracker

# The only values that a rerun, on another machine or with other processes, changes.
WALL_CLOCK = frozenset({"seconds", "images_per_second", "effective_batch", "processes"})


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file; what is no complete line of one is left out."""
    if not path.exists():
        return []
    lines = map(_parse, path.read_bytes().split(b"\n")[:-1])
    return [line for line in lines if line is not None]


class MetricsLog:
    """Appends lines to metrics.jsonl, and tells TensorBoard and other trackers their scalars.

    Args:
        folder: the run folder.
        resumed_step: lines of later steps are dropped: they will be written again.
        unwritten: what `force` returned when that step's checkpoint was made.
        tensorboard: write events beside the lines.
        trackers: what opens each of the others, by its title; see fcmae.runs.trackers.
        report: called with one sentence when something cannot be written; training goes on, and
            lines wait in memory until the disk takes them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        resumed_step: int = -1,
        unwritten: Sequence[str] = (),
        tensorboard: bool = True,
        trackers: Mapping[str, Callable[[], Tracker]] | None = None,
        report: Callable[[str], None] = print,
    ) -> None:
        self._path = folder / "metrics.jsonl"
        self._report = report
        self._is_failing = False
        kept = _lines_until(self._path, resumed_step)
        self._size = len(kept)
        self._waiting = _not_at_the_end_of(kept, unwritten)
        self._flush()
        self._looks = Looks(report)
        where = folder / "tensorboard"
        wanted: dict[str, Callable[[], Tracker]] = dict(trackers or {})
        if tensorboard:
            wanted["TensorBoard events"] = lambda: ScalarEvents(where, resumed_step + 1)
        self._trackers: dict[str, Tracker] = {}
        for title, opener in wanted.items():
            opened = self._looks.look(f"there are no {title}: opening them", opener)
            if opened is not None:
                self._trackers[title] = opened

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Write one line {"step": step, **values}; numbers go to TensorBoard and the like, too.

        NaN and infinity, which JSON does not know, become null.
        """
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        self._waiting.append(json.dumps({"step": step, **finite}) + "\n")
        self._flush()
        numbers = {n: float(v) for n, v in finite.items() if isinstance(v, (int, float))}
        for title, tracker in list(self._trackers.items()):
            what = f"{title} stop here: writing those of step {step}"
            if not self._looks.look(what, functools.partial(_added, tracker, step, numbers)):
                del self._trackers[title]

    def force(self) -> list[str]:
        """Force the lines to disk; return those that the disk does not take, for the checkpoint.

        A checkpoint must not outlive the lines before it.
        """
        self._flush()
        try:
            sync(self._path)
        except OSError as error:
            self._fail(error)
        return list(self._waiting)

    def close(self) -> None:
        """Write what waits and close the files."""
        self._flush()
        while self._trackers:
            title, tracker = self._trackers.popitem()
            self._looks.look(f"closing the {title}", tracker.close)

    def _flush(self) -> None:
        text = "".join(self._waiting).encode()
        try:
            with open(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
                # A full disk may have taken half a line: begin again where the last good one ends.
                self._size = file.truncate(min(self._size, file.seek(0, os.SEEK_END)))
                file.seek(self._size)
                file.write(text)
        except OSError as error:
            self._fail(error)
            return
        self._is_failing = False
        self._size += len(text)
        self._waiting.clear()

    def _fail(self, error: OSError) -> None:
        if not self._is_failing:
            self._report(
                f"{self._path}: cannot be written ({error.strerror}); training goes on and "
                "the lines wait in memory."
            )
        self._is_failing = True


def _added(tracker: Tracker, step: int, numbers: dict[str, float]) -> bool:
    tracker.add(step, numbers)
    return True


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except ValueError:
        return None
    is_line = isinstance(values, dict) and isinstance(values.get("step"), int)
    return values if is_line else None


def _lines_until(path: Path, step: int) -> bytes:
    """Return the file up to its last line of a step that is not later."""
    end = position = 0
    content = path.read_bytes() if path.exists() else b""
    for line in content.split(b"\n")[:-1]:
        position += len(line) + 1
        values = _parse(line)
        if values is not None and values["step"] <= step:
            end = position
    return content[:end]


def _not_at_the_end_of(kept: bytes, lines: Sequence[str]) -> list[str]:
    """Return the last of `lines`: those that were not written after all before a kill."""
    for count in range(len(lines), 0, -1):
        if kept.endswith("".join(lines[:count]).encode()):
            return list(lines[count:])
    return list(lines)
