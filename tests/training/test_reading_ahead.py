"""A run whose batches are read ahead, as on a GPU, is the same run: stopped, with faults.

A processor stands for the GPU, whose arithmetic repeats bit for bit.
"""

from __future__ import annotations

import contextlib
import signal
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures_on_disk import write_pictures
from real_runs import assert_same_run, final_state, pretrain_arguments, run, signal_in
from undrawn import without_pictures

from fcmae.errors import DONE, INTERRUPTED
from fcmae.runs.metrics import read_metrics

STEPS = 8
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_pictures(folder, 13)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def ahead() -> None:
    """Let the processor be the device whose batches are read ahead, and print when they are."""
    from fcmae.data.transfer import DeviceBatches
    from fcmae.training import loop

    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    streams = types.SimpleNamespace(
        Stream=lambda device: stream,
        current_stream=lambda device: stream,
        stream=lambda side: contextlib.nullcontext(),
    )
    tensor: Any = torch.Tensor
    to = tensor.to
    tensor.to = lambda self, *where, **how: to(
        self, *(CPU if place == GPU else place for place in where), **how
    )
    tensor.pin_memory = lambda self: self
    tensor.record_stream = lambda self, used_on: None

    class Ahead(DeviceBatches):
        def __init__(self, batches: Any, device: torch.device) -> None:
            assert device == CPU
            super().__init__(batches, GPU, streams)

        def read_ahead(self) -> None:
            print("read ahead", flush=True)
            super().read_ahead()

    loop.DeviceBatches = Ahead  # type: ignore[misc]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_reads_ahead_is_that_which_does_not(
    workers: int, data: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    changes = {
        "train__batch_size": 2,
        "train__accumulate": 2,
        "data__workers": workers,
        "data__max_skipped_share": 0.2,
        "log__every_steps": 1,
        "checkpoint__every_steps": 100,
    }
    arguments = pretrain_arguments(data, tmp_path / "ahead", STEPS, **changes)
    stopping = signal_in("loss", 5, signal.SIGTERM)
    how = [ahead, without_pictures]
    assert run(arguments, log, before=[stopping, *how]) == INTERRUPTED, log.read_text()
    # What was read and not used counts for nothing.
    step = final_state(tmp_path / "ahead")["progress"]["step"]
    assert 0 < step < STEPS
    assert log.read_text().count("read ahead") == 2 * step
    assert run(arguments, log, before=how) == DONE, log.read_text()
    # Not behind the last: the readers stay to the end.
    assert log.read_text().count("read ahead") == 2 * STEPS - 1

    undisturbed = pretrain_arguments(data, tmp_path / "plain", STEPS, **changes)
    assert run(undisturbed, log, before=without_pictures) == DONE, log.read_text()
    assert_same_run(tmp_path / "ahead", tmp_path / "plain")
    skipped = [
        [line["skipped_files"] for line in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("ahead", "plain")
    ]
    assert skipped[0] == skipped[1]
    assert skipped[0][-1] == 1
