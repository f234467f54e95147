"""Mistakes of a user who fine-tunes: one clear sentence, exit status 2, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pictures_on_disk import write_pictures
from safetensors.torch import save_file

from fcmae.__main__ import main
from fcmae.errors import FAILED, MISTAKE
from fcmae.model.backbones import create_backbone

SMALL = [
    *("--model.name", "convnextv2_atto", "--data.image_size", "32", "--data.workers", "0"),
    *("--train.batch_size", "4", "--train.steps", "2", "--optim.base_lr", "0.05"),
    *("--log.tensorboard", "false"),
]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed, name in enumerate(("ash", "birch")):
        write_pictures(folder / name, 5, seed=seed)
    return folder


def mistake(capsys: pytest.CaptureFixture[str], run: Path, data: Path | str, *extra: str) -> str:
    status = main(["finetune", "--run.dir", str(run), "--data.path", str(data), *SMALL, *extra])
    error = capsys.readouterr().err
    assert status == MISTAKE, error
    assert error.startswith("fcmae: error: ")
    assert error.count("\n") == 1
    assert not run.exists(), "nothing is started"
    return error


def test_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = mistake(capsys, tmp_path / "run", tmp_path / "none")
    assert "data.path" in error
    assert "does not exist" in error


def test_folder_without_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path / "flat", 6)
    error = mistake(capsys, tmp_path / "run", tmp_path / "flat")
    assert "has its images directly in it, none in a folder per class; labels are" in error


def test_one_class_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path / "data" / "ash", 6)
    error = mistake(capsys, tmp_path / "run", tmp_path / "data")
    assert "two classes or more" in error


def test_fewer_images_than_a_batch(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = mistake(capsys, tmp_path / "run", labelled, "--train.batch_size", "16")
    assert "a step takes 16 images" in error
    assert "there are 8 training images" in error


def test_fewer_images_of_a_class_than_asked_for(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = mistake(capsys, tmp_path / "run", labelled, "--data.train_per_class", "5")
    assert "data.train_per_class: got 5, but class 'ash' has 4 training images" in error


def test_validation_folder_with_other_classes(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ash", "cedar"):
        write_pictures(tmp_path / "val" / name, 2)
    error = mistake(capsys, tmp_path / "run", labelled, "--data.val_path", str(tmp_path / "val"))
    assert "has the classes ash, cedar, expected ash, birch" in error
    assert "one side alone has birch, cedar" in error


def test_validation_folder_of_training_images(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = mistake(capsys, tmp_path / "run", labelled, "--data.val_path", str(labelled))
    assert "are training images; name others, or leave it out" in error


def test_unknown_model(labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = mistake(capsys, tmp_path / "run", labelled, "--model.name", "convnextv2_ato")
    assert "'convnextv2_ato' is not a ConvNeXt of timm" in error
    assert "convnextv2_atto" in error


def test_misspelt_setting(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = mistake(capsys, tmp_path / "run", labelled, "--optim.layer_deca", "0.5")
    assert "unknown setting 'optim.layer_deca'. Did you mean optim.layer_decay" in error


def test_unknown_augmentation_policy(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = mistake(capsys, tmp_path / "run", labelled, "--augment.rand_augment", "strong")
    assert "augment.rand_augment: 'strong' is no policy of timm" in error


def test_missing_weights(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = mistake(capsys, tmp_path / "run", labelled, "--model.weights", str(tmp_path / "none"))
    assert "does not exist; name a weights file, the folder of a run" in error


def test_weights_of_another_model(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = create_backbone("convnextv2_femto", in_chans=3)
    save_file(other.state_dict(), tmp_path / "femto.safetensors")
    weights = str(tmp_path / "femto.safetensors")
    error = mistake(capsys, tmp_path / "run", labelled, "--model.weights", weights)
    assert "stem.0.weight ([48, 3, 4, 4] there, [40, 3, 4, 4] here)" in error
    assert "choose the model.name" in error


def test_weights_for_another_number_of_channels(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = create_backbone("convnextv2_atto", in_chans=1)
    metadata = {"mean": "[0.5]", "std": "[0.25]"}
    save_file(other.state_dict(), tmp_path / "grey.safetensors", metadata)
    weights = str(tmp_path / "grey.safetensors")
    error = mistake(capsys, tmp_path / "run", labelled, "--model.weights", weights)
    assert "data.in_chans" in error


def test_weights_that_are_truncated(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.safetensors"
    save_file(create_backbone("convnextv2_atto", in_chans=3).state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])
    error = mistake(capsys, tmp_path / "run", labelled, "--model.weights", str(path))
    assert "not a complete safetensors file" in error


def test_nothing_to_evaluate(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = mistake(capsys, tmp_path / "run", labelled, "--evaluate.only", "true")
    assert "classifier.safetensors: does not exist" in error


def test_evaluating_an_encoder_without_a_classifier(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "encoder.safetensors"
    save_file(create_backbone("convnextv2_atto", in_chans=3).state_dict(), path)
    extra = ["--evaluate.only", "true", "--model.weights", str(path)]
    error = mistake(capsys, tmp_path / "run", labelled, *extra)
    assert "2 missing: head.fc.weight, head.fc.bias" in error


def test_evaluating_a_classifier_of_other_classes(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "classifier.safetensors"
    model = create_backbone("convnextv2_atto", in_chans=3, num_classes=2)
    save_file(model.state_dict(), path, {"classes": '["oak", "pine"]'})
    extra = ["--evaluate.only", "true", "--model.weights", str(path)]
    error = mistake(capsys, tmp_path / "run", labelled, *extra)
    assert "is for the classes oak, pine, and the images have ash, birch" in error


def test_a_run_with_other_settings_is_not_continued(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["finetune", "--run.dir", str(tmp_path / "run"), "--data.path", str(labelled), *SMALL]
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, "--optim.layer_decay", "0.5"]) == MISTAKE
    error = capsys.readouterr().err
    assert "holds a run with other settings (optim.layer_decay 1.0 there, 0.5 now)" in error


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_batch(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = ["finetune", "--run.dir", str(run), "--data.path", str(labelled), *SMALL]
    assert main([*command, "--train.steps", "6", "--optim.base_lr", "1e30"]) == FAILED
    assert "finite losses before" in capsys.readouterr().err
    (saved,) = run.glob("nonfinite-step-*.pt")
    (batch,) = torch.load(saved, weights_only=True)["batches"]
    assert batch["image"].shape == (4, 3, 32, 32)
    assert batch["label"].shape == (4,)
