"""Triton's kernels: opt-in, and equal to the definition under Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparse import triton_depthwise

CASES = Path(__file__).with_name("triton_cases.py")


def run_cases(*names: str) -> None:
    """Run tests of triton_cases.py in a process that interprets Triton from the start."""
    pytest.importorskip("triton")
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        + [f"{CASES}::{name}" for name in names],
        env=os.environ | {"TRITON_INTERPRET": "1", "FCMAE_TRITON": "1"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stdout[-3000:]
    assert " passed" in child.stdout


def test_kernels_equal_the_definition_under_the_interpreter() -> None:
    run_cases(
        "test_values_and_gradients_equal_autograd_on_masked_maps",
        "test_hidden_values_are_never_read",
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", ["V2", "unsorted visible patches"])
def test_the_encoder_on_the_kernels_passes_the_contract(case: str) -> None:
    run_cases(
        f"TestTriton::test_outputs_and_all_gradients_equal_the_naive_reference[{case}]",
    )


def test_nobody_gets_the_kernels_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = torch.ones(1, 1, 1, 1, 1)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delenv("FCMAE_TRITON", raising=False)
    assert not triton_depthwise.is_available(blocks)
    monkeypatch.setenv("FCMAE_TRITON", "1")
    monkeypatch.delenv("TRITON_INTERPRET")
    assert not triton_depthwise.is_available(blocks)  # not on CUDA
