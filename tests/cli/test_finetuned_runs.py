"""`embed`, `probe` and `report` take the folder of a fine-tuning as that of a pretraining."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures_on_disk import write_pictures
from real_runs import options, pretrain_arguments

from fcmae.__main__ import main
from fcmae.data import EvaluationTransform, decode_image, default_mean_std
from fcmae.errors import DONE
from fcmae.finetuning.loading import load_finetuned

SETTINGS = {
    "data.image_size": 64,
    "data.workers": 0,
    "data.val_share": 0.3,
    "model.name": "convnextv2_speck",
    "augment.rand_augment": "null",
    "ema.decay": 0.5,
    "train.batch_size": 4,
    "train.steps": 4,
    "train.device": "cpu",
    "evaluate.every_steps": 2,
    "log.every_steps": 1,
    "log.tensorboard": "false",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, a pretraining and a fine-tuning from its weights."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("left", "right")):
        write_pictures(folder / "data" / name, 20, seed=seed)
    pretrain = pretrain_arguments(folder / "data", folder / "pretrain", 3)
    assert main(pretrain) == DONE
    where = {"run.dir": folder / "finetune", "data.path": folder / "data"}
    weights = {"model.weights": folder / "pretrain" / "export" / "encoder.safetensors"}
    assert main(["finetune", *options({**where, **SETTINGS, **weights}, {})]) == DONE
    return folder


@pytest.mark.parametrize("is_exported", [True, False])
def test_embed_takes_the_classifier_of_a_fine_tuning(
    is_exported: bool, folder: Path, tmp_path: Path
) -> None:
    run = folder / "finetune"
    export = run / "export"
    if not is_exported:  # a run that goes on has checkpoints alone
        export.rename(tmp_path / "export")
    try:
        output = str(tmp_path / "features.npz")
        words = ["--output", output, "--device", "cpu", "--workers", "0"]
        assert main(["embed", str(run), str(folder / "data"), *words]) == DONE
        model = load_finetuned(run).model
    finally:
        if not is_exported:
            (tmp_path / "export").rename(export)
    with np.load(output) as arrays:
        content = dict(arrays)
    assert content["features"].shape == (40, 20)
    mean, std = default_mean_std(3)
    transform = EvaluationTransform((64, 64), mean=mean, std=std)
    image = transform(decode_image(content["files"][2], 3))[None]
    with torch.no_grad():
        expected = model.forward_features(image).mean((2, 3))[0].numpy()
    np.testing.assert_allclose(content["features"][2], expected, rtol=1e-4, atol=1e-5)


def test_probe_compares_a_fine_tuning_with_its_start_and_says_what_trained_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--labels", "8", "--draws", "3", "--device", "cpu", "--workers", "0"]
    assert main(["probe", str(folder / "finetune"), str(folder / "data"), *words]) == DONE
    out = capsys.readouterr().out
    rows = [line.split("  ")[0] for line in out.splitlines()]
    assert rows[3:7] == ["fine-tuned", "its start", "untrained", "raw pixels"]
    assert "28 of the 40 images trained this classifier with their labels" in out


def test_the_report_of_a_fine_tuning_has_its_scores(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(folder / "finetune"), "--output", str(tmp_path)]) == DONE
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# Fine-tuning: finetune")
    assert "Best of the 2 evaluations, chosen on these same validation images" in text
    assert "confusion_matrix.png" in text
    assert "| left |" in text
    assert "ms per step of 4 images," in text
    assert "Fine-tuning: finetune" in (tmp_path / "report.html").read_text()
    assert "val_balanced_accuracy" in (tmp_path / "report.csv").read_text().splitlines()[0]


def test_a_pretraining_from_weights_is_compared_with_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"model__init_from": folder / "pretrain", "evaluate__draws": 3, "evaluate__labels": 6}
    assert main(pretrain_arguments(folder / "data", tmp_path / "run", 3, **changes)) == DONE
    table = (tmp_path / "run" / "scores.txt").read_text()
    rows = [line.split("  ")[0] for line in table.split("\n")]
    assert rows[1:5] == ["pretrained", "its start", "untrained", "raw pixels"]
    words = ["--labels", "8", "--draws", "3", "--device", "cpu", "--workers", "0"]
    assert main(["probe", str(tmp_path / "run"), str(folder / "data"), *words]) == DONE
    assert "its start" in capsys.readouterr().out


def test_a_checkpoint_says_of_the_classifier_what_its_file_says(
    folder: Path, tmp_path: Path
) -> None:
    run = folder / "finetune"
    exported = load_finetuned(run).info
    (run / "export").rename(tmp_path / "export")
    try:
        saved = load_finetuned(run).info
    finally:
        (tmp_path / "export").rename(run / "export")
    assert exported.classes == ("left", "right")
    of_best_step = {"steps": exported.steps, "classes": exported.classes}
    assert dataclasses.replace(saved, **of_best_step) == exported
    assert saved.crop_pct is not None
