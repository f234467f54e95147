"""A run that is killed with SIGKILL, whenever, and started again is bitwise the undisturbed one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import kill_run
import pytest
from fork_server import PATIENCE_SECONDS
from pictures_on_disk import write_pictures
from real_runs import (
    assert_same_run,
    assert_same_state,
    final_state,
    pretrain_arguments,
    run,
    start,
    wait,
    wait_for,
)
from undrawn import without_pictures

STEPS = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_pictures(folder, 13)
    return folder


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run and the seconds it took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    assert run(pretrain_arguments(data, folder / "run", STEPS), folder / "log") == 0
    return folder / "run", time.monotonic() - started


@pytest.mark.parametrize(("workers", "kills"), [(0, 8), (1, 7), (3, 7)])
def test_a_run_killed_at_random_moments_is_the_undisturbed_one(
    workers: int, kills: int, data: Path, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    expected, seconds = undisturbed
    arguments = pretrain_arguments(data, tmp_path / "run", STEPS, data__workers=workers)
    log, rng = tmp_path / "log", random.Random(workers)
    killed = kill_run.kill_again_and_again(
        arguments, tmp_path / "run", log, kills, rng, life=seconds / 3
    )
    assert killed == kills
    assert run(arguments, log) == 0
    assert_same_run(tmp_path / "run", expected)


@pytest.mark.parametrize("stride", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_before_any_change_of_the_disk_loses_nothing(
    stride: int, data: Path, tmp_path: Path
) -> None:
    log, cheap = tmp_path / "log", {"checkpoint__keep_last": 1}
    expected = pretrain_arguments(data, tmp_path / "expected", 6, **cheap)
    assert run(expected, log, before=without_pictures) == 0
    # A run that stands at its first checkpoint, and makes and prunes the second in its next life.
    begun = tmp_path / "begun"
    pid = start(pretrain_arguments(data, begun, 6, **cheap), log, before=without_pictures)
    wait_for(begun / "checkpoints" / "step-00000003", pid)
    os.kill(pid, signal.SIGKILL)
    wait(pid)
    assert final_state(begun)["progress"]["step"] == 3
    deaths = 0
    for event in range(1, 100, stride):
        again = tmp_path / f"event-{event}"
        shutil.copytree(begun, again)
        arguments = pretrain_arguments(data, again, 6, **cheap)
        before = [without_pictures, kill_run.kill_at_event(event)]
        status = run(arguments, log, before=before)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        deaths += 1
        assert run(arguments, log, before=without_pictures) == 0
        assert_same_run(again, tmp_path / "expected")
        assert not list(again.rglob(".partial-*")), event
        assert (again / "checkpoints" / "last").read_text() == "step-00000006\n"
        shutil.rmtree(again)
    assert deaths >= 25 // stride


def test_the_comparison_sees_one_changed_bit(undisturbed: tuple[Path, float]) -> None:
    expected, other = final_state(undisturbed[0]), final_state(undisturbed[0])
    assert_same_state(other, expected)
    weights = next(iter(other["optimization"]["optimizer"]["state"].values()))["exp_avg"]
    weights.view(-1).numpy().view("int32")[0] ^= 1
    with pytest.raises(AssertionError, match="exp_avg"):
        assert_same_state(other, expected)


@pytest.mark.slow
def test_the_script_that_kills_a_run_many_times(capsys: pytest.CaptureFixture[str]) -> None:
    kill_run.main(kills=30, workers=1)
    assert "killed 30 times: the same, bit for bit" in capsys.readouterr().out


def children(pid: int) -> list[int]:
    """Return the ids of the processes that a process has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        if is_running(int(folder.name)) and _status(int(folder.name))[1] == str(pid):
            found.append(int(folder.name))
    return found


def is_running(pid: int) -> bool:
    try:
        return _status(pid)[0] != "Z"  # ended, and nobody has asked how
    except OSError:
        return False


def _status(pid: int) -> list[str]:
    """Return state, parent's id and so on of a process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def test_the_readers_of_a_killed_run_end_with_it(data: Path, tmp_path: Path) -> None:
    arguments = pretrain_arguments(data, tmp_path / "run", 100_000, data__workers=2)
    pid = start(arguments, tmp_path / "log")
    end = time.monotonic() + PATIENCE_SECONDS
    while len(readers := children(pid)) < 2:
        assert time.monotonic() < end, (tmp_path / "log").read_text()
        time.sleep(0.1)
    try:
        time.sleep(1)  # in the middle of training
        os.kill(pid, signal.SIGSTOP)
        time.sleep(1)  # they read ahead until nobody takes more
        os.kill(pid, signal.SIGKILL)
        wait(pid)
        end = time.monotonic() + 60
        while any(map(is_running, readers)):
            assert time.monotonic() < end, "readers outlive their run"
            time.sleep(0.1)
    finally:
        for reader in filter(is_running, readers):
            os.kill(reader, signal.SIGKILL)
