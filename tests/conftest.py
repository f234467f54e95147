"""One torch thread per process: two spinning OpenMP teams slow each other by an order."""

import ctypes
import gc
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# The console, which many tests run in their own process, keeps freed memory on purpose, unless a
# variable of malloc is set: then it leaves malloc alone. This is glibc's default of one.
os.environ.setdefault("MALLOC_ARENA_TEST", "8")

import pytest
import torch
from backend_contract import small_convnext
from disk_room import keep_nothing_free
from fork_server import SERVER
from undrawn import draw_nothing

torch.set_num_threads(1)
keep_nothing_free()


@pytest.fixture(autouse=True)
def no_process_outlives_its_test() -> Iterator[None]:
    """A test that fails between starting a process and waiting for it leaves none behind."""
    yield
    SERVER.end_all()


GROWN_BYTES = 100_000_000
resident_bytes = 0  # when all objects were looked at last


def _of_this_process(*names: str) -> list[int]:
    """Return figures of the kernel on this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    return [1024 * int(status.split(f"{name}:")[1].split()[0]) for name in names]


def _look_at_all() -> None:
    global resident_bytes
    gc.unfreeze()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    resident_bytes = _of_this_process("VmRSS")[0]


def _give_back() -> None:
    """Give back what is no longer needed.

    What is left after a file of tests is out of the collections to come, which would look at it
    in vain, until that is much: then all is looked at, also what was frozen when it was in use.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    if _of_this_process("VmRSS")[0] > resident_bytes + GROWN_BYTES:
        _look_at_all()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def memory_is_given_back(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the tests of a file no longer need, those of the next have.

    FCMAE_MEMORY_TABLE names a file for the peak of each file of tests and what is left after it.
    """
    table = os.environ.get("FCMAE_MEMORY_TABLE")
    if table:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    yield
    _give_back()
    if table:
        peak, left = _of_this_process("VmHWM", "VmRSS")
        with open(table, "a") as file:
            file.write(f"{peak / 1e9:.2f} GB, {left / 1e9:.2f} left: {request.node.nodeid}\n")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """For the slow tests alone, import no file without the word: all files take many seconds."""
    if config.option.markexpr == "slow" and collection_path.suffix == ".py":
        return True if "slow" not in collection_path.read_text("utf-8") else None
    return None


def pytest_collection_finish() -> None:
    """Keep libraries and the collected tests, a million objects, out of every collection."""
    _look_at_all()
    gc.freeze()


def pytest_unconfigure() -> None:
    """End the server of processes with the session."""
    SERVER.close()


@pytest.fixture(scope="module")
def undrawn() -> Iterator[None]:
    """Draw nothing of the runs in this process, for files that look at none of that."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        draw_nothing(monkeypatch)
        yield


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let FCMAE build a small ConvNeXt under any name."""

    def create(name: str, *, in_chans: int, stem_stride: int, drop_path: float) -> torch.nn.Module:
        return small_convnext(
            in_chans=in_chans, patch_size=stem_stride, drop_path_rate=drop_path
        ).float()

    monkeypatch.setattr("fcmae.model.autoencoder.create_backbone", create)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say on what the GPU suite ran, and how much of it, for whoever keeps the result."""
    if config.option.markexpr != "gpu":
        return
    cards = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    counts = {
        outcome: len(terminalreporter.stats.get(outcome, []))
        for outcome in ("passed", "failed", "skipped")
    }
    listed = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    where = ", ".join(cards) or "no GPU, so nothing was covered"
    terminalreporter.write_line(f"GPU suite: {listed}; {where}; torch {torch.__version__}.")
