"""A fine-tuning goes on with the images that it began with, whatever became of their folder."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import real_runs
from masked_pictures import write_bright_masks
from pictures_on_disk import write_pictures
from real_runs import assert_same_run, options, signal_in
from undrawn import without_pictures

from fcmae.errors import DONE, INTERRUPTED, MISTAKE
from fcmae.finetuning import scoring as of_classes
from fcmae.finetuning.segmentation import scoring as of_masks
from fcmae.runs.folder import RunFolder
from fcmae.runs.metrics import read_metrics
from fcmae.settings.tasks import load_finetuning_settings
from fcmae.training.processes import start_processes

run = partial(real_runs.run, before=without_pictures)
SETTINGS = {
    "data.image_size": 64,
    "data.workers": 0,
    "data.val_share": 0.3,
    "data.max_skipped_share": 0.2,
    "model.name": "convnextv2_speck",
    "model.drop_path": 0.3,
    "train.batch_size": 4,
    "train.steps": 8,
    "train.device": "cpu",
    "evaluate.every_steps": 4,
    "log.every_steps": 2,
    "log.tensorboard": "false",
    "checkpoint.every_steps": 2,
}
CLASSES = ("left", "right", "top")


def make_pictures(folder: Path) -> Path:
    for seed, name in enumerate(CLASSES):
        write_pictures(folder / name, 10, seed=seed)
    return folder


@pytest.fixture(scope="module", params=["classes", "masks"])
def labels(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, object]:
    """Settings of what is learned: the folders of the pictures, or masks, which lie apart."""
    if request.param == "classes":
        return {}
    data = make_pictures(tmp_path_factory.mktemp("pictures"))
    masks = tmp_path_factory.mktemp("masks")
    for add in (add_pictures, add_a_class, remove_the_classes_of_validation):  # masks of all
        add(data)
    write_bright_masks(data, masks)
    return {
        "task": "segmentation",
        "task.decoder_channels": 16,
        "data.masks": masks,
        "data.classes": "[dark, bright]",
        "evaluate.num_pictures": 0,
    }


def arguments(run_dir: Path, data: Path | str, **changes: object) -> list[str]:
    where = {"run.dir": run_dir, "data.path": data, **SETTINGS}
    return ["finetune", *options(where, changes)]


@pytest.fixture(scope="module")
def stopped(labels: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, the undisturbed run, and one that was stopped after step 4."""
    folder = tmp_path_factory.mktemp("stopped")
    make_pictures(folder / "data")
    log = folder / "log"
    undisturbed = arguments(folder / "undisturbed", folder / "data", **labels)
    assert run(undisturbed, log) == DONE, log.read_text()
    stopping = signal_in("step", 4, signal.SIGTERM)
    status = run(arguments(folder / "run", folder / "data", **labels), log, before=stopping)
    assert status == INTERRUPTED, log.read_text()
    return folder


def add_pictures(data: Path) -> Path:
    write_pictures(data / "left", 15, seed=0)
    return data


def add_a_class(data: Path) -> Path:
    write_pictures(data / "bottom", 6, seed=7)
    return data


def remove_the_classes_of_validation(data: Path) -> Path:
    """Leave a folder from which no split could be drawn."""
    write_pictures(data / "alone", 1, seed=9)
    return data


def move(data: Path) -> Path:
    return Path(shutil.move(data, data.parent / "elsewhere" / "pictures"))


def move_and_change(data: Path) -> Path:
    return add_a_class(add_pictures(move(data)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (add_pictures, "5 new images wait for another run."),
        (add_a_class, "6 new images wait for another run."),
        (remove_the_classes_of_validation, "1 new images wait"),
        (move, "the images have moved; the run goes on with them where they are now."),
        (move_and_change, "11 new images wait for another run."),
    ],
    ids=["pictures added", "class added", "no split possible", "moved", "moved and changed"],
)
def test_a_changed_folder_changes_no_bit(
    change: Callable[[Path], Path],
    told: str,
    stopped: Path,
    labels: dict[str, object],
    tmp_path: Path,
) -> None:
    shutil.copytree(stopped / "run", tmp_path / "run")
    shutil.copytree(stopped / "data", tmp_path / "data")
    (tmp_path / "elsewhere").mkdir()
    log = tmp_path / "log"
    data = change(tmp_path / "data")
    assert run(arguments(tmp_path / "run", data, **labels), log) == DONE, log.read_text()
    said = " ".join(log.read_text().split())
    assert told in said
    for what in ("images", "validation images"):
        assert said.count(f"the {what} have moved") <= 1
    assert_same_run(tmp_path / "run", stopped / "undisturbed")


