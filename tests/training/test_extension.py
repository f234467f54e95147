"""A run of schedule wsd is extended: it goes on from before its decay, exactly."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import kill_run
import pytest
import torch
from pictures_on_disk import write_pictures
from real_runs import (
    assert_same_run,
    assert_same_state,
    final_state,
    lines_without_clock,
    options,
    pretrain_arguments,
    run,
    signal_in,
)
from safetensors import safe_open
from undrawn import without_pictures

from fcmae.errors import DONE, INTERRUPTED, MISTAKE
from fcmae.runs.checkpoints import CheckpointStore
from fcmae.runs.loading import load_run

SHORT, LONG = 10, 20
UNDECAYED = "undecayed-00000008"
WSD = {"optim__schedule": "wsd", "health__checks": 0, "checkpoint__keep_last": 1}
FINETUNE = {
    "data.image_size": 64,
    "data.workers": 0,
    "data.val_share": 0.3,
    "model.name": "convnextv2_speck",
    "optim.base_lr": 0.1,
    "optim.schedule": "wsd",
    "optim.warmup_steps": 1,  # by rule a share of the length
    "train.batch_size": 4,
    "train.device": "cpu",
    "evaluate.every_steps": 2,
    "log.every_steps": 2,
    "log.tensorboard": "false",
    "checkpoint.every_steps": 3,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, seed in (("left", 1), ("right", 2)):
        write_pictures(folder / name, 10, seed=seed)
    return folder


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of each length, `short` and `long`."""
    folder = tmp_path_factory.mktemp("made")
    for name, steps in (("short", SHORT), ("long", LONG)):
        arguments = pretrain_arguments(data, folder / name, steps, **WSD)
        assert run(arguments, folder / "log", before=without_pictures) == DONE
    return folder


def extended(made: Path, folder: Path) -> Path:
    """Return a copy of the finished short run, to be extended."""
    shutil.copytree(made / "short", folder)
    return folder


def test_a_finished_run_that_is_extended_is_the_longer_run_bit_for_bit(
    data: Path, made: Path, tmp_path: Path
) -> None:
    folder, log = extended(made, tmp_path / "run"), tmp_path / "log"
    before = (folder / "export" / "encoder.safetensors").read_bytes()
    state = CheckpointStore(folder / "checkpoints").load(8)
    assert_same_state(
        {**state, "length": None}, {**undecayed_of_long(data, tmp_path), "length": None}
    )
    assert run(pretrain_arguments(data, folder, LONG, **WSD), log, before=without_pictures) == DONE
    assert_same_run(folder, made / "long")
    exported = (folder / "export" / "encoder.safetensors").read_bytes()
    assert exported == (made / "long" / "export" / "encoder.safetensors").read_bytes() != before
    assert (folder / "finished.txt").read_text() == f"step {LONG}\n"
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["last", "step-00000020", "undecayed-00000016"]
    assert (
        f"the run of {SHORT} steps becomes one of {LONG}: it goes on after step 8, from before its "
        "rate began to fall."
    ) in log.read_text()


def undecayed_of_long(data: Path, folder: Path) -> dict[str, Any]:
    """Return the state after the step at which the short run begins to decay."""
    arguments = pretrain_arguments(
        data, folder / "other", LONG, **{**WSD, "checkpoint__every_steps": 8}
    )
    kept = [*arguments, "--checkpoint.keep_every=8"]
    assert run(kept, folder / "log", before=without_pictures) == DONE
    return CheckpointStore(folder / "other" / "checkpoints").load(8)


def test_the_state_before_the_decay_outlives_the_cleaning_of_checkpoints(made: Path) -> None:
    names = {path.name for path in (made / "short" / "checkpoints").iterdir()}
    assert names == {"last", "step-00000010", UNDECAYED}
    assert (made / "short" / "checkpoints" / "last").read_text() == "step-00000010\n"


