"""Signals stop a run within one step, with a checkpoint; a second one leaves at once."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from fork_server import PATIENCE_SECONDS
from pictures_on_disk import write_pictures
from real_runs import assert_same_run, final_state, pretrain_arguments, run, signal_in
from undrawn import without_pictures

from fcmae.__main__ import main
from fcmae.errors import DONE, INTERRUPTED
from fcmae.runs.metrics import read_metrics
from fcmae.training import signals
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
    ("number", "moment", "last_step"),
    [
        (signal.SIGTERM, "loss", 5),  # in step 5, which is finished
        (signal.SIGINT, "step", 6),  # after the work of step 5: one more
        (signal.SIGUSR1, "begin", 1),  # before the first step
        (signal.SIGUSR2, "loss", STEPS),
        (signal.SIGHUP, "loss", 5),  # the terminal was closed
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else str(value),
)
def test_a_signal_stops_within_one_step_and_the_run_goes_on_exactly(
    number: signal.Signals,
    moment: str,
    last_step: int,
    data: Path,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    arguments, log = pretrain_arguments(data, tmp_path / "run", STEPS), tmp_path / "log"
    call = last_step - 1 if moment == "step" else last_step
    assert run(arguments, log, before=signal_in(moment, call, number)) == INTERRUPTED
    assert final_state(tmp_path / "run")["progress"]["step"] == last_step
    told = log.read_text()
    assert f"{number.name}: stopping after this step, with a checkpoint; once more, after" in told
    assert f"{number.name}: stopped after step {last_step}." in told
    assert "Start the same command again" in told
    assert run(arguments, log, before=without_pictures) == DONE
    assert_same_run(tmp_path / "run", undisturbed)


def test_signals_that_come_together_are_one_wish(
    data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    arguments, log = pretrain_arguments(data, tmp_path / "run", STEPS), tmp_path / "log"
    together = (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
    before = signal_in("loss", 5, *together)
    assert run(arguments, log, before=before) == INTERRUPTED
    assert "leaving at once." not in log.read_text()
    assert final_state(tmp_path / "run")["progress"]["step"] == 5
    assert run(arguments, log, before=without_pictures) == DONE
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_later_signal_leaves_at_once_and_harms_nothing(
    data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    arguments, log = pretrain_arguments(data, tmp_path / "run", STEPS), tmp_path / "log"
    before = signal_in("loss", 5, signal.SIGTERM, signal.SIGINT)
    assert run(arguments, log, before=[take_no_time, before]) == 128 + signal.SIGINT
    assert "SIGINT: leaving at once." in log.read_text()
    assert final_state(tmp_path / "run")["progress"]["step"] == 3  # the one before
    assert run(arguments, log, before=without_pictures) == DONE
    assert_same_run(tmp_path / "run", undisturbed)


def take_no_time() -> None:
    signals.REPEAT_SECONDS = 0.0


def be_a_job() -> None:
    StopRequest.never_at_once = True


def test_a_job_of_a_scheduler_is_hurried_by_ctrl_c_alone(
    data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    arguments, log = pretrain_arguments(data, tmp_path / "run", STEPS), tmp_path / "log"
    before = signal_in("loss", 5, signal.SIGUSR2, signal.SIGTERM)
    patient = [take_no_time, be_a_job]
    assert run(arguments, log, before=[*patient, before]) == INTERRUPTED
    assert final_state(tmp_path / "run")["progress"]["step"] == 5
    before = signal_in("loss", 5, signal.SIGUSR2, signal.SIGINT)
    hurried = run(arguments, log, before=[*patient, before])
    assert hurried == 128 + signal.SIGINT
    assert run(arguments, log, before=without_pictures) == DONE
    assert_same_run(tmp_path / "run", undisturbed)


def test_the_user_signal_beside_sigterm_is_the_one_that_counts() -> None:
    for together in ((signal.SIGTERM, signal.SIGUSR2), (signal.SIGUSR2, signal.SIGTERM)):
        with StopRequest():
            for number in together:
                os.kill(os.getpid(), number)
        assert StopRequest.latest == "SIGUSR2"


def test_what_is_asked_before_the_training_stops_the_training() -> None:
    with StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)
        with StopRequest() as stop:
            assert stop.name == "SIGTERM"
    with StopRequest() as stop:
        assert stop.name is None


def test_nohup_keeps_a_run_going_when_its_terminal_is_closed() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.name is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.parametrize("is_ignored", [False, True], ids=["SIGHUP", "SIGTERM after nohup"])
def test_a_closed_terminal_leaves_a_checkpoint(
    is_ignored: bool, data: Path, tmp_path: Path
) -> None:
    """With SIGHUP ignored a run goes on without its terminal, and its status is its own."""
    words = pretrain_arguments(data, tmp_path / "run", 100000, model__name="convnextv2_atto")
    metrics = tmp_path / "run" / "metrics.jsonl"
    main_end, terminal = pty.openpty()
    os.set_blocking(main_end, False)
    process = subprocess.Popen(
        [sys.executable, "-m", "fcmae", *words],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=partial(
            signal.signal, signal.SIGHUP, signal.SIG_IGN if is_ignored else signal.SIG_DFL
        ),
    )
    os.close(terminal)
    said = b""
    end = time.monotonic() + PATIENCE_SECONDS
    while not (metrics.exists() and metrics.read_bytes()):
        assert time.monotonic() < end, said.decode()
        with contextlib.suppress(BlockingIOError):
            said += os.read(main_end, 4096)
        time.sleep(0.01)
    os.close(main_end)  # from now on each write to the terminal is an error
    process.send_signal(signal.SIGHUP)
    if is_ignored:
        lines = len(read_metrics(metrics))
        wait_until(lambda: len(read_metrics(metrics)) > lines + 1, metrics)
        process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(PATIENCE_SECONDS) == INTERRUPTED
    finally:
        process.kill()
    assert final_state(tmp_path / "run")["progress"]["step"] > 0


@pytest.mark.slow
@pytest.mark.ddp
def test_a_run_whose_torchrun_was_killed_stops_with_a_checkpoint(
    data: Path, tmp_path: Path
) -> None:
    words = pretrain_arguments(data, tmp_path / "run", 100000, model__name="convnextv2_atto")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", "-m", "fcmae"]
    with (tmp_path / "log").open("wb") as log:
        torchrun = subprocess.Popen([sys.executable, *launch, *words], stdout=log, stderr=log)
    metrics, lock = tmp_path / "run" / "metrics.jsonl", tmp_path / "run" / "lock"
    wait_until(lambda: metrics.exists() and len(read_metrics(metrics)) > 0, tmp_path / "log")
    orphan = int(lock.read_text().split()[1])
    torchrun.kill()
    torchrun.wait()
    wait_until(lambda: not is_alive(orphan), tmp_path / "log")
    assert "the end of torchrun: stopped after step" in (tmp_path / "log").read_text()
    assert final_state(tmp_path / "run")["progress"]["step"] > 0


def wait_until(is_so: Callable[[], bool], log: Path) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


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
