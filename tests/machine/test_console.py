"""What a command asks of its process: open files, and letters that a screen does not have."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from fcmae.errors import FAILED, MISTAKE, status_of
from fcmae.machine.console import without_collections

ROOT = Path(__file__).resolve().parents[2]
SHOW = """
import os, sys
from fcmae.machine.console import show_all_letters
show_all_letters()
print("\\u00e9", os.fsdecode(b"\\xc3\\xa9"), os.fsdecode(b"\\xff"))
"""


def test_garbage_is_collected_again_after_loading_also_after_an_error() -> None:
    were_enabled: list[bool] = []

    def fail() -> None:
        were_enabled.append(gc.isenabled())
        raise ImportError

    with pytest.raises(ImportError), without_collections():
        fail()
    assert were_enabled == [False]
    assert gc.isenabled()
    gc.disable()
    try:
        with without_collections():
            pass
        assert not gc.isenabled()  # somebody else wants none
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"LC_ALL": "C", "PYTHONUTF8": "0"}, b"\\xe9 \xc3\xa9 \xff\n"),
        ({"PYTHONUTF8": "1"}, b"\xc3\xa9 \xc3\xa9 \xff\n"),
    ],
    ids=["ASCII", "UTF-8"],
)
def test_names_are_printed_as_their_bytes_and_other_letters_as_escapes(
    settings: dict[str, str], expected: bytes
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHOW],
        env={**os.environ, "PYTHONPATH": str(ROOT), **settings},
        capture_output=True,
        check=False,
    )
    assert done.stdout == expected, done.stderr


def test_a_soft_limit_of_open_files_is_raised_as_far_as_the_system_lets_it() -> None:
    script = (
        "import resource; from fcmae.machine.console import ENOUGH_FILES, allow_open_files\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 100)); allow_open_files()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "(100, 100)\n"
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 64


def test_what_the_system_refuses_is_one_sentence_with_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        (tmp_path / "absent" / "file").open("wb")

    assert status_of(work) == FAILED
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"{tmp_path}/absent/file: No such file or directory; it is gone" in told


def test_a_locale_without_the_letters_of_a_name_is_one_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work() -> None:
        "\u00e9t\u00e9".encode("ascii")

    assert status_of(work) == MISTAKE
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "the locale of this process has no such letters; set PYTHONUTF8=1" in told


def test_an_error_of_a_library_without_a_number_keeps_its_traceback() -> None:
    def work() -> None:
        raise OSError("a bug")

    with pytest.raises(OSError, match="a bug"):
        status_of(work)


def test_a_full_disk_behind_the_terminal_is_one_sentence() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fcmae", "pretrain", "--help"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == FAILED
    assert done.stderr.count("\n") == 1
    assert "No space left on device; make room there" in done.stderr