def test_a_relative_path_from_another_working_directory_goes_on(
    stopped: Path, labels: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "first").mkdir()
    make_pictures(tmp_path / "first" / "data")
    log = tmp_path / "log"
    stopping = [signal_in("step", 4, signal.SIGTERM), go_to(tmp_path / "first")]
    begun = arguments(tmp_path / "run", "data", **labels)
    assert run(begun, log, before=stopping) == INTERRUPTED
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    write_pictures(tmp_path / "second" / "data" / "left", 12, seed=0)
    shutil.rmtree(tmp_path / "first")
    going = [without_pictures, go_to(tmp_path / "second")]
    words = arguments(tmp_path / "run", "./data", **labels)
    assert run(words, log, before=going) == DONE, log.read_text()
    assert_same_run(tmp_path / "run", stopped / "undisturbed")


def go_to(folder: Path) -> Callable[[], object]:
    return partial(os.chdir, folder)


def copy_as_if_begun_there(stopped: Path, folder: Path) -> None:
    """Copy run and pictures; the pictures that the run began with are then nowhere else."""
    for name in ("run", "data"):
        shutil.copytree(stopped / name, folder / name)
    for name in ("images.jsonl", "validation.jsonl"):
        file = folder / "run" / name
        file.write_text(file.read_text().replace(str(stopped), str(folder)))


def test_pictures_that_are_gone_are_told_and_the_run_ends(
    stopped: Path, labels: dict[str, object], tmp_path: Path
) -> None:
    copy_as_if_begun_there(stopped, tmp_path)
    for name in CLASSES:
        (tmp_path / "data" / name / "picture-003.png").unlink()
    log = tmp_path / "log"
    words = arguments(tmp_path / "run", tmp_path / "data", **labels)
    assert run(words, log) == DONE, log.read_text()
    said = " ".join(log.read_text().split())
    assert " are gone (the first is '" in said
    assert "more than data.max_skipped_share 20.0% stop it." in said
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines if "val_loss" in line] == [4, 8]


def test_too_many_that_are_gone_stop_the_run_before_it_starts(
    stopped: Path, labels: dict[str, object], tmp_path: Path
) -> None:
    copy_as_if_begun_there(stopped, tmp_path)
    shutil.rmtree(tmp_path / "data" / "left")
    log = tmp_path / "log"
    before = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert run(arguments(tmp_path / "run", tmp_path / "data", **labels), log) == MISTAKE
    said = log.read_text()
    assert "which is more than data.max_skipped_share 20.0%; put them back, name the folder" in said
    assert "Traceback" not in said
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == before


def test_a_validation_folder_of_its_own_may_change_too(
    labels: dict[str, object], tmp_path: Path
) -> None:
    make_pictures(tmp_path / "data")
    for seed, name in enumerate(CLASSES):
        write_pictures(tmp_path / "val" / name, 3, seed=20 + seed)
    log, masks = tmp_path / "log", {}
    if labels:
        write_bright_masks(tmp_path / "val", tmp_path / "val_masks")
        masks = {"data__val_masks": tmp_path / "val_masks"}

    def command(run_dir: str, val: Path) -> list[str]:
        changes = {**labels, **masks, "data__val_path": val}
        return arguments(tmp_path / run_dir, tmp_path / "data", **changes)

    assert run(command("undisturbed", tmp_path / "val"), log) == DONE, log.read_text()
    stopping = signal_in("step", 4, signal.SIGTERM)
    assert run(command("run", tmp_path / "val"), log, before=stopping) == INTERRUPTED
    shutil.move(tmp_path / "val", tmp_path / "test")
    write_pictures(tmp_path / "test" / "left", 9, seed=20)
    assert run(command("run", tmp_path / "test"), log) == DONE, log.read_text()
    assert_same_run(tmp_path / "run", tmp_path / "undisturbed")


def images_scored(run_dir: Path, data: Path, labels: dict[str, object]) -> int:
    """Return how many images of a folder evaluation alone scores in a run that was copied."""
    config = load_finetuning_settings(run_dir / "config.yaml")
    config = replace(
        config,
        data=replace(config.data, path=str(data)),
        run=replace(config.run, dir=str(run_dir)),
    )
    evaluate = of_masks.evaluate_only if labels else of_classes.evaluate_only
    return evaluate(config, start_processes("cpu")).num_images


def test_evaluation_alone_knows_what_was_held_back_after_a_move(
    stopped: Path, labels: dict[str, object], tmp_path: Path
) -> None:
    shutil.copytree(stopped / "undisturbed", tmp_path / "run")
    shutil.copytree(stopped / "data", tmp_path / "moved")
    add_pictures(tmp_path / "moved")
    assert images_scored(tmp_path / "run", tmp_path / "moved", labels) == 9


def test_evaluation_alone_scores_no_trained_picture_where_no_record_is_left(
    stopped: Path, labels: dict[str, object], tmp_path: Path
) -> None:
    shutil.copytree(stopped / "undisturbed", tmp_path / "run")
    RunFolder(tmp_path / "run").validation.unlink()
    assert images_scored(tmp_path / "run", stopped / "data", labels) == 9
