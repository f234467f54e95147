"""`fcmae finetune` as a user runs it, on small pictures: what it leaves, resumes and compares."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pictures_on_disk import write_pictures
from real_runs import run_together, tell_threads_after_closing
from safetensors.torch import load_file
from speck import SPECK

from fcmae.__main__ import main
from fcmae.errors import DONE, FAILED, INTERRUPTED
from fcmae.runs.checkpoints import CheckpointStore
from fcmae.runs.metrics import WALL_CLOCK, read_metrics
from fcmae.training.signals import StopRequest
from fcmae.weights.files import read_metadata
from sparse.backends import native
from sparse.ops.compiler import missing_kernels

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *("--model.name", SPECK, "--data.image_size", "32", "--data.workers", "0"),
    *("--data.val_share", "0.25", "--train.batch_size", "4", "--optim.base_lr", "0.05"),
    *("--log.every_steps", "2", "--log.tensorboard", "false"),
]
# Everything that draws random numbers or keeps a state of its own.
RANDOM = [
    *("--augment.mixup", "0.8", "--augment.cutmix", "1.0", "--model.drop_path", "0.3"),
    *("--ema.decay", "0.5", "--evaluate.every_steps", "1", "--checkpoint.every_steps", "1"),
]


def finetune(run: Path, data: Path | str, *extra: str, steps: int = 4) -> int:
    return main(
        ["finetune", "--run.dir", str(run), "--data.path", str(data), *SMALL,
         "--train.steps", str(steps), *extra]
    )  # fmt: skip


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed, name in enumerate(("ash", "birch", "cedar")):
        write_pictures(folder / name, 8, seed=seed)
    return folder


@pytest.fixture(scope="module")
def finished(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert finetune(run, labelled, *RANDOM, "--checkpoint.keep_last", "9") == DONE
    return run


def lines_of(run: Path) -> list[dict[str, object]]:
    lines = read_metrics(run / "metrics.jsonl")
    return [{name: line[name] for name in line if name not in WALL_CLOCK} for line in lines]


def assert_same(found: object, expected: object) -> None:
    """Compare nested states bit for bit."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert isinstance(found, dict)
        assert found.keys() == expected.keys()
        for name in expected:
            assert_same(found[name], expected[name])
    elif isinstance(expected, (list, tuple)):
        assert isinstance(found, (list, tuple))
        assert len(found) == len(expected)
        for mine, other in zip(found, expected, strict=True):
            assert_same(mine, other)
    elif isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        assert torch.equal(found, expected)
    else:
        assert found == expected


def test_the_comparison_of_states_notices_a_difference() -> None:
    state = {"a": [torch.zeros(2)]}
    assert_same({"a": [torch.zeros(2)]}, state)
    with pytest.raises(AssertionError):
        assert_same({"a": [torch.ones(2)]}, state)


def test_a_run_leaves_everything_it_promises(finished: Path) -> None:
    assert (finished / "config.yaml").is_file()
    assert (finished / "confusion_matrix.png").read_bytes()[:4] == b"\x89PNG"
    assert (finished / "export" / "classifier_last.safetensors").is_file()
    assert (finished / "checkpoints" / "last").read_text() == "step-00000004\n"
    lines = read_metrics(finished / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 4]
    scored = [line for line in lines if "val_accuracy" in line]
    assert [line["step"] for line in scored] == [1, 2, 3, 4]
    for line in scored:
        per_class = [line[f"val_accuracy/{name}"] for name in ("ash", "birch", "cedar")]
        assert line["val_balanced_accuracy"] == pytest.approx(sum(per_class) / 3)
    best = max(line["val_balanced_accuracy"] for line in scored)
    assert scored[-1]["best_val_balanced_accuracy"] == pytest.approx(best)


