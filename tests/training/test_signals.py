"""Signals stop a run within one step, with a checkpoint; a second one leaves at once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from pictures_on_disk import write_pictures
from real_runs import (
    assert_same_run,
    final_state,
    pretrain_arguments,
    run,
    signal_in,
    without_pictures,
)

from fcmae.__main__ import main
from fcmae.errors import DONE, INTERRUPTED
from fcmae.training.signals import StopRequest

STEPS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_pictures(folder, 13)
    return folder


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    arguments = pretrain_arguments(data, folder / "run", STEPS)
    assert run(arguments, folder / "log", before=without_pictures) == DONE
    return folder / "run"


@pytest.mark.parametrize(
    ("number", "method", "last_step"),
    [
        (signal.SIGTERM, "_compute_loss", 5),  # in step 5, which is finished
        (signal.SIGINT, "_note_loss", 6),  # after the work of step 5: one more
        (signal.SIGUSR1, "_prepare", 1),  # before the first step
        (signal.SIGUSR2, "_compute_loss", STEPS),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else str(value),
)
def test_a_signal_stops_within_one_step_and_the_run_goes_on_exactly(
    number: signal.Signals,
    method: str,
    last_step: int,
    data: Path,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    arguments, log = pretrain_arguments(data, tmp_path / "run", STEPS), tmp_path / "log"
    call = {"_compute_loss": last_step, "_note_loss": last_step - 1, "_prepare": 1}[method]
    assert run(arguments, log, before=signal_in(method, call, number)) == INTERRUPTED
    assert final_state(tmp_path / "run")["progress"]["step"] == last_step
    told = log.read_text()
    assert f"{number.name}: stopping after this step, with a checkpoint; once more leaves" in told
    assert f"{number.name}: stopped after step {last_step}." in told
    assert "Start the same command again" in told
    assert run(arguments, log, before=without_pictures) == DONE
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_second_signal_leaves_at_once_and_harms_nothing(
    data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    arguments, log = pretrain_arguments(data, tmp_path / "run", STEPS), tmp_path / "log"
    before = signal_in("_compute_loss", 5, signal.SIGTERM, signal.SIGINT)
    assert run(arguments, log, before=before) == 128 + signal.SIGINT
    assert "SIGINT: leaving at once." in log.read_text()
    assert final_state(tmp_path / "run")["progress"]["step"] == 3  # the one before
    assert run(arguments, log, before=without_pictures) == DONE
    assert_same_run(tmp_path / "run", undisturbed)


def test_handlers_of_before_come_back_and_the_latest_signal_is_known() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    with StopRequest() as stop:
        assert stop.name is None
        os.kill(os.getpid(), signal.SIGUSR2)
        assert stop.name == "SIGUSR2"
    assert {number: signal.getsignal(number) for number in before} == before
    assert StopRequest.latest == "SIGUSR2"


def test_ctrl_c_outside_of_the_training_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import fcmae.cli.embed

    def interrupt(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(fcmae.cli.embed, "run", interrupt)
    assert main(["embed"]) == 130
    assert capsys.readouterr().err == "fcmae: error: interrupted.\n"
