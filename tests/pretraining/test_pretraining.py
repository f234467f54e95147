"""`fcmae pretrain` as a user runs it, on small pictures: what it leaves, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from pictures_on_disk import write_pictures
from speck import SPECK

from fcmae.__main__ import main
from fcmae.errors import DONE, MISTAKE
from fcmae.runs.loading import load_run
from fcmae.runs.metrics import read_metrics

SMALL = [
    *("--model.name", SPECK, "--model.decoder_dim", "16"),
    *("--data.image_size", "64", "--data.workers", "0", "--train.batch_size", "4"),
    *("--log.every_steps", "2", "--log.num_pictures", "2", "--log.tensorboard", "false"),
]


def pretrain(run: Path, data: Path | str, *extra: str, steps: int = 4) -> int:
    return main(
        ["pretrain", "--run.dir", str(run), "--data.path", str(data), *SMALL,
         "--train.steps", str(steps), *extra]
    )  # fmt: skip


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name, seed in (("left", 1), ("right", 2)):
        write_pictures(folder / name, 10, seed=seed)
    return folder


@pytest.fixture(scope="module")
def finished(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "finished"
    scores = ["--evaluate.labels", "8", "--evaluate.draws", "3", "--evaluate.every_steps", "2"]
    pictures = ["--log.pictures_every_steps", "2", "--checkpoint.every_steps", "2"]
    assert pretrain(run, labelled, *scores, *pictures) == DONE
    return run


def test_a_run_leaves_everything_it_promises(finished: Path) -> None:
    assert (finished / "config.yaml").is_file()
    assert (finished / "loss_curve.png").stat().st_size > 1000
    names = sorted(path.name for path in (finished / "reconstructions").iterdir())
    assert names == ["step-00000000.png", "step-00000002.png", "step-00000004.png"]
    assert (finished / "checkpoints" / "last").read_text() == "step-00000004\n"
    lines = read_metrics(finished / "metrics.jsonl")
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert list(losses) == [1, 2, 4]
    assert losses[1] == pytest.approx(1.0, abs=0.1)
    scored = [line["step"] for line in lines if "knn_balanced_accuracy" in line]
    assert scored == [0, 2, 4]
    table = (finished / "scores.txt").read_text()
    assert "pretrained" in table
    assert "untrained" in table
    assert "raw pixels" in table


def test_the_exported_encoder_is_the_runs_and_loads_strictly_into_timm(finished: Path) -> None:
    from safetensors.torch import load_file

    model = timm.create_model(SPECK, num_classes=0)
    model.load_state_dict(load_file(finished / "export" / "encoder.safetensors"), strict=True)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = load_run(finished).model.encoder.eval().forward_features(images)
    torch.testing.assert_close(model.eval().forward_features(images), expected, rtol=0, atol=0)


def test_a_finished_run_started_again_changes_nothing(
    finished: Path, labelled: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    extra = ["--evaluate.labels", "8", "--evaluate.draws", "3", "--evaluate.every_steps", "2"]
    assert pretrain(finished, labelled, *extra) == DONE
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_the_next_command_is_printed_and_names_the_weights(
    labelled: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(tmp_path / "run", labelled, "--evaluate.draws", "0", steps=1) == DONE
    shown = capfd.readouterr().out
    assert "fcmae finetune --run.dir" in shown
    assert f"--model.weights {tmp_path / 'run'}/export/encoder.safetensors" in shown


def test_the_same_settings_give_bitwise_the_same_weights(labelled: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert pretrain(tmp_path / name, labelled, "--evaluate.draws", "0", steps=2) == DONE
    first, second = (load_run(tmp_path / name).model.state_dict() for name in ("a", "b"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=0, msg=name)


def test_a_grey_unlabelled_flat_folder_works_with_one_channel(tmp_path: Path) -> None:
    write_pictures(tmp_path / "flat", 6, channels=1)
    extra = ["--data.in_chans", "1", "--data.image_size", "[64, 96]"]
    assert pretrain(tmp_path / "run", tmp_path / "flat", *extra, steps=1) == DONE
    assert not (tmp_path / "run" / "scores.txt").exists()


def test_more_readers_than_cores_are_told(
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("fcmae.machine.hardware.num_cores", lambda: 3)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for workers, is_told in ((1, False), (2, True)):
        extra = ["--data.workers", str(workers), "--evaluate.draws", "0"]
        assert pretrain(tmp_path / str(workers), labelled, *extra, steps=1) == DONE
        shown = capfd.readouterr().err
        assert ("4 readers of this machine share 3 cores" in shown) is is_told


def test_other_settings_in_a_trained_run_folder_are_refused(
    finished: Path, labelled: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(finished, labelled, "--model.decoder_depth", "2") == MISTAKE
    shown = capfd.readouterr().err
    assert "holds a run with other settings" in shown
    assert "model.decoder_depth 1 there, 2 now" in shown


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--data.image_size", "70"], "data.image_size: 70 px is not a multiple of mask.patch_siz"),
        (["--mask.ratio", "0"], "mask.ratio: 0.0 of 4 patches leaves none hidden"),
        (["--mask.ratio", "1"], "mask.ratio: 1.0 of 4 patches leaves none visible"),
        (["--mask.ratio", "0.8"], "mask.ratio: 0.8 of 4 patches leaves none visible"),
        (["--data.image_size", "32"], "mask.ratio: 1 patch cannot be both visible and hidden"),
        (["--mask.patch_size", "24"], "24 px is not a multiple of the model's total stride"),
        (["--model.name", "convnextv2_ato"], "model.name: 'convnextv2_ato' .* convnextv2_atto"),
        (["--model.name", "resnet50"], "model.name: 'resnet50' is not a ConvNeXt of timm"),
        (["--model.name", "convnext_atto_ols"], "cannot run sparsely: stem"),
        (["--train.batch_size", "64"], "train.batch_size: a step takes 64 images .* there are 20"),
        (["--optim.warmup_steps", "9"], "the warm-up takes 9 steps and the whole run 4"),
        (["--train.device", "cuda"], "train.device: got 'cuda'"),
        (["--train.device", "tpu"], "train.device: got 'tpu', expected auto, cpu, cuda"),
        (["--train.precision", "fp16"], "train.precision: fp16 needs a GPU"),
        (["--model.init_from", "absent.pth"], "absent.pth"),
        (["--mask.rato", "0.5"], "unknown setting 'mask.rato'. Did you mean mask.ratio?"),
        (["--train.steps", "few"], "train.steps: got 'few', expected a whole number"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_written(
    extra: list[str],
    message: str,
    labelled: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import re

    assert pretrain(tmp_path / "run", labelled, *extra) == MISTAKE
    shown = capfd.readouterr().err.strip()
    assert re.search(message, shown), shown
    assert shown.startswith("fcmae: error: ")
    assert "\n" not in shown
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_missing_empty_or_without_pictures_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.doc").write_text("no picture")
    for name in ("missing", "empty", "texts"):
        assert pretrain(tmp_path / "run", tmp_path / name) == MISTAKE
        shown = capfd.readouterr().err
        assert shown.startswith("fcmae: error: data.path: ")
        assert name in shown
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_something_else_is_not_written_into(
    labelled: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(labelled.rglob("*"))
    assert pretrain(labelled, labelled) == MISTAKE
    assert "is not empty and holds no run" in capfd.readouterr().err
    assert sorted(labelled.rglob("*")) == before


def test_truncated_checkpoints_are_named_and_not_used(
    labelled: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    extra = ["--evaluate.draws", "0", "--optim.schedule", "cosine"]  # no second one to extend from
    assert pretrain(run, labelled, *extra, steps=2) == DONE
    for state in (run / "checkpoints").glob("*/state.pt"):
        state.write_bytes(state.read_bytes()[:1000])
    assert pretrain(run, labelled, *extra, steps=2) == MISTAKE
    shown = capfd.readouterr().err
    assert "damaged checkpoint, not used" in shown
    assert "all 1 checkpoints are damaged" in shown


def test_metrics_lines_are_json_with_the_step_first(finished: Path) -> None:
    for line in (finished / "metrics.jsonl").read_text().splitlines():
        assert next(iter(json.loads(line))) == "step"
