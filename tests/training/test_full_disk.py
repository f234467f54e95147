"""A disk that is full for a while costs no line and no step; one that stays full stops the run."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures_on_disk import write_pictures
from real_runs import (
    assert_same_run,
    before_step,
    final_state,
    lines_without_clock,
    pretrain_arguments,
    run,
)
from tiny_run import make_config
from undrawn import without_pictures

from fcmae.errors import DONE, FAILED
from fcmae.runs.folder import RunFolder
from fcmae.runs.metrics import read_metrics

STEPS = 12
NO_SPACE = "No space left on device"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_pictures(folder, 13)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 4 MiB; the run's checkpoints are half a MiB each."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        reason = done.stderr.strip()
    except FileNotFoundError as error:
        reason, done = str(error), None  # type: ignore[assignment]
    if done is None or done.returncode:
        pytest.skip(f"no file system can be mounted here ({reason}); ENOSPC is injected instead")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(place: Path) -> None:
    with open(place / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def full_during(
    saves: range, fill_up: Callable[[], object], make_room: Callable[[], object] | None = None
) -> None:
    """Make the disk full just before some saves of this process and the steps after.

    `saves` counts from 1; room may be made before the first save behind them.
    """
    from fcmae.runs.checkpoints import CheckpointStore

    without_pictures()
    original, calls = CheckpointStore.save, 0

    def save(self: Any, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == saves.start:
            fill_up()
        if calls == saves.stop and make_room is not None:
            make_room()
        return original(self, *args)

    CheckpointStore.save = save  # type: ignore[method-assign]


def inject(saves: range) -> None:
    """Make this process's writes of checkpoints and lines fail for some saves."""
    write, opened = torch.save, os.open

    def write_half(state: Any, file: Any, *args: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, NO_SPACE)

    def refuse_lines(path: Any, *args: Any, **kwargs: Any) -> int:
        if Path(os.fsdecode(path)).name == "metrics.jsonl":
            raise OSError(errno.ENOSPC, NO_SPACE)
        return opened(path, *args, **kwargs)

    def fill_up() -> None:
        torch.save, os.open = write_half, refuse_lines

    def make_room() -> None:
        torch.save, os.open = write, opened

    full_during(saves, fill_up, make_room)


def put_a_file_where_the_results_go(run_dir: Path) -> None:
    """Let the training end with something in the way of the folder of results."""
    from fcmae.pretraining.task import Pretraining

    without_pictures()
    original = Pretraining.begin

    def begin(self: Any, run: Any) -> None:
        (run_dir / "export").write_text("in the way")
        original(self, run)

    Pretraining.begin = begin  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    arguments = pretrain_arguments(data, folder / "undisturbed", STEPS)
    assert run(arguments, folder / "log", before=without_pictures) == DONE
    return folder / "undisturbed"


def test_a_disk_that_fills_up_and_is_emptied_again_costs_nothing(
    data: Path, undisturbed: Path, tmp_path: Path, small_disk: Path
) -> None:
    log, filler = tmp_path / "log", small_disk / "filler"
    arguments = pretrain_arguments(data, small_disk / "run", STEPS)
    full = partial(full_during, range(2, 4), partial(fill, small_disk), filler.unlink)
    assert run(arguments, log, before=full) == DONE, log.read_text()
    told = log.read_text()
    assert told.count(f"checkpoints: cannot be written ({NO_SPACE}); training goes on.") == 2
    assert_same_run(small_disk / "run", undisturbed)


def test_a_disk_that_stays_full_stops_the_run_and_leaves_the_last_good_checkpoint(
    data: Path, undisturbed: Path, tmp_path: Path, small_disk: Path
) -> None:
    log = tmp_path / "log"
    arguments = pretrain_arguments(data, small_disk / "run", STEPS, checkpoint__max_failures=2)
    full = partial(full_during, range(2, 99), partial(fill, small_disk))
    assert run(arguments, log, before=full) == FAILED, log.read_text()
    assert (
        "checkpoints: 2 checkpoints in a row could not be written; stopped at step 9. Make room"
    ) in log.read_text()
    assert final_state(small_disk / "run")["progress"]["step"] == 3
    (small_disk / "filler").unlink()
    assert run(arguments, log, before=without_pictures) == DONE
    assert lines_without_clock(small_disk / "run") == lines_without_clock(undisturbed)


def test_injected_failures_cost_nothing(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = pretrain_arguments(data, tmp_path / "run", STEPS)
    assert run(arguments, log, before=partial(inject, range(2, 4))) == DONE, log.read_text()
    told = log.read_text()
    assert told.count(f"checkpoints: cannot be written ({NO_SPACE}); training goes on.") == 2
    assert f"metrics.jsonl: cannot be written ({NO_SPACE}); training goes on and the" in told
    assert_same_run(tmp_path / "run", undisturbed)


@pytest.mark.parametrize(("failures", "step"), [(1, 3), (3, 9), (9, STEPS)])
def test_injected_failures_stop_the_run_after_so_many_and_at_its_end(
    failures: int, step: int, data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    arguments = pretrain_arguments(data, tmp_path / "run", STEPS, checkpoint__max_failures=failures)
    assert run(arguments, log, before=partial(inject, range(1, 99))) == FAILED
    assert f"could not be written; stopped at step {step}. Make room" in log.read_text()
    assert not (tmp_path / "run" / "finished.txt").exists()
    assert run(arguments, log, before=without_pictures) == DONE
    assert_same_run(tmp_path / "run", undisturbed)


def test_results_that_cannot_be_written_are_no_success_and_made_later(
    data: Path, tmp_path: Path
) -> None:
    log, arguments = tmp_path / "log", pretrain_arguments(data, tmp_path / "run", 3)
    (tmp_path / "run").mkdir()

    before = partial(put_a_file_where_the_results_go, tmp_path / "run")
    assert run(arguments, log, before=before) == FAILED, log.read_text()
    assert "All steps are taken and saved." in log.read_text()
    os.unlink(tmp_path / "run" / "export")
    assert run(arguments, log, before=without_pictures) == DONE
    assert (tmp_path / "run" / "export" / "encoder.safetensors").exists()
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 3


def remove_in(step: int, run_dir: Path) -> None:
    """Remove the run folder before a step, counted from 1, is taken."""
    without_pictures()
    before_step(step, lambda _: shutil.rmtree(run_dir))


@pytest.mark.parametrize("step", [1, 5])
def test_a_run_folder_that_is_removed_stops_the_run_and_is_not_made_again(
    step: int, data: Path, tmp_path: Path
) -> None:
    log, run_dir = tmp_path / "log", tmp_path / "run"
    arguments = pretrain_arguments(data, run_dir, STEPS, log__tensorboard="true")
    removing = partial(remove_in, step, run_dir)
    assert run(arguments, log, before=removing) == FAILED, log.read_text()
    assert f"run.dir: {run_dir} was removed or replaced while this run was" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert not run_dir.exists()


def test_a_run_folder_that_another_run_took_over_is_left_alone(data: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(make_config(tmp_path))
    assert not folder.is_lost()
    shutil.rmtree(tmp_path / "run")
    assert folder.is_lost()
    other = RunFolder(tmp_path / "run")
    other.open(make_config(tmp_path))
    assert folder.is_lost()
    assert not other.is_lost()
    folder.close()
    other.close()
