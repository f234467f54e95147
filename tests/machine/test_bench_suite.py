"""The whole table of a machine, in small: what it holds, and what it says of what it left out."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fcmae.__main__ import main
from fcmae.errors import DONE
from fcmae.machine.bench import roofline, suite, timing, vit_mae
from fcmae.machine.bench.measuring import partner_of
from fcmae.machine.bench.subjects import prepare
from sparse.backends import native
from sparse.ops import depthwise

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "SIDE", 128)


@pytest.mark.slow
def test_the_suite_runs_to_its_end_and_writes_both_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vit_mae, "DECODER_DEPTH", 1)
    monkeypatch.setattr(timing, "WARMUP_ROUNDS", 0)
    options = ["--device", "cpu", "--suite", "--small", "--threads", "0"]
    assert main(["bench", *options, "--output", str(tmp_path)]) == DONE
    written = json.loads((tmp_path / "suite.json").read_text())
    assert written["machine"]
    assert written["left_out"] == []
    subjects = [row["measurement"]["subject"] for row in written["rows"]]
    found = {(s["contender"], s["precision"], s["part"]) for s in subjects}
    assert len(found) == len(subjects) == 2 * (2 + 4)
    assert {s["contender"] for s in subjects} == {"native", "masked_dense", "vit_mae", "dense"}
    assert all(row["launches"] > 100 for row in written["rows"])
    assert written["matmul_flops_per_second"].keys() == {"fp32", "bf16"}
    table = (tmp_path / "suite.md").read_text()
    assert table.splitlines()[0] == f"# {written['machine']}"
    rows = [line for line in table.splitlines() if line.startswith("| convnextv2_atto")]
    assert len(rows) == len(subjects)
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1
    assert table in capsys.readouterr().out


def test_what_finds_no_time_or_no_memory_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(suite, "prepare", fail)
    kept: list[int] = []
    found = suite.run_suite(
        CPU,
        is_small=True,
        tell=lambda line: None,
        keep=lambda found: kept.append(len(found.left_out)),
    )
    assert found.rows == []
    assert kept == [2, 6, 8, 12, 12]
    title = "convnextv2_atto, fp32, backward, 2 images, native"
    assert found.left_out[0] == f"{title}: RuntimeError: out of memory"


def test_what_finds_no_time_is_in_the_files(tmp_path: Path) -> None:
    found = suite.run_suite(
        CPU,
        is_small=True,
        seconds=-1,
        tell=lambda line: None,
        keep=lambda found: suite.write_suite(tmp_path, "a machine", found),
    )
    assert len(found.left_out) == 4
    assert all(line.endswith("no time left") for line in found.left_out)
    assert json.loads((tmp_path / "suite.json").read_text())["left_out"] == found.left_out
    assert (tmp_path / "suite.md").read_text().count("no time left") == 4


def test_a_contender_that_fails_leaves_the_others_their_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever it raises: a compiler has errors of its own."""

    def prepare_all_but_dense_masking(subject: Any, device: torch.device) -> Any:
        if subject.contender == "masked_dense":
            return lambda: 1 / 0
        return lambda: None

    monkeypatch.setattr(suite, "prepare", prepare_all_but_dense_masking)
    found = suite.run_suite(CPU, is_small=True, tell=lambda line: None)
    assert len(found.left_out) == 4
    assert "masked_dense: ZeroDivisionError: " in found.left_out[0]
    contenders = [row.measurement.subject.contender for row in found.rows]
    assert contenders == 2 * ["native", "native", "vit_mae", "dense"]
    assert found.rows[0].measurement.partner is None
    assert found.rows[1].measurement.partner == "dense"


def test_what_runs_when_the_time_is_up_is_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Even where what it calls catches every exception, as a search for the fastest kernel does."""
    began: list[str] = []

    def prepare_slow(subject: Any, device: torch.device) -> Any:
        began.append(subject.contender)
        return (lambda: None) if subject.part == "backward" else stay

    def stay() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(Exception):
                time.sleep(0.01)

    monkeypatch.setattr(suite, "prepare", prepare_slow)
    # Fast on a busy machine, too: the time must be up in the second group.
    monkeypatch.setattr(suite, "matmul_rates", lambda device, precision: {"torch": 1e9})
    monkeypatch.setattr(suite, "profiled", lambda work, device: (None, 1, 0))
    monkeypatch.setattr(suite, "counted_flops", lambda subject: None)
    before, handler = time.monotonic(), signal.getsignal(signal.SIGALRM)
    found = suite.run_suite(
        CPU,
        is_small=True,
        seconds=3.0,
        tell=lambda line: None,
        keep=lambda found: suite.write_suite(tmp_path, "a machine", found),
    )
    assert time.monotonic() - before < 30
    assert began == ["native", "masked_dense", "native"]
    assert [row.measurement.subject.part for row in found.rows] == ["backward", "backward"]
    said = [line.partition(": ")[2] for line in found.left_out]
    assert said == ["no time left to end it", "no time left", "no time left"]
    written = json.loads((tmp_path / "suite.json").read_text())
    assert (written["left_out"], len(written["rows"])) == (found.left_out, 2)
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_the_table_of_a_card_holds_all_that_is_asked_of_it() -> None:
    subjects = [
        s for members in suite.groups(torch.device("cuda"), is_small=False) for s in members
    ]
    assert {s.model.removeprefix("convnextv2_") for s in subjects} == {
        "atto", "tiny", "base", "large"
    }  # fmt: skip
    assert {s.precision for s in subjects} == {"bf16", "tf32"}
    assert {s.ratio for s in subjects if s.contender == "native"} == {0.4, 0.6, 0.75, 0.9}
    assert {s.is_compiled for s in subjects} == {False, True}
    on_canvas = [s for s in subjects if s.is_on_canvas]
    assert {s.contender for s in on_canvas} == {"native"}
    assert {partner_of(s, subjects).contender for s in on_canvas} == {"masked_dense", "dense"}


def test_modes_of_compiling_come_behind_all_else() -> None:
    """A search for the fastest kernels takes minutes: less wanted lines must not wait for it."""
    modes = [members[0].compiling for members in suite.groups(torch.device("cuda"), is_small=False)]
    assert {"default", "reduce-overhead", "max-autotune-no-cudagraphs", False} == set(modes)
    assert modes[-2:] == 2 * ["max-autotune-no-cudagraphs"]
    first = modes.index("reduce-overhead")
    assert first > len(modes) - 10
    assert set(modes[:first]) == {False, "default"}


def test_a_subject_on_the_canvas_leaves_the_switch_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FCMAE_TRITON", "1")
    seen: list[str] = []
    subject = next(suite.groups(CPU, is_small=True))[0]
    convolve = depthwise.depthwise_convolution

    def look(*arguments: Any) -> torch.Tensor:
        seen.append(os.environ["FCMAE_TRITON"])
        return convolve(*arguments)

    monkeypatch.setattr(native, "depthwise_convolution", look)
    for is_on_canvas in (True, False):
        prepare(dataclasses.replace(subject, is_on_canvas=is_on_canvas), CPU)()
    assert set(seen[: len(seen) // 2]) == {"0"}
    assert set(seen[len(seen) // 2 :]) == {"1"}
