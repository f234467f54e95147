"""A lock keeps others out, waits when asked, and is missed in one sentence where there is none."""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from pathlib import Path

from fork_server import SERVER
from pictures_on_disk import write_pictures
from real_runs import pretrain_arguments, wait_for

from fcmae.errors import MISTAKE
from fcmae.runs.locks import take_lock


def hold(path: Path, told: Path, until: Path) -> None:
    """Lock a file, say so, and let go when a file appears."""
    with path.open("a") as file:
        assert take_lock(file)
        told.touch()
        while not until.exists():
            pass


def test_a_lock_keeps_others_out_until_its_process_is_over(tmp_path: Path) -> None:
    path, told, until = tmp_path / "lock", tmp_path / "told", tmp_path / "until"
    pid = SERVER.start(partial(hold, path, told, until), tmp_path / "log")
    wait_for(told, pid)
    with path.open("a") as file:
        assert not take_lock(file)
        until.touch()
        assert take_lock(file, wait=True)
        assert SERVER.wait(pid) == 0, (tmp_path / "log").read_text()


def run_without_locks(words: list[str]) -> int:
    """Be a process on a system such as Windows, where importing fcntl fails."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "fcmae"]:
        del sys.modules[name]  # what was imported before has seen fcntl
    sys.modules["fcntl"] = None  # type: ignore[assignment]
    return int(import_module("fcmae.__main__").main(words))


def test_a_system_without_locks_is_told_in_one_sentence(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", 4)
    words = pretrain_arguments(tmp_path / "data", tmp_path / "run", 9)
    log = tmp_path / "log"
    assert SERVER.wait(SERVER.start(partial(run_without_locks, words), log)) == MISTAKE
    assert "Traceback" not in log.read_text()
    assert log.read_text().splitlines()[-1] == (
        "fcmae: error: this system (linux) has no POSIX locks of files, so that two processes "
        "could spoil one folder; use Linux, on Windows for example in WSL."
    )
