"""A pretraining goes on with the images that it began with, whatever became of their folder."""

from __future__ import annotations

import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
from pictures_on_disk import write_pictures
from real_runs import assert_same_run, pretrain_arguments, run, run_together, signal_in
from undrawn import without_pictures

from fcmae.errors import DONE, INTERRUPTED, MISTAKE

SCORED = {"evaluate__draws": 3, "evaluate__labels": 6, "evaluate__every_steps": 3}


def make_pictures(folder: Path) -> None:
    for seed, name in enumerate(("left", "right")):
        write_pictures(folder / name, 45, seed=seed)


def command(folder: Path, data: Path | str, **changes: object) -> list[str]:
    return pretrain_arguments(data, folder, 8, **{**SCORED, **changes})


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, the undisturbed run, and one stopped after step 4."""
    folder = tmp_path_factory.mktemp("stopped")
    make_pictures(folder / "data")
    log, data = folder / "log", folder / "data"
    assert run(command(folder / "undisturbed", data), log, before=without_pictures) == DONE
    before = [partial(os.chdir, folder), signal_in("step", 4, signal.SIGTERM)]
    assert run(command(folder / "run", "data"), log, before=before) == INTERRUPTED, log.read_text()
    return folder


def test_a_relative_path_then_an_absolute_one_and_a_new_file(stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped / "run", tmp_path / "run")
    shutil.copytree(stopped / "data", tmp_path / "data")
    write_pictures(tmp_path / "data" / "centre", 3, seed=5)
    log = tmp_path / "log"
    again = command(tmp_path / "run", tmp_path / "data")
    assert run(again, log, before=without_pictures) == DONE, log.read_text()
    said = " ".join(log.read_text().split())
    assert "3 new images wait for another run." in said
    assert "gone" not in said
    assert said.count("the images have moved") == said.count("the held-out images have moved") == 1
    assert_same_run(tmp_path / "run", stopped / "undisturbed")


def test_a_folder_that_shrank_below_a_batch_is_one_sentence(stopped: Path, tmp_path: Path) -> None:
    for name in ("run", "data"):
        shutil.copytree(stopped / name, tmp_path / name)
    for name in ("images.jsonl", "held_out.jsonl"):  # as if it had begun here
        file = tmp_path / "run" / name
        file.write_text(file.read_text().replace(str(stopped), str(tmp_path)))
    for path in sorted((tmp_path / "data").rglob("*.png"))[2:]:
        path.unlink()
    log = tmp_path / "log"
    assert run(command(tmp_path / "run", tmp_path / "data"), log) == MISTAKE
    said = log.read_text()
    assert "of the run's 86 images are gone" in said
    assert "Traceback" not in said
    assert sum(line.startswith("fcmae: ") for line in said.splitlines()) == 1


@pytest.mark.ddp
def test_processes_that_train_together_agree_on_the_images_of_then(
    stopped: Path, tmp_path: Path
) -> None:
    shutil.copytree(stopped / "run", tmp_path / "run")
    shutil.copytree(stopped / "data", tmp_path / "moved")
    write_pictures(tmp_path / "moved" / "centre", 3, seed=5)
    log = tmp_path / "log"
    split = command(tmp_path / "run", tmp_path / "moved", train__batch_size=2)
    assert run_together(split, log, 2, before=without_pictures) == [DONE, DONE], log.read_text()
    assert "3 new images wait for another run." in " ".join(log.read_text().split())
