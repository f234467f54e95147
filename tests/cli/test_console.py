"""The console: commands, help, exit statuses, and mistakes that never become a traceback."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fcmae.__main__ import main, run_command
from fcmae.cli import COMMANDS
from fcmae.errors import DONE, FAILED, MISTAKE, ConfigError, DiskError, NonFiniteLossError

ROOT = Path(__file__).resolve().parents[2]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == DONE
    shown = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n  {name} " in shown


def test_no_command_shows_the_help_and_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == MISTAKE
    assert "usage: fcmae COMMAND" in capsys.readouterr().out


def test_an_unknown_command_is_refused_with_a_near_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["pretain"]) == MISTAKE
    assert "unknown command 'pretain'. Did you mean pretrain?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("mask.ratio: no."), MISTAKE),
        (NonFiniteLossError("the loss is nan."), FAILED),
        (DiskError("no room."), FAILED),
    ],
)
def test_errors_become_one_line_and_a_status(
    error: Exception,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import fcmae.cli.pretrain

    def fail(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(fcmae.cli.pretrain, "run", fail)
    assert run_command("pretrain", []) == status
    assert capsys.readouterr().err == f"fcmae: error: {error}\n"


@pytest.mark.parametrize("numbers", [2**45, 10**18])
def test_memory_that_cannot_be_had_is_one_sentence(
    numbers: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import fcmae.cli.pretrain

    make = torch.empty if numbers == 2**45 else lambda count: bytearray(count)
    monkeypatch.setattr(fcmae.cli.pretrain, "run", lambda arguments: make(numbers))
    assert run_command("pretrain", []) == FAILED
    shown = capsys.readouterr().err
    assert re.fullmatch(r"fcmae: error: there is not enough memory \(.*\)\. Lower .*\n", shown)


def test_other_errors_of_torch_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    import fcmae.cli.pretrain

    def fail(arguments: list[str]) -> int:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(fcmae.cli.pretrain, "run", fail)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run_command("pretrain", [])


def test_the_version_is_shown_without_importing_torch() -> None:
    script = (
        "import sys, fcmae.__main__ as m; m.main(['--version']); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("fcmae ")


@pytest.mark.parametrize(
    ("command", "steps", "where"),
    [
        (["pretrain.py"], "1", "data.path"),  # found after seconds of imports
        (["-m", "fcmae", "pretrain"], "0", "train.steps"),  # found before them
    ],
)
def test_a_mistake_in_a_real_process_is_one_sentence_and_status_2(
    command: list[str], steps: str, where: str, tmp_path: Path
) -> None:
    arguments = ["--run.dir", str(tmp_path / "run"), "--data.path", "absent"]
    arguments += ["--train.steps", steps]
    done = subprocess.run(
        [sys.executable, *command, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == MISTAKE
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(f"fcmae: error: {where}: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
