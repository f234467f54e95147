"""One torch thread per process: two spinning OpenMP teams slow each other by an order."""

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from backend_contract import small_convnext
from fork_server import SERVER

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_process_outlives_its_test() -> Iterator[None]:
    """A test that fails between starting a process and waiting for it leaves none behind."""
    yield
    SERVER.end_all()


def pytest_unconfigure() -> None:
    """End the server of processes with the session."""
    SERVER.close()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let FCMAE build a small ConvNeXt under any name."""

    def create(name: str, *, in_chans: int, stem_stride: int, drop_path: float) -> torch.nn.Module:
        return small_convnext(
            in_chans=in_chans, patch_size=stem_stride, drop_path_rate=drop_path
        ).float()

    monkeypatch.setattr("fcmae.model.autoencoder.create_backbone", create)
