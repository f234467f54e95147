"""A run that is stopped and started again is bitwise the undisturbed one, in every variation."""

from __future__ import annotations

import os
import shutil
import signal
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from pictures_on_disk import write_pictures
from real_runs import (
    assert_same_run,
    assert_same_state,
    final_state,
    options,
    pretrain_arguments,
    run,
    start,
    wait,
    wait_for,
)
from undrawn import without_pictures

from fcmae.errors import DONE, INTERRUPTED, MISTAKE

STEPS = 20
FINETUNE = {
    "data.image_size": 64,
    "data.workers": 0,
    "data.val_share": 0.3,
    "model.name": "convnextv2_speck",
    "optim.base_lr": 0.1,
    "train.batch_size": 4,
    "train.steps": STEPS,
    "train.device": "cpu",
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


def stop_after(arguments: list[str], run_dir: Path, log: Path, checkpoint: int) -> None:
    """Start a run and stop it by a signal once it has written the checkpoint of a step."""
    pid = start(arguments, log, before=without_pictures)
    try:
        wait_for(run_dir / "checkpoints" / f"step-{checkpoint:08d}", pid)
        os.kill(pid, signal.SIGTERM)
    finally:
        status = wait(pid)
    assert status == INTERRUPTED, log.read_text()


def check(undisturbed: list[str], stopped: list[str], folder: Path, then: list[str]) -> None:
    """Compare a run with one that is stopped twice and ended by the command `then`."""
    log = folder / "log"
    assert run(undisturbed, log, before=without_pictures) == DONE, log.read_text()
    for checkpoint in (3, 9):
        stop_after(stopped, folder / "stopped", log, checkpoint)
    assert run(then, log, before=without_pictures) == DONE, log.read_text()
    assert_same_run(folder / "stopped", folder / "undisturbed")


@pytest.mark.parametrize(
    "settings",
    [
        {"model__drop_path": 0.5, "train__accumulate": 2},
        pytest.param(
            {"train__precision": "bf16", "checkpoint__every_minutes": 0.0001},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {
                "evaluate__every_steps": 4,
                "evaluate__labels": 8,
                "evaluate__draws": 3,
                "checkpoint__keep_every": 6,
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=["drop path and accumulation", "bf16 and saving by time", "scores"],
)
def test_a_stopped_pretraining_goes_on_exactly(
    settings: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    # Runs that are saved by time are stopped where the others have a checkpoint, too.
    settings = {"optim__base_lr": 0.02, **settings}
    undisturbed = pretrain_arguments(data, tmp_path / "undisturbed", 20, **settings)
    stopped = pretrain_arguments(data, tmp_path / "stopped", 20, **settings)
    check(undisturbed, stopped, tmp_path, stopped)


@pytest.mark.parametrize(
    "settings",
    [
        {"ema__decay": 0.9, "model__drop_path": 0.3, "evaluate__every_steps": 5},
        pytest.param(
            {"augment__mixup": 0.8, "augment__cutmix": 1.0, "train__accumulate": 2},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["moving average and drop path", "mixing and accumulation"],
)
def test_a_stopped_fine_tuning_goes_on_exactly(
    settings: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    def arguments(name: str) -> list[str]:
        where = {"run.dir": tmp_path / name, "data.path": data, **FINETUNE}
        return ["finetune", *options(where, settings)]

    check(arguments("undisturbed"), arguments("stopped"), tmp_path, arguments("stopped"))


def test_another_split_of_the_same_batch_and_other_readers_go_on(
    data: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    first = pretrain_arguments(data, tmp_path / "run", 20)
    stop_after(first, tmp_path / "run", log, 3)
    split = {"train__batch_size": 2, "train__accumulate": 2, "data__workers": 2}
    assert run(pretrain_arguments(data, tmp_path / "run", 20, **split), log) == DONE
    assert final_state(tmp_path / "run")["progress"]["step"] == 20
    whole = pretrain_arguments(data, tmp_path / "whole", 20)
    assert run(whole, log, before=without_pictures) == DONE
    losses = [final_state(tmp_path / name)["progress"]["history"] for name in ("run", "whole")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_another_effective_batch_is_refused(data: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    stop_after(pretrain_arguments(data, tmp_path / "run", 20), tmp_path / "run", log, 3)
    other = pretrain_arguments(data, tmp_path / "run", 20, train__batch_size=8)
    assert run(other, log) == MISTAKE
    assert (
        "error: train.batch_size: the run's effective batch size is 4 and now it is 8 "
        "(batch_size x accumulate x processes); change batch_size or accumulate"
    ) in log.read_text()


def test_a_finished_run_started_again_says_so_and_changes_nothing(
    data: Path, tmp_path: Path
) -> None:
    log, arguments = tmp_path / "log", pretrain_arguments(data, tmp_path / "run", 4)
    assert run(arguments, log) == DONE

    def times() -> dict[str, int]:
        kept = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
        ours = {"lock", "config.yaml", "last"}  # written at every start
        return {str(path): path.stat().st_mtime_ns for path in kept if path.name not in ours}

    before = times()
    assert run(arguments, log) == DONE
    assert times() == before
    assert "this run is finished, nothing is left to do; remove " in log.read_text()


def test_results_that_a_kill_prevented_are_made_by_the_next_start(
    data: Path, tmp_path: Path
) -> None:
    log, arguments = tmp_path / "log", pretrain_arguments(data, tmp_path / "run", 4)
    assert run(arguments, log) == DONE
    exported = (tmp_path / "run" / "export" / "encoder.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run" / "export")
    (tmp_path / "run" / "finished.txt").unlink()
    assert run(arguments, log) == DONE
    assert (tmp_path / "run" / "export" / "encoder.safetensors").read_bytes() == exported


def test_a_run_goes_on_without_files_that_came_or_went(data: Path, tmp_path: Path) -> None:
    images = tmp_path / "data"
    shutil.copytree(data, images)
    log, arguments = tmp_path / "log", pretrain_arguments(images, tmp_path / "run", 20)
    stop_after(arguments, tmp_path / "run", log, 3)
    shutil.copy(images / "left" / "picture-000.png", images / "left" / "another.png")
    (images / "right" / "picture-003.png").unlink()
    assert run([*arguments, "--data.max_skipped_share=0.2"], log) == DONE
    said = log.read_text()
    assert "1 of the run's 20 images are gone" in said
    assert "1 new images wait for another run." in said
    assert (
        "picture-003.png\tthe file does not exist"
        in (tmp_path / "run" / "skipped_files.txt").read_text()
    )


def test_a_list_of_images_cut_short_is_noticed(data: Path, tmp_path: Path) -> None:
    log, arguments = tmp_path / "log", pretrain_arguments(data, tmp_path / "run", 20)
    stop_after(arguments, tmp_path / "run", log, 3)
    recorded = tmp_path / "run" / "images.jsonl"
    recorded.write_text("".join(recorded.read_text().splitlines(keepends=True)[:-1]))
    assert run(arguments, log) == MISTAKE
    assert (
        "images.jsonl: lists 19 images, and the checkpoint's run has 20; restore the file"
        in log.read_text()
    )


def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_it_used(
    data: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    arguments = pretrain_arguments(data, tmp_path / "stopped", 20)
    undisturbed = pretrain_arguments(data, tmp_path / "undisturbed", 20)
    assert run(undisturbed, log, before=without_pictures) == DONE
    stop_after(arguments, tmp_path / "stopped", log, 6)
    newest = max((tmp_path / "stopped" / "checkpoints").glob("step-*")) / "state.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert run(arguments, log, before=without_pictures) == DONE
    assert f"{newest.parent}: damaged checkpoint, not used: its checksum" in log.read_text()
    assert_same_run(tmp_path / "stopped", tmp_path / "undisturbed")


def test_a_checkpoint_of_something_else_is_one_sentence(data: Path, tmp_path: Path) -> None:
    from fcmae.runs.checkpoints import CheckpointStore

    log, arguments = tmp_path / "log", pretrain_arguments(data, tmp_path / "run", 20)
    stop_after(arguments, tmp_path / "run", log, 3)
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    good = final_state(tmp_path / "run")
    for wrong in ({"progress": {"leap": 1}}, {"model": 3}, {"skipped": None}):
        store.save(39, {**good, **wrong})
        assert run(arguments, log) == MISTAKE
        assert "checkpoints: does not fit the model: " in log.read_text().splitlines()[-1]


def test_a_run_over_shards_goes_on_as_the_run_over_the_folder(data: Path, tmp_path: Path) -> None:
    files = sorted(path for path in data.rglob("*.png"))
    for number in range(3):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            for file in files[number::3]:
                archive.add(file, str(file.relative_to(data)))
    common = {"checkpoint__every_steps": 3, "evaluate__labels": 4}
    arguments = pretrain_arguments(data, tmp_path / "folder", STEPS, **common)
    assert run(arguments, tmp_path / "folder.log", before=without_pictures) == DONE
    shards = tmp_path / "{0..2}.tar"
    arguments = pretrain_arguments(shards, tmp_path / "shards", STEPS, data__workers=1, **common)
    stop_after(arguments, tmp_path / "shards", tmp_path / "shards.log", 6)
    assert run(arguments, tmp_path / "shards.log", before=without_pictures) == DONE
    assert_same_state(final_state(tmp_path / "shards"), final_state(tmp_path / "folder"))


def test_a_run_over_stacks_goes_on_as_the_run_over_single_arrays(tmp_path: Path) -> None:
    """Twenty images in one array, in files of their own, and in a store: the same samples."""
    values = np.random.default_rng(0).integers(0, 256, (20, 70, 80), dtype=np.uint8)
    for name in ("single", "stack", "store"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for number, image in enumerate(values):
        np.save(tmp_path / "data" / "single" / f"{number:02d}.npy", image)
    np.save(tmp_path / "data" / "stack" / "all.npy", values)
    group = zarr.open_group(str(tmp_path / "data" / "store" / "all.zarr"), mode="w")
    kept = group.create_array("a", shape=values.shape, dtype=values.dtype, chunks=(4, 35, 80))
    kept[...] = values
    common = {"checkpoint__every_steps": 3, "data__in_chans": 1}
    arguments = pretrain_arguments(
        tmp_path / "data" / "single", tmp_path / "single", STEPS, **common
    )
    assert run(arguments, tmp_path / "single.log", before=without_pictures) == DONE
    for name in ("stack", "store"):
        data = tmp_path / "data" / name
        arguments = pretrain_arguments(data, tmp_path / name, STEPS, data__workers=1, **common)
        log = tmp_path / f"{name}.log"
        stop_after(arguments, tmp_path / name, log, 6)
        assert run(arguments, log, before=without_pictures) == DONE, log.read_text()
        assert "1 file, 1 of them with 20 images, which makes 20: " in log.read_text()
        assert_same_state(final_state(tmp_path / name), final_state(tmp_path / "single"))
