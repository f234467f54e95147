"""Triton's kernels: equal to the definition under Triton's interpreter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compiled_graph import operations_of_one_graph

from sparse.ops import depthwise_triton

CASES = Path(__file__).parents[2] / "support" / "triton_cases.py"


def passed_cases(*names: str) -> int:
    """Run tests of triton_cases.py in a process that interprets Triton from the start.

    Returns how many passed; any other outcome fails here, with what the process printed.
    """
    pytest.importorskip("triton")
    # Options of the session around this one may not suit it, such as a place for its cache.
    around = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        + [f"{CASES}::{name}" for name in names],
        env=around | {"TRITON_INTERPRET": "1", "FCMAE_TRITON": "1"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stdout[-3000:]
    found = re.search(r"(\d+) passed", child.stdout)
    assert found, child.stdout[-3000:]
    return int(found[1])


def test_kernels_equal_the_definition_under_the_interpreter() -> None:
    passed = passed_cases(
        "test_values_and_gradients_equal_autograd_on_masked_maps",
        "test_hidden_values_are_never_read",
        "test_gelu_and_grn_equal_the_formula",
        "test_torch_compile_captures_one_graph_with_the_kernels_in_it",
    )
    assert passed >= 4  # at least one case of each


@pytest.mark.slow
def test_the_encoder_on_the_kernels_passes_the_contract() -> None:
    name = "TestTriton::test_outputs_and_all_gradients_equal_the_naive_reference"
    assert passed_cases(*(f"{name}[{case}]" for case in ("V2", "unsorted visible patches"))) == 2


def test_a_cpu_gets_the_kernels_under_the_interpreter_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton")
    blocks = torch.ones(1, 1, 1, 1, 1)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delenv("FCMAE_TRITON", raising=False)
    assert not depthwise_triton.is_available(blocks)  # slow beyond use: only when asked for
    monkeypatch.setenv("FCMAE_TRITON", "1")
    assert depthwise_triton.is_available(blocks)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert not depthwise_triton.is_available(blocks)


def test_the_kernels_are_taken_as_long_as_they_beat_the_canvas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Held against the milliseconds of tiny's depthwise layers on an H100, 19 of 49 seen."""
    stages = (  # blocks; canvas: values, gradient by the weights; kernels: the same
        (3, 0.51, 0.37, 0.25, 0.54),
        (3, 0.28, 0.20, 0.13, 0.25),
        (9, 0.15, 0.14, 0.07, 0.14),
        (3, 0.09, 0.10, 0.04, 0.08),
    )
    # The gradient by the input is one more convolution.
    canvas = sum(blocks * (2 * values + weights) for blocks, values, weights, *_ in stages)
    kernels = sum(blocks * (2 * values + weights) for blocks, *_, values, weights in stages)
    monkeypatch.delenv("FCMAE_TRITON", raising=False)
    for visible in range(1, 50):
        is_faster = kernels * visible / 19 <= canvas
        assert depthwise_triton.pays(visible, 49) == is_faster
    monkeypatch.setenv("FCMAE_TRITON", "1")
    assert depthwise_triton.pays(49, 49)


def test_torch_compile_captures_one_graph_under_autocast() -> None:
    assert "convolve_patches" not in operations_of_one_graph()