def test_epochs_extend_a_run_of_epochs_and_steps_may_replace_them(
    data: Path, made: Path, tmp_path: Path
) -> None:
    for name, length in (("steps", "--train.steps=20"), ("epochs", "--train.epochs=4")):
        base = pretrain_arguments(data, tmp_path / name, 1, **WSD)
        base = [word for word in base if not word.startswith("--train.steps")]
        log = tmp_path / "log"
        assert run([*base, "--train.epochs=2"], log, before=without_pictures) == DONE
        assert run([*base, length], log, before=without_pictures) == DONE, log.read_text()
        assert_same_run(tmp_path / name, made / "long")


def test_a_run_that_is_not_done_is_extended_or_shortened_where_nothing_has_decayed(
    data: Path, made: Path, tmp_path: Path
) -> None:
    log, folder = tmp_path / "log", tmp_path / "run"
    longest = pretrain_arguments(data, folder, 200, **WSD)
    assert run(longest, log, before=signal_in("step", 5, signal.SIGTERM)) == INTERRUPTED
    longer = pretrain_arguments(data, folder, 300, **WSD)
    assert run(longer, log, before=signal_in("step", 5, signal.SIGTERM)) == INTERRUPTED
    assert final_state(folder)["progress"]["step"] == 12
    assert run(pretrain_arguments(data, folder, LONG, **WSD), log, before=without_pictures) == DONE
    assert_same_run(folder, made / "long")


def test_a_length_whose_decay_is_over_is_refused_and_nothing_changes(
    data: Path, made: Path, tmp_path: Path
) -> None:
    folder, log = extended(made, tmp_path / "run"), tmp_path / "log"
    before = content(folder)
    assert run(pretrain_arguments(data, folder, 9, **WSD), log) == MISTAKE
    assert (
        "a run of 9 steps lets its rate fall from step 7 on, and no checkpoint" in log.read_text()
    )
    assert content(folder) == before


