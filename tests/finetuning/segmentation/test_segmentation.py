"""`fcmae finetune --task segmentation` as a user runs it: what it leaves, resumes and scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from masked_pictures import NAMES, segment_arguments, write_pairs
from PIL import Image
from real_runs import (
    assert_same_run,
    assert_same_state,
    final_state,
    lines_without_clock,
    run,
    run_together,
)

import fcmae
from fcmae.__main__ import main
from fcmae.data.recorded import read_paths
from fcmae.errors import DONE
from fcmae.runs.metrics import read_metrics
from fcmae.settings.tasks import load_finetuning_settings
from fcmae.weights.files import read_metadata
from fcmae.weights.segmenter import load_segmenter

# Everything that draws random numbers or keeps a state of its own.
RANDOM = {
    "model__drop_path": 0.3,
    "ema__decay": 0.5,
    "evaluate__every_steps": 2,
    "augment__color_jitter": 0.2,
    "augment__vertical_flip": "true",
    "augment__rotate90": "true",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"), 14)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    words = segment_arguments(
        data, folder, checkpoint__every_steps=1, checkpoint__keep_last=9,
        evaluate__num_pictures=2, **RANDOM,
    )  # fmt: skip
    assert main(words) == DONE
    return folder


def test_a_run_leaves_everything_it_promises(finished: Path) -> None:
    for name in ("confusion_matrix.png", "predictions/step-000002.png", "first_batch.png"):
        assert (finished / name).read_bytes()[:4] == b"\x89PNG"
    scored = [line for line in read_metrics(finished / "metrics.jsonl") if "val_mean_iou" in line]
    assert [line["step"] for line in scored] == [2, 4]
    for line in scored:
        ious = [line[f"val_iou/{name}"] for name in NAMES]
        assert line["val_mean_iou"] == pytest.approx(sum(ious) / 3)
        for name, iou in zip(NAMES, ious, strict=True):
            assert line[f"val_dice/{name}"] == pytest.approx(2 * iou / (1 + iou))
    best = max(line["val_mean_iou"] for line in scored)
    assert scored[-1]["best_val_mean_iou"] == pytest.approx(best)
    text = (finished / "scores.txt").read_text()
    assert all(name in text for name in (*NAMES, "95 % interval", "pixel accuracy"))
    assert read_metadata(finished / "export/segmenter.safetensors")["val_mean_iou"] == best
    network, info = load_segmenter(finished)
    assert (info.classes, info.mask_values, info.image_size) == (NAMES, (0, 1, 2), (32, 32))
    assert network(torch.zeros(1, 3, 64, 32)).shape == (1, 3, 64, 32)
    assert load_finetuning_settings(finished / "config.yaml").task.kind == "segmentation"


def test_a_killed_run_goes_on_bit_for_bit(finished: Path, data: Path, tmp_path: Path) -> None:
    killed = tmp_path / "run"
    shutil.copytree(finished, killed)
    (killed / "finished.txt").unlink()
    for name in ("step-00000003", "step-00000004"):
        shutil.rmtree(killed / "checkpoints" / name)
    words = segment_arguments(
        data, killed, checkpoint__every_steps=1, checkpoint__keep_last=9, data__workers=2,
        evaluate__num_pictures=2, **RANDOM,
    )  # fmt: skip
    assert run(words, tmp_path / "log") == DONE, (tmp_path / "log").read_text()
    assert_same_run(killed, finished)


def test_two_processes_train_and_score_as_two_micro_steps(data: Path, tmp_path: Path) -> None:
    plain = {"train__batch_size": 2, "train__steps": 2, "model__drop_path": 0.2}
    one = segment_arguments(data, tmp_path / "one", train__accumulate=2, **plain)
    assert main(one) == DONE
    two = segment_arguments(data, tmp_path / "two", **plain)
    log = tmp_path / "log"
    assert run_together(two, log, 2) == [DONE, DONE], log.read_text()
    states = [final_state(tmp_path / name) for name in ("one", "two")]
    for name, value in states[0]["model"].items():
        torch.testing.assert_close(states[1]["model"][name], value, atol=1e-6, rtol=1e-5)
    mine, other = (state["extra"]["last"] for state in states)
    assert torch.equal(mine["counts"], other["counts"])
    assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_the_score_of_a_step_does_not_depend_on_the_readers(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    words = segment_arguments(
        data, tmp_path / "run", data__workers=2, evaluate__num_pictures=2, **RANDOM
    )
    assert run(words, tmp_path / "log") == DONE
    assert lines_without_clock(tmp_path / "run") == lines_without_clock(finished)
    assert_same_state(final_state(tmp_path / "run")["model"], final_state(finished)["model"])


def test_evaluation_alone_repeats_the_best_scores_and_trains_nothing(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = read_metadata(finished / "export/segmenter.safetensors")["val_mean_iou"]
    words = segment_arguments(data, tmp_path / "alone", evaluate__only="true")
    assert main([*words, f"--model.weights={finished}", "--evaluate.num_pictures=1"]) == DONE
    assert f"{100 * best:6.2f}" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "alone" / "evaluation").iterdir())
    assert names == ["confusion_matrix.png", "predictions.png", "scores.txt"]
    assert not (tmp_path / "alone" / "checkpoints").exists()


def test_training_goes_on_from_a_segmenter_and_from_a_classifier_s_encoder(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = segment_arguments(data, tmp_path / "again", model__name="auto", train__steps=1)
    assert (
        main([*words, f"--model.weights={finished}", "--optim.base_lr=0", "--optim.min_lr=0"])
        == DONE
    )
    theirs, mine = load_segmenter(finished)[0], load_segmenter(tmp_path / "again")[0]
    assert_same_state(mine.state_dict(), theirs.state_dict())
    words = segment_arguments(
        data,
        tmp_path / "other",
        task__architecture="fpn",
        train__steps=1,
        optim__base_lr=0,
        optim__min_lr=0,
    )
    assert main([*words, f"--model.weights={finished}"]) == DONE
    assert "its decoder is another one" in capsys.readouterr().err
    mine = load_segmenter(tmp_path / "other")[0]
    of_encoders = [
        {name: value for name, value in model.state_dict().items() if name.startswith("encoder.")}
        for model in (mine, theirs)
    ]
    assert of_encoders[0]
    assert_same_state(*of_encoders)


def test_classes_are_found_in_the_masks_and_kept_by_a_continued_run(
    data: Path, tmp_path: Path
) -> None:
    words = segment_arguments(data, tmp_path / "run", data__classes="null", train__steps=1)
    assert main(words) == DONE
    record = json.loads((tmp_path / "run" / "masks.json").read_text())
    assert (record["classes"], record["values"]) == (["0", "1", "2"], [0, 1, 2])
    assert load_segmenter(tmp_path / "run")[1].classes == ("0", "1", "2")


def test_a_recipe_may_say_its_task_in_one_word(data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("task: segmentation\ntask_is: no\n")
    assert main(["finetune", "--config", str(recipe)]) != DONE  # an unknown setting
    recipe.write_text("task: segmentation\n")
    words = segment_arguments(data, tmp_path / "run", train__steps=1)
    words = [word for word in words if not word.startswith("--task=")]
    assert main([words[0], "--config", str(recipe), *words[1:]]) == DONE


def test_predictions_are_those_that_the_run_scored(data: Path, tmp_path: Path) -> None:
    """In tiles of the run's own evaluation, which need not be as large as its crops."""
    words = segment_arguments(
        data, tmp_path / "run", train__steps=1, evaluate__tile_size="[64, 32]",
        evaluate__tile_overlap=0.5, augment__class_balanced=0,
    )  # fmt: skip
    assert main(words) == DONE
    scored = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    pictures = read_paths(tmp_path / "run" / "validation.jsonl")
    found = fcmae.load(tmp_path / "run", "cpu").predict(pictures)
    counts = np.zeros((3, 3), np.int64)
    for picture, mask in zip(pictures, found.masks, strict=True):
        with Image.open(data / "masks" / Path(picture).name) as opened:
            truth = np.asarray(opened)
        assert mask is not None
        np.add.at(counts, (truth, mask), 1)
    right = counts.diagonal()
    ious = right / (counts.sum(axis=0) + counts.sum(axis=1) - right)
    assert [scored[f"val_iou/{name}"] for name in NAMES] == pytest.approx(ious.tolist(), abs=1e-6)
