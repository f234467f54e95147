"""The whole table of a machine, in small: what it holds, and what it says of what it left out."""

from __future__ import annotations

import dataclasses
import json
import os
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
    assert kept == [1, 2, 3, 4]
    assert found.left_out[0] == "convnextv2_atto, fp32, backward: RuntimeError: out of memory"
    found = suite.run_suite(CPU, is_small=True, seconds=-1, tell=lambda line: None)
    assert len(found.left_out) == 4
    assert all(line.endswith("no time left") for line in found.left_out)


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
