"""Whatever fails while a run is looked at, its weights are those of an undisturbed one."""

from __future__ import annotations

import errno
import importlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from masked_pictures import segment_arguments, write_pairs
from pictures_on_disk import write_pictures
from PIL import Image
from real_runs import assert_same_state, final_state, options, pretrain_arguments, run
from undrawn import draw_nothing, without_pictures

from fcmae.__main__ import main
from fcmae.errors import DONE, FAILED, DataError
from fcmae.pretraining.task import Pretraining
from fcmae.runs.metrics import read_metrics

STEPS = 6
SCORES = {
    "evaluate__draws": 3,
    "evaluate__labels": 6,
    "evaluate__every_steps": 2,
    "log__pictures_every_steps": 2,
    "log__tensorboard": "true",
    "health__checks": 3,
}
FINETUNE = {
    "data.image_size": 64,
    "data.workers": 0,
    "data.val_share": 0.2,
    "model.name": "convnextv2_speck",
    "model.drop_path": 0.3,
    "train.batch_size": 4,
    "train.steps": STEPS,
    "train.device": "cpu",
    "evaluate.every_steps": 2,
    "checkpoint.every_steps": 3,
}
MASKS = "fcmae.finetuning.segmentation.task"
NO_SPACE = OSError(errno.ENOSPC, "No space left on device", "somewhere.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("left", "right", "top", "bottom")):
        write_pictures(folder / name, 24, seed=seed)
    return folder


@pytest.fixture(scope="module")
def labelled(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"finetune": data, "segment": write_pairs(tmp_path_factory.mktemp("pairs"), 10)}


def pretraining(data: Path, folder: Path, **changes: object) -> list[str]:
    return pretrain_arguments(data, folder, STEPS, **{**SCORES, **changes})


@pytest.fixture(scope="module")
def undisturbed(
    data: Path, labelled: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as monkeypatch:
        draw_nothing(monkeypatch)
        assert main(pretraining(data, folder / "pretrain")) == DONE
    for job, command in TUNING.items():
        assert main(command(labelled[job], folder / job)) == DONE
    return {job: folder / job for job in ("pretrain", *TUNING)}


def finetuning(data: Path, folder: Path) -> list[str]:
    return ["finetune", *options({"run.dir": folder, "data.path": data, **FINETUNE}, {})]


def segmenting(data: Path, folder: Path) -> list[str]:
    changes = {"train.steps": STEPS, "evaluate.every_steps": 2, "evaluate.num_pictures": 1}
    return segment_arguments(data, folder, **changes)


# What learns from labels, of pictures and of their pixels.
TUNING = {"finetune": finetuning, "segment": segmenting}


def weights(run_dir: Path) -> dict[str, Any]:
    state = final_state(run_dir)
    return {name: state[name] for name in ("model", "optimization", "progress")}


def raising(error: Exception) -> Callable[..., Any]:
    """Return a look that changes the global random numbers, and then fails."""

    def fail(*args: object, **kwargs: object) -> Any:
        torch.rand(3), random.random(), np.random.rand()
        torch.manual_seed(1)
        raise error

    return fail


SABOTAGES = {
    "pictures": ("fcmae.pretraining.monitoring.draw_reconstructions", NO_SPACE),
    "health panel": ("fcmae.pretraining.monitoring.draw_health", ValueError("a wrong figure")),
    "probe": ("fcmae.pretraining.monitoring.score_features", RuntimeError("no convergence")),
    "features": ("fcmae.pretraining.monitoring.extract_together", MemoryError()),
    "reader": ("fcmae.pretraining.monitoring.make_loader", DataError("a reader died.")),
    "health": ("fcmae.evaluation.health.check.rank_me", torch.linalg.LinAlgError("singular")),
    "health set-up": ("fcmae.pretraining.monitoring.HealthCheck", KeyError("nothing")),
    "verdict": ("fcmae.pretraining.monitoring.verdict", ZeroDivisionError("division by zero")),
    "loss curve": ("fcmae.pretraining.monitoring.draw_loss_curve", TypeError("no numbers")),
    "first look": ("fcmae.training.first_look.draw_sheet", ValueError("no picture")),
    "account": ("fcmae.training.first_look.account_sentence", ValueError("no account")),
    "TensorBoard": ("fcmae.runs.events.ScalarEvents.add", RuntimeError("protobuf")),
    "no TensorBoard": ("fcmae.runs.metrics.ScalarEvents", ImportError("No module named x")),
}


@pytest.mark.parametrize("name", SABOTAGES)
def test_a_look_that_fails_is_a_sentence_and_changes_no_weight(
    name: str,
    data: Path,
    undisturbed: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    place, error = SABOTAGES[name]
    draw_nothing(monkeypatch)
    monkeypatch.setattr(place, raising(error))
    status = main(pretraining(data, tmp_path / "run"))
    said = " ".join(capfd.readouterr().err.split())
    assert "training goes on." in said
    assert "Traceback" not in said
    assert_same_state(weights(tmp_path / "run"), weights(undisturbed["pretrain"]))
    assert status == (FAILED if isinstance(error, OSError) else DONE), said
    if isinstance(error, OSError):  # the results that the disk refused are made by another start
        monkeypatch.undo()
        assert main(pretraining(data, tmp_path / "run")) == DONE
    assert (tmp_path / "run" / "finished.txt").is_file()
    assert (tmp_path / "run" / "export" / "encoder.safetensors").is_file()


@pytest.mark.parametrize(
    ("job", "place", "error"),
    [
        ("finetune", "fcmae.finetuning.task.evaluate_classifier", RuntimeError("out of memory")),
        ("finetune", "fcmae.finetuning.task.draw_confusion_matrix", ValueError("no figure")),
        ("finetune", "fcmae.training.first_look.draw_sheet", ValueError("no picture")),
        ("finetune", "fcmae.finetuning.scored.write_files", ValueError("no account")),
        ("segment", f"{MASKS}.evaluate_segmenter", RuntimeError("out of memory")),
        ("segment", f"{MASKS}.draw_segmentations", ValueError("no figure")),
        ("segment", f"{MASKS}.draw_pixel_confusion", ValueError("no figure")),
        ("segment", "fcmae.training.first_look.draw_sheet", ValueError("no picture")),
        ("segment", "fcmae.finetuning.scored.write_files", ValueError("no account")),
    ],
)
def test_a_look_at_a_fine_tuning_that_fails_is_a_sentence_and_changes_no_weight(
    job: str,
    place: str,
    error: Exception,
    labelled: dict[str, Path],
    undisturbed: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    draw_nothing(monkeypatch)  # beside what fails
    monkeypatch.setattr(place, raising(error))
    status = main(TUNING[job](labelled[job], tmp_path / "run"))
    said = " ".join(capfd.readouterr().err.split())
    assert status == DONE, said
    assert f"failed ({type(error).__name__}: {error}); training goes on." in said
    assert_same_state(weights(tmp_path / "run"), weights(undisturbed[job]))
    assert (tmp_path / "run" / "finished.txt").is_file()
    name = {"finetune": "classifier", "segment": "segmenter"}[job]
    assert (tmp_path / "run" / "export" / f"{name}.safetensors").is_file()


@pytest.mark.parametrize(
    ("job", "place"),
    [
        ("finetune", "fcmae.finetuning.task.evaluate_classifier"),
        ("segment", f"{MASKS}.evaluate_segmenter"),
    ],
)
def test_scores_that_failed_once_cost_that_score_alone(
    job: str,
    place: str,
    labelled: dict[str, Path],
    undisturbed: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    room, _, function = place.rpartition(".")
    original, calls = getattr(importlib.import_module(room), function), 0

    def evaluate(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return raising(DataError("a reader died."))() if calls in (1, 3) else original(*args)

    draw_nothing(monkeypatch)
    monkeypatch.setattr(place, evaluate)
    assert main(TUNING[job](labelled[job], tmp_path / "run")) == DONE
    said = " ".join(capfd.readouterr().err.split())
    assert "the evaluation of step 2 failed (a reader died); training goes on." in said
    assert "the evaluation of step 6 failed (a reader died); training goes on." in said
    scores = [
        [line["step"] for line in read_metrics(folder / "metrics.jsonl") if "val_loss" in line]
        for folder in (tmp_path / "run", undisturbed[job])
    ]
    assert scores == [[4, 6], [2, 4, 6]]
    assert_same_state(weights(tmp_path / "run"), weights(undisturbed[job]))


def close_stderr() -> None:
    """Let everything that is said fail, as on a full disk or a closed pipe."""
    import sys

    sys.stderr = open("/dev/full", "w", buffering=1)  # noqa: SIM115


def test_a_terminal_that_takes_no_words_does_not_end_the_run(
    data: Path, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    assert (
        run(pretraining(data, tmp_path / "run"), log, before=[close_stderr, without_pictures])
        == DONE
    )
    assert_same_state(weights(tmp_path / "run"), weights(undisturbed["pretrain"]))


@pytest.mark.parametrize(
    ("classes", "per_class", "told"),
    [
        (1000, 2, "classes are scored, drawn by the seed, since 6 labels and 20 images"),
        (30, 1, "30 of 30 classes have one labelled image each and are left out. 0 classes"),
        (2, 20, ""),
        (1, 20, ""),
    ],
)
def test_any_number_of_classes_goes_to_the_end(
    classes: int,
    per_class: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    draw_nothing(monkeypatch)
    picture = Image.fromarray(np.arange(48 * 48 * 3, dtype=np.uint8).reshape(48, 48, 3))
    picture.save(tmp_path / "picture.png")
    for number in range(classes):
        (tmp_path / "data" / f"n{number:04d}").mkdir(parents=True)
        for copy in range(per_class):
            shutil.copy(
                tmp_path / "picture.png", tmp_path / "data" / f"n{number:04d}" / f"{copy}.png"
            )
    changes = {**SCORES, "evaluate__max_images": 20, "optim__warmup_steps": 0}
    changes["log__tensorboard"] = "false"
    assert main(pretrain_arguments(tmp_path / "data", tmp_path / "run", 2, **changes)) == DONE
    said = " ".join(capfd.readouterr().err.split())
    assert told in said
    assert "failed" not in said
    assert (tmp_path / "run" / "finished.txt").is_file()
    assert (tmp_path / "run" / "scores.txt").is_file() == (classes in (2, 1000))


def test_no_draws_score_nothing_whatever_the_cadence_is(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    draw_nothing(monkeypatch)
    changes = {"evaluate__draws": 0, "log__tensorboard": "false"}
    assert main(pretraining(data, tmp_path / "run", **changes)) == DONE
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert not any("knn_balanced_accuracy" in line for line in lines)
    assert "evaluate.draws is 0: nothing is scored" in capfd.readouterr().err


def test_a_start_is_pictured_after_the_first_step_and_measured_before_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, losses = tmp_path / "run", []
    compute_loss = Pretraining.compute_loss

    def noting(task: Pretraining, *arguments: Any) -> torch.Tensor:
        losses.append(sorted(path.name for path in folder.rglob("*.png")))
        return compute_loss(task, *arguments)

    monkeypatch.setattr(Pretraining, "compute_loss", noting)
    start = {"evaluate__draws": 0, "log__pictures_every_steps": STEPS, "log__tensorboard": "false"}
    assert main(pretraining(data, folder, **start)) == DONE
    drawn = ["first_batch.png", "health.png", "step-00000000.png"]
    assert losses[0] == []
    assert losses[1] == drawn
    lines = list(read_metrics(folder / "metrics.jsonl"))
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps)
    assert {"health/loss", "health/loss_patch_mean"} <= set().union(*lines[: steps.count(0)])


def test_a_run_whose_first_loss_is_not_finite_has_the_pictures_of_its_start(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    nan = torch.tensor(float("nan"), requires_grad=True)
    monkeypatch.setattr(Pretraining, "compute_loss", lambda *_: nan * 1)
    changes = {"evaluate__draws": 0, "log__tensorboard": "false"}
    assert main(pretraining(data, tmp_path / "run", **changes)) != DONE
    assert "loss" in capfd.readouterr().err
    for name in ("first_batch.png", "health.png", "reconstructions/step-00000000.png"):
        assert (tmp_path / "run" / name).is_file(), name
