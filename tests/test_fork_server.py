"""The processes that tests start: what they share with the one that asks, and what they do not."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from functools import partial
from pathlib import Path

import pytest
from fork_server import CRASHED, SERVER, ForkServer
from real_runs import wait_for


def tell(words: list[str]) -> int:
    """Print what a process is given and return how many words that is."""
    print(*words, os.getcwd(), os.environ["COLOUR"], flush=True)
    return len(words)


def test_a_process_has_the_folder_and_environment_of_the_one_that_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLOUR", "green")
    for more, colour in (({}, "green"), ({"COLOUR": "blue"}, "blue")):
        pid = SERVER.start(partial(tell, ["a", "b"]), tmp_path / "log", more)
        assert SERVER.wait(pid) == 2
        assert (tmp_path / "log").read_text().splitlines()[-1] == f"a b {tmp_path} {colour}"


def count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def test_a_process_has_one_thread_however_many_the_asking_one_has(tmp_path: Path) -> None:
    done = threading.Event()
    others = [threading.Thread(target=done.wait) for _ in range(3)]
    for other in others:
        other.start()
    assert count_threads() > 3
    assert SERVER.wait(SERVER.start(count_threads, tmp_path / "log")) == 1
    done.set()


def hold_the_lock_of_progress_bars(told: Path) -> None:
    from tqdm import tqdm

    with tqdm.get_lock():
        told.touch()
        signal.pause()


def print_a_bar() -> None:
    from tqdm import tqdm

    assert list(tqdm([1, 2])) == [1, 2]


def test_a_killed_process_takes_no_lock_with_it(tmp_path: Path) -> None:
    pid = SERVER.start(partial(hold_the_lock_of_progress_bars, tmp_path / "told"), tmp_path / "log")
    wait_for(tmp_path / "told", pid)
    os.kill(pid, signal.SIGKILL)
    assert SERVER.wait(pid) == -signal.SIGKILL
    assert SERVER.wait(SERVER.start(print_a_bar, tmp_path / "log"), 60) == 0


def warn() -> None:
    warnings.warn("look out", FutureWarning, stacklevel=1)


def test_warnings_are_errors_there_as_they_are_here(tmp_path: Path) -> None:
    assert SERVER.wait(SERVER.start(warn, tmp_path / "log")) == CRASHED
    assert "FutureWarning: look out" in (tmp_path / "log").read_text().splitlines()[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        assert SERVER.wait(SERVER.start(warn, tmp_path / "log")) == 0


def test_a_process_that_hangs_is_ended_and_leaves_where_it_hung(tmp_path: Path) -> None:
    pid = SERVER.start(signal.pause, tmp_path / "log")
    with pytest.raises(AssertionError, match=r"did not end within 0\.1 s"):
        SERVER.wait(pid, 0.1)
    assert "Fatal Python error: Aborted" in (tmp_path / "log").read_text()


def test_what_cannot_be_found_by_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"<lambda> runs in another process and must stand at the"):
        SERVER.start(lambda: None, tmp_path / "log")


@pytest.fixture
def other_server() -> ForkServer:
    """A server that may come to harm and imports nothing."""
    return ForkServer()


def kill_the_parent() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


def test_a_server_that_dies_fails_one_test_and_is_replaced(
    other_server: ForkServer, tmp_path: Path
) -> None:
    pid = other_server.start(kill_the_parent, tmp_path / "log")
    try:
        with pytest.raises(AssertionError, match="the server of processes has died"):
            other_server.wait(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
    assert other_server.wait(other_server.start(sys.getrefcount, tmp_path / "log")) == CRASHED
    other_server.close()


def test_processes_end_with_the_server(other_server: ForkServer, tmp_path: Path) -> None:
    pid = other_server.start(signal.pause, tmp_path / "log")
    other_server.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