def test_a_run_that_follows_a_cosine_says_what_is_possible(data: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    cosine = {"optim__schedule": "cosine"}
    arguments = pretrain_arguments(data, folder, 4, **cosine)
    assert run(arguments, log, before=without_pictures) == DONE
    before = content(folder)
    assert run(pretrain_arguments(data, folder, 8, **cosine), log) == MISTAKE
    said = log.read_text().splitlines()[-1]
    assert "holds a run of another length (train.steps 4 there, 8 now)" in said
    assert "cannot be extended. Start a new run in another run.dir" in said
    assert "with --optim.schedule wsd" in said
    assert f"--model.init_from {folder}." in said
    assert content(folder) == before


def test_a_mistake_beside_the_new_length_leaves_the_finished_run_as_it_is(
    data: Path, made: Path, tmp_path: Path
) -> None:
    folder, log = extended(made, tmp_path / "run"), tmp_path / "log"
    before = content(folder)
    wrong = {**WSD, "train__batch_size": 8}
    assert run(pretrain_arguments(data, folder, LONG, **wrong), log) == MISTAKE
    assert "effective batch size is 4 and now it is 8" in log.read_text()
    seed = {**WSD, "train__seed": 8}
    assert run(pretrain_arguments(data, folder, LONG, **seed), log) == MISTAKE
    assert "other settings (train.seed 0 there, 8 now)" in log.read_text()
    assert content(folder) == before
    assert run(pretrain_arguments(data, folder, SHORT, **WSD), log) == DONE
    assert "this run is finished, nothing is left to do" in log.read_text()


def content(folder: Path) -> dict[str, bytes]:
    """Return what the files of a run hold that a start does not write anew."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_without_its_link_the_newest_checkpoint_before_the_decay_stays(
    made: Path, tmp_path: Path
) -> None:
    folder = extended(made, tmp_path / "run") / "checkpoints"
    state = CheckpointStore(folder).load(8)
    shutil.rmtree(folder)
    store = CheckpointStore(folder, keep_last=1)
    store.decay_start = 8
    for step in (6, 7, 9, 10):  # the disk refused that of step 8
        store.save(step, state)
        store.keep_undecayed()
    assert store.steps() == [7, 10]


def test_where_files_cannot_be_linked_they_are_copied(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    folder = extended(made, tmp_path / "run") / "checkpoints"
    store = CheckpointStore(folder, keep_last=1)
    store.decay_start = 11
    store.save(11, store.load(8))
    store.keep_undecayed()
    store.save(12, store.load(8) if 8 in store.steps() else store.load(11))
    assert store.steps() == [11, 12]
    assert not (folder / "step-00000011").exists()
    assert_same_state(store.load(11), store.load(12))


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_while_a_run_is_extended_loses_nothing(
    stride: int, data: Path, made: Path, tmp_path: Path
) -> None:
    log, deaths = tmp_path / "log", 0
    for event in range(1, 200, stride):
        again = extended(made, tmp_path / f"event-{event}")
        arguments = pretrain_arguments(data, again, LONG, **WSD)
        before = [without_pictures, kill_run.kill_at_event(event)]
        status = run(arguments, log, before=before)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        deaths += 1
        assert load_run(again).step >= 8
        assert (again / "export" / "encoder.safetensors").exists()
        assert run(arguments, log, before=without_pictures) == DONE, log.read_text()
        assert_same_run(again, made / "long")
        assert not list(again.rglob(".partial-*")), event
        shutil.rmtree(again)
    assert deaths >= 40 // stride


@pytest.mark.parametrize("event", [2, 5, 8, 14])
def test_a_killed_extension_may_be_taken_back(
    event: int, data: Path, made: Path, tmp_path: Path
) -> None:
    folder, log = extended(made, tmp_path / "run"), tmp_path / "log"
    longer = pretrain_arguments(data, folder, LONG, **WSD)
    before = [without_pictures, kill_run.kill_at_event(event)]
    assert run(longer, log, before=before) == -signal.SIGKILL
    shorter = pretrain_arguments(data, folder, SHORT, **WSD)
    assert run(shorter, log, before=without_pictures) == DONE, log.read_text()
    assert_same_run(folder, made / "short")
    assert (folder / "finished.txt").read_text() == f"step {SHORT}\n"


def test_a_fine_tuning_that_is_extended_is_the_longer_one_and_keeps_its_export_until_then(
    data: Path, tmp_path: Path
) -> None:
    def arguments(name: str, steps: int) -> list[str]:
        where = {"run.dir": tmp_path / name, "data.path": data, "train.steps": steps, **FINETUNE}
        return ["finetune", *options(where, {})]

    def exported(name: str) -> tuple[dict[str, torch.Tensor], float]:
        file = tmp_path / name / "export" / "classifier.safetensors"
        with safe_open(str(file), framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            return tensors, float(opened.metadata()["val_balanced_accuracy"])

    log = tmp_path / "log"
    for name, steps in (("short", SHORT), ("long", LONG)):
        assert run(arguments(name, steps), log) == DONE, log.read_text()
    former = exported("short")
    longer = arguments("short", LONG)
    for _ in range(2):
        stopping = signal_in("step", 2, signal.SIGTERM)
        assert run(longer, log, before=stopping) == INTERRUPTED, log.read_text()
        assert exported("short")[1] >= former[1]
    assert run(longer, log) == DONE, log.read_text()
    assert_same_run(tmp_path / "short", tmp_path / "long")
    assert_same_state(exported("short"), exported("long"))


def test_metrics_of_the_decay_that_is_replaced_are_gone(
    data: Path, made: Path, tmp_path: Path
) -> None:
    folder, log = extended(made, tmp_path / "run"), tmp_path / "log"
    rates = {line["step"]: line["lr"] for line in lines_without_clock(folder) if "lr" in line}
    assert rates[10] < rates[8]
    assert run(pretrain_arguments(data, folder, LONG, **WSD), log, before=without_pictures) == DONE
    lines = [line for line in lines_without_clock(folder) if "lr" in line]
    assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})
    assert {line["step"]: line["lr"] for line in lines}[10] == rates[8]
