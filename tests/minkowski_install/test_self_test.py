"""The self-test that ends an installation passes on a right engine and fails on a wrong one."""

from __future__ import annotations

import minkowski_engine
import pytest
import torch
from torch import Tensor

from fcmae.minkowski_install import child, self_test

pytestmark = pytest.mark.minkowski


@pytest.fixture(autouse=True)
def _need_minkowski_engine() -> None:
    minkowski_engine.need()


def test_the_installed_engine_passes_in_a_process_of_its_own() -> None:
    done = child.run_module("self_test")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if " on cpu: " in line]
    assert [line.split(" on ")[0] for line in lines] == ["7x7 depthwise", "2x2 stride 2"]
    assert all(line.endswith("at most 1e-06: passed") for line in lines)


def test_kernels_in_another_order_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def transposed(weight: Tensor, shape: torch.Size, name: str) -> Tensor:
        return weight.permute(2, 3, 1, 0).reshape(shape)  # the column fastest

    monkeypatch.setattr(self_test, "to_authors_layout", transposed)
    assert self_test.main() == 1
    assert capsys.readouterr().out.count("FAILED") >= 2
