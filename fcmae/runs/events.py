"""TensorBoard events of scalars, written at once and by the caller's thread.

The writer of the tensorboard package hands them to a thread of its own, whose errors (a full disk,
a folder that was removed) come out as a traceback and nowhere else.
"""

import os
import socket
import time
from pathlib import Path
from typing import Any


class ScalarEvents:
    """One new file of events; what TensorBoard has of `purge_step` and later counts no more.

    Args:
        folder: created if it is missing.
        purge_step: the first step that is written again.

    Raises:
        OSError: from every method: the file cannot be written.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event: Any = event_pb2.Event
        self._summary: Any = summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._records: Any = RecordWriter((folder / name).open("ab"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(file_version="brain.Event:2")
        self._write(step=purge_step, session_log=start)
        self._records.flush()

    def add(self, step: int, values: dict[str, float]) -> None:
        """Write the scalars of a step."""
        scalars = [
            self._summary.Value(tag=name, simple_value=value) for name, value in values.items()
        ]
        self._write(step=step, summary=self._summary(value=scalars))
        self._records.flush()

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _write(self, **values: Any) -> None:
        event = self._event(wall_time=time.time(), **values)
        self._records.write(event.SerializeToString())