def test_exported_classifier_loads_strictly_into_timm_and_says_what_it_is(finished: Path) -> None:
    path = finished / "export" / "classifier_last.safetensors"
    model = timm.create_model(SPECK, num_classes=3, checkpoint_path=str(path))
    state = CheckpointStore(finished / "checkpoints").load(4)
    assert_same(dict(model.state_dict()), dict(state["extra"]["ema"]))
    metadata = read_metadata(finished / "export" / "classifier.safetensors")
    assert metadata["model_name"] == SPECK
    assert metadata["classes"] == ["ash", "birch", "cedar"]
    assert metadata["image_size"] == [32, 32]
    assert (len(metadata["mean"]), len(metadata["std"])) == (3, 3)
    scored = [line for line in read_metrics(finished / "metrics.jsonl") if "val_loss" in line]
    assert metadata["val_balanced_accuracy"] == scored[-1]["best_val_balanced_accuracy"]


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_killed_run_goes_on_bit_for_bit(
    finished: Path, labelled: Path, tmp_path: Path, kept: int
) -> None:
    """What is left after a kill: an older checkpoint, and lines of steps behind it."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for step in range(kept + 1, 5):
        shutil.rmtree(run / "checkpoints" / f"step-{step:08d}")
    shutil.rmtree(run / "export")
    assert finetune(run, labelled, *RANDOM, "--checkpoint.keep_last", "9") == DONE
    assert_same(
        CheckpointStore(run / "checkpoints").load(4),
        CheckpointStore(finished / "checkpoints").load(4),
    )
    assert lines_of(run) == lines_of(finished)
    last = "classifier_last.safetensors"
    assert_same(load_file(run / "export" / last), load_file(finished / "export" / last))


def test_a_signal_stops_with_a_checkpoint_and_the_run_goes_on(
    finished: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(StopRequest):
        name = "SIGTERM"

    with monkeypatch.context() as patch:
        patch.setattr("fcmae.training.loop.StopRequest", Stopped)
        assert finetune(tmp_path / "run", labelled, *RANDOM) == INTERRUPTED
    assert (tmp_path / "run" / "checkpoints" / "last").read_text() == "step-00000001\n"
    assert finetune(tmp_path / "run", labelled, *RANDOM) == DONE
    assert lines_of(tmp_path / "run") == lines_of(finished)


def test_two_micro_steps_train_as_one_larger_batch(labelled: Path, tmp_path: Path) -> None:
    plain = ["--log.every_steps", "1", "--augment.rand_augment", "null"]
    assert finetune(tmp_path / "one", labelled, *plain, steps=3) == DONE
    split = [*plain, "--train.batch_size", "2", "--train.accumulate", "2"]
    assert finetune(tmp_path / "two", labelled, *split, steps=3) == DONE
    one, two = (
        [line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in line]
        for name in ("one", "two")
    )
    assert len(one) == 3
    assert one[0] != pytest.approx(one[1], rel=1e-3)  # the losses differ by what was learned
    assert two == pytest.approx(one, rel=1e-4)  # another order of summation in float32


@pytest.mark.ddp
def test_two_processes_train_and_score_as_two_micro_steps(labelled: Path, tmp_path: Path) -> None:
    """Also what is drawn: mixing and drop path depend on the place in the step, not on who."""
    extra = [*RANDOM, "--train.batch_size", "2", "--evaluate.batch_size", "2"]
    assert finetune(tmp_path / "one", labelled, *extra, "--train.accumulate", "2", steps=2) == DONE
    arguments = ["finetune", "--run.dir", str(tmp_path / "two"), "--data.path", str(labelled)]
    arguments += [*SMALL, "--train.steps", "2", *extra, "--train.device", "cpu"]
    log = tmp_path / "log"
    assert run_together(arguments, log, 2) == [DONE, DONE], log.read_text()
    one, two = lines_of(tmp_path / "one"), lines_of(tmp_path / "two")
    assert [line.keys() for line in two] == [line.keys() for line in one]
    for mine, other in zip(two, one, strict=True):
        assert mine == pytest.approx(other, rel=1e-4)  # another order of summation in float32


@pytest.mark.ddp
def test_no_thread_of_the_group_is_left_to_outlive_the_interpreter(
    labelled: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    arguments = ["finetune", "--run.dir", str(tmp_path / "run"), "--data.path", str(labelled)]
    arguments += [*SMALL, "--train.steps", "1", "--train.device", "cpu"]
    statuses = run_together(arguments, log, 2, before=tell_threads_after_closing)
    assert statuses == [DONE, DONE], log.read_text()
    told = re.findall(r"threads of \d left:(.*)", log.read_text())
    assert len(told) == 2
    assert not any("gloo" in names for names in told), told


def test_undecodable_validation_images_are_left_out_and_said(
    labelled: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(labelled, tmp_path / "val")
    broken = tmp_path / "val" / "birch" / "picture-003.png"
    broken.write_bytes(broken.read_bytes()[:100])
    extra = ["--data.val_path", str(tmp_path / "val")]
    assert finetune(tmp_path / "run", labelled, *extra, steps=1) == DONE
    said = " ".join(capfd.readouterr().err.split())
    assert f"1 validation images left out; the first is {str(broken)!r}:" in said
    assert "% of 23" in said


def test_training_by_the_native_backend_is_timms_to_rounding(
    finished: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks: list[torch.Tensor] = []

    def noting(block: Any, *arguments: Any) -> torch.Tensor:
        if torch.is_grad_enabled():  # a step, no evaluation
            blocks.append(arguments[0])
        return native.run_block(block, *arguments)

    monkeypatch.setattr("sparse.whole.run_block", noting)
    assert finetune(tmp_path / "timm", labelled, *RANDOM, "--model.native", "false") == DONE
    assert not blocks
    assert finetune(tmp_path / "native", labelled, *RANDOM) == DONE
    if missing_kernels() is None:
        assert blocks
    timms, natives, again = (
        load_file(run / "export" / "classifier_last.safetensors")
        for run in (tmp_path / "timm", tmp_path / "native", finished)
    )
    assert_same(natives, again)
    for name, value in timms.items():
        torch.testing.assert_close(natives[name], value, rtol=1e-3, atol=1e-5)


def test_evaluation_alone_repeats_the_best_scores_and_trains_nothing(
    finished: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = sorted(path for path in run.rglob("*"))
    assert finetune(run, labelled, "--evaluate.only", "true") == DONE
    text = capsys.readouterr().out
    metadata = read_metadata(run / "export" / "classifier.safetensors")
    (balanced,) = re.findall(r"balanced +([\d.]+) %", text)
    assert float(balanced) == pytest.approx(100 * metadata["val_balanced_accuracy"], abs=0.051)
    assert (run / "evaluation" / "scores.txt").read_text() == text
    assert (run / "evaluation" / "confusion_matrix.png").is_file()
    after = sorted(path for path in run.rglob("*") if "evaluation" not in path.parts)
    assert after == before


def test_evaluation_alone_needs_no_length_and_takes_the_precision_of_the_run(
    finished: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = str(finished / "export" / "classifier.safetensors")
    asked: list[bool] = []
    original = torch.nn.functional.cross_entropy

    def seen(logits: torch.Tensor, *args: Any, **how: Any) -> torch.Tensor:
        asked.append(torch.equal(logits, logits.bfloat16().float()))
        return original(logits, *args, **how)

    monkeypatch.setattr("fcmae.finetuning.scoring.F.cross_entropy", seen)
    words = ["--run.dir", str(tmp_path / "run"), "--data.path", str(labelled)]
    words += [*SMALL, "--evaluate.only", "true", "--model.weights", weights]
    assert main(["finetune", *words]) == DONE
    assert main(["finetune", *words, "--train.precision", "bf16"]) == DONE
    half = len(asked) // 2
    assert (any(asked[:half]), all(asked[half:])) == (False, True)


def test_evaluation_alone_reads_given_weights_on_another_folder(
    finished: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = str(finished / "export" / "classifier.safetensors")
    extra = ["--evaluate.only", "true", "--model.weights", weights]
    assert finetune(tmp_path / "run", "unused", *extra, "--data.val_path", str(labelled)) == DONE
    text = capsys.readouterr().out
    assert f"{weights} on 24 images:" in text
    assert re.search(r"cedar +[\d.]+ % of 8", text)


def test_comparison_prints_both_with_spread_and_an_honest_verdict(
    finished: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = ["--compare.scratch", "true", "--model.weights", str(finished)]
    extra += ["--data.train_per_class", "3"]
    assert finetune(tmp_path / "run", labelled, *extra, steps=1) == DONE
    text = capsys.readouterr().out
    assert text == (tmp_path / "run" / "comparison.txt").read_text()
    for name in ("pretrained", "from scratch"):
        assert re.search(rf"{name} +[\d.]+ \+- +[\d.]+", text)
    assert "on 6 held-out images after 1 step, 3 seeds: with 9 labels each seed has its" in text
    assert "After 1 step, compared with training from scratch, pretraining " in text
    folders = sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir())
    assert folders == [
        f"{name}-{seed}" for name in ("from-scratch", "pretrained") for seed in range(3)
    ]
    images = {
        name: (tmp_path / "run" / name / "images.jsonl").read_text()
        for name in ("from-scratch-1", "pretrained-1", "pretrained-2")
    }
    assert images["from-scratch-1"] == images["pretrained-1"]  # paired by seed
    assert images["pretrained-1"] != images["pretrained-2"]


def test_finetune_py_runs_as_a_script(labelled: Path, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "finetune.py", "--run.dir", str(tmp_path / "run")),
        *("--data.path", str(labelled), *SMALL, "--train.steps", "1"),
        *("--model.name", "convnextv2_atto"),  # it does not know ours
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == DONE, done.stderr
    assert "balanced" in done.stderr


def test_metrics_are_strict_json(finished: Path) -> None:
    def refuse(value: str) -> None:
        raise AssertionError(value)

    for line in (finished / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_best_weights_that_the_disk_refuses_are_written_when_it_takes_them(
    finished: Path,
    labelled: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fcmae.finetuning import classifier_export

    write, refused = classifier_export.write_atomically, [0]

    def refuse(path: Path, fill: Any) -> None:
        if path.name == "classifier.safetensors" and refused[0] < 2:
            refused[0] += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, fill)

    monkeypatch.setattr(classifier_export, "write_atomically", refuse)
    assert finetune(tmp_path / "run", labelled, *RANDOM) == DONE
    assert refused == [2]
    assert "No space left on device" in capsys.readouterr().err
    name = "export/classifier.safetensors"
    assert_same(load_file(tmp_path / "run" / name), load_file(finished / name))


def test_best_weights_that_were_never_written_are_no_success_and_come_with_the_next_start(
    finished: Path,
    labelled: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fcmae.finetuning import classifier_export

    def refuse(path: Path, fill: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(classifier_export, "write_atomically", refuse)
        assert finetune(tmp_path / "run", labelled, *RANDOM) == FAILED
    told = capsys.readouterr().err
    assert "classifier.safetensors and" not in told
    assert "All steps are taken and saved." in told
    assert not (tmp_path / "run" / "finished.txt").exists()
    assert finetune(tmp_path / "run", labelled, *RANDOM) == DONE
    name = "export/classifier.safetensors"
    assert_same(load_file(tmp_path / "run" / name), load_file(finished / name))
