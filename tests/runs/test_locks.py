"""A lock keeps others out, waits when asked, and is missed in one sentence where there is none."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

from fork_server import SERVER
from pictures_on_disk import write_pictures
from real_runs import pretrain_arguments, wait_for

from fcmae.errors import MISTAKE
from fcmae.runs.locks import take_lock

HIDE_AND_RUN = """
import sys
sys.modules["fcntl"] = None  # as on Windows: importing it fails
from fcmae.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


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


def test_a_system_without_locks_is_told_in_one_sentence(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", 4)
    more = {"model__name": "convnextv2_atto"}
    words = pretrain_arguments(tmp_path / "data", tmp_path / "run", 9, **more)
    command = [sys.executable, "-c", HIDE_AND_RUN, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == MISTAKE
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "fcmae: error: this system (linux) has no POSIX locks of files, so that two processes "
        "could spoil one folder; use Linux, on Windows for example in WSL."
    )
