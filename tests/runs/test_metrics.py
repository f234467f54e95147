"""metrics.jsonl: every line once, whole lines only, whatever happens between."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from fcmae.runs.metrics import MetricsLog, read_metrics


@pytest.fixture
def told() -> list[str]:
    return []


def make_log(folder: Path, told: list[str], **settings: Any) -> MetricsLog:
    return MetricsLog(folder, report=told.append, **{"tensorboard": False, **settings})


def steps(folder: Path) -> list[int]:
    return [line["step"] for line in read_metrics(folder / "metrics.jsonl")]


def test_lines_are_json_with_their_step_first(tmp_path: Path, told: list[str]) -> None:
    log = make_log(tmp_path, told)
    log.log(3, {"loss": 0.5, "note": "x"})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 3, "loss": 0.5, "note": "x"}\n'


def test_nan_and_infinity_become_null(tmp_path: Path, told: list[str]) -> None:
    make_log(tmp_path, told).log(1, {"a": math.nan, "b": math.inf, "c": 1.0})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text) == {"step": 1, "a": None, "b": None, "c": 1.0}


def test_a_continued_log_drops_what_comes_after_the_checkpoint(
    tmp_path: Path, told: list[str]
) -> None:
    log = make_log(tmp_path, told)
    for step in (0, 1, 2, 2, 3, 4):
        log.log(step, {"loss": 1.0})
    log = make_log(tmp_path, told, resumed_step=2)
    assert steps(tmp_path) == [0, 1, 2, 2]
    log.log(3, {"loss": 2.0})
    assert steps(tmp_path) == [0, 1, 2, 2, 3]


def test_a_new_run_drops_everything(tmp_path: Path, told: list[str]) -> None:
    make_log(tmp_path, told).log(0, {"loss": 1.0})
    make_log(tmp_path, told)
    assert steps(tmp_path) == []


def test_a_line_cut_short_by_a_kill_is_not_read_and_is_written_again(
    tmp_path: Path, told: list[str]
) -> None:
    make_log(tmp_path, told).log(1, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert steps(tmp_path) == [1]
    log = make_log(tmp_path, told, resumed_step=5)
    log.log(2, {"loss": 1.0})
    assert steps(tmp_path) == [1, 2]
    assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"\n")


def test_damage_in_the_middle_costs_no_other_line(tmp_path: Path, told: list[str]) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"step": 1}\n\x00\x00\xff\n[1]\n{"loss": 1}\n{"step": "x"}\n{"step": 2}\n'
    )
    assert steps(tmp_path) == [1, 2]
    make_log(tmp_path, told, resumed_step=2)
    assert steps(tmp_path) == [1, 2]


def test_lines_wait_while_the_disk_refuses_and_are_written_in_order_later(
    tmp_path: Path, told: list[str]
) -> None:
    log = make_log(tmp_path, told)
    log.log(1, {})
    (tmp_path / "metrics.jsonl").rename(tmp_path / "aside")
    (tmp_path / "metrics.jsonl").mkdir()  # refuses, also for root
    log.log(2, {})
    log.log(3, {})
    assert len(told) == 1
    assert "cannot be written (Is a directory); training goes on" in told[0]
    assert [json.loads(line)["step"] for line in log.force()] == [2, 3]
    (tmp_path / "metrics.jsonl").rmdir()
    (tmp_path / "aside").rename(tmp_path / "metrics.jsonl")
    log.log(4, {})
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert log.force() == []


@pytest.mark.parametrize("written", [0, 1, 2])
def test_unwritten_lines_of_a_checkpoint_come_back_once(
    written: int, tmp_path: Path, told: list[str]
) -> None:
    lines = ['{"step": 2}\n', '{"step": 3}\n']
    text = '{"step": 1}\n' + "".join(lines[:written])  # a kill came after some were written
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 4}\n')
    log = make_log(tmp_path, told, resumed_step=3, unwritten=lines)
    log.log(4, {})
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_a_file_that_was_removed_is_begun_again(tmp_path: Path, told: list[str]) -> None:
    log = make_log(tmp_path, told)
    log.log(1, {})
    os.unlink(tmp_path / "metrics.jsonl")
    log.log(2, {})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 2}\n'


def test_tensorboard_gets_the_numbers(tmp_path: Path, told: list[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = make_log(tmp_path, told, tensorboard=True)
    log.log(1, {"loss": 0.5, "note": "x", "gone": None})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5)]


def test_tensorboard_that_cannot_be_written_does_not_stop_the_log(
    tmp_path: Path, told: list[str]
) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    log = make_log(tmp_path, told, tensorboard=True)
    log.log(1, {"loss": 1.0})
    log.close()
    assert steps(tmp_path) == [1]
    assert len(told) == 1
    assert "there are no TensorBoard events" in told[0]
