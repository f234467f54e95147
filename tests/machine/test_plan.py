"""The arithmetic of a plan, its words and its advice; one whole plan of a tiny run."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import real_runs  # registers convnextv2_speck, too
import torch
from fork_server import SERVER
from pictures_on_disk import write_pictures
from settled import settled

from fcmae.machine.memory import available_bytes, peak_bytes, private_bytes
from fcmae.machine.plan.advice import advise, describe, duration, size
from fcmae.machine.plan.planning import (
    Part,
    Plan,
    Scored,
    count_parts,
    largest_batch,
    short_run,
    time_parts,
)
from fcmae.settings.pretrain import (
    DataConfig,
    EvaluateConfig,
    HealthConfig,
    ModelConfig,
    PretrainConfig,
    PretrainLogConfig,
)
from fcmae.settings.sections import CheckpointConfig, OptimConfig, RunConfig, TrainConfig

GIB = 2**30


def make_config(**sections: Any) -> PretrainConfig:
    plain: dict[str, Any] = {
        "run": RunConfig(dir="runs/none"),
        "data": DataConfig(path="images", image_size=64, in_chans=1, workers=1),
        "train": TrainConfig(steps=2500, batch_size=8),
        "optim": OptimConfig(base_lr=3.2e-3),
        "model": ModelConfig(name="convnextv2_atto"),
    }
    config: PretrainConfig = settled(PretrainConfig(**{**plain, **sections}))
    return config


def make_plan(config: PretrainConfig | None = None, **changes: Any) -> Plan:
    """A plan that needs no advice: 100 steps of 1 s, 2 cores, plenty of memory."""
    plan = Plan(
        config=config or make_config(),
        device="cpu",
        num_images=400,
        effective_batch=8,
        total_steps=100,
        parts=(Part("training steps", 1.0, 100), Part("start, last scores and export", 5.0, 1)),
        memory_bytes=GIB,
        reader_bytes=GIB // 10,
        device_bytes=None,
        free_bytes=8 * GIB,
        largest_batch=500,
        read_rate=40.0,
        compute_rate=9.0,
        rate=8.0,
        cores=2,
        threads=2,
        is_busy=False,
    )
    return dataclasses.replace(plan, **changes)


def test_the_parts_of_a_run_are_counted_as_the_run_does_them() -> None:
    config = make_config(
        log=PretrainLogConfig(pictures_every_steps=30),
        evaluate=EvaluateConfig(every_steps=25),
        health=HealthConfig(checks=5),
        checkpoint=CheckpointConfig(every_steps=40),
    )
    # pictures: start, 30, 60, 90, end; kNN: 0, 25 .. 100; checks: start and 5; saves: 40, 80, 100
    expected = {"step": 100, "picture": 5, "knn": 5, "health": 6, "checkpoint": 3}
    assert count_parts(config, 100, has_labels=True) == expected
    assert count_parts(config, 100, has_labels=False)["knn"] == 0
    assert count_parts(config, 80, has_labels=True)["checkpoint"] == 2


def test_what_is_never_done_at_a_cadence_is_done_at_the_ends_alone() -> None:
    config = make_config(
        checkpoint=CheckpointConfig(every_steps=None), health=HealthConfig(checks=0)
    )
    counts = count_parts(config, 100, has_labels=True)
    assert counts == {"step": 100, "picture": 2, "knn": 0, "health": 1, "checkpoint": 1}


def test_a_short_run_does_everything_once_and_leaves_the_rest_alone() -> None:
    config = make_config(
        train=TrainConfig(epochs=800, batch_size=8),
        optim=OptimConfig(warmup_epochs=40),
        evaluate=EvaluateConfig(every_steps=500, labels=20),
    )
    short, warm = short_run(config, total_steps=10_000, step_seconds=1.0)
    assert warm == 3  # the first, and two batches that the reader has ready
    assert short.train.steps == 3 + 15
    assert short.evaluate.every_steps == 18
    assert short.evaluate.max_images == 40
    assert short.health.checks == 1
    assert short.data == config.data
    assert short.model == config.model


@pytest.mark.parametrize(
    ("total", "seconds", "steps", "warm"),
    [(1, 1.0, 1, 0), (2, 1.0, 2, 1), (10_000, 100.0, 7, 3), (10_000, 0.001, 63, 3)],
)
def test_a_short_run_is_no_longer_than_the_run_or_than_needed(
    total: int, seconds: float, steps: int, warm: int
) -> None:
    short, found = short_run(make_config(), total, seconds)
    assert (short.train.steps, found) == (steps, warm)


REHEARSED = {
    "step": [9.0, 2.0, 1.0, 1.2, 1.1],  # the first starts the readers
    "picture": [0.5, 0.3],
    "knn": [4.0, 4.0],
    "features": [3.0, 3.0, 6.0],
    "health": [1.0, 1.0],
    "checkpoint": [0.2],
    "scores": [8.0],
}
COUNTS = {"step": 100, "picture": 4, "knn": 5, "health": 6, "checkpoint": 3}


def test_the_time_of_a_run_by_hand() -> None:
    parts = time_parts(REHEARSED, 40.0, 2, COUNTS, Scored(400, 200), make_config())
    found = {part.name: (part.seconds, part.times) for part in parts}
    assert found["training steps"] == (1.1, 100)
    assert found["pictures"] == (0.4, 4)
    assert found["kNN scores"] == (4.0 + 3.0, 5)  # twice the images: their features cost 3 s more
    assert found["health checks"] == (1.0, 6)
    assert found["checkpoints"] == (0.2, 3)
    # 40 s less 14.3, 0.8, 8, 2 and 0.2 of the above; 11 - 2.2 of the first steps; 6 of scores
    once, times = found["start, last scores and export"]
    assert times == 1
    assert once == pytest.approx(14.7 + 8.8 + 6.0)


def test_checkpoints_by_the_clock_are_counted_from_the_time_of_the_rest() -> None:
    config = make_config(checkpoint=CheckpointConfig(every_steps=None, every_minutes=0.5))
    counts = {**COUNTS, "checkpoint": 1}
    parts = time_parts(REHEARSED, 40.0, 2, counts, Scored(400, 400), config)
    (saves,) = [part for part in parts if part.name == "checkpoints"]
    assert saves.times == 1 + 4  # 110 + 1.6 + 20 + 6 + 0.2 s are 4.6 half minutes


def test_parts_that_did_nothing_are_left_out() -> None:
    seconds = {**REHEARSED, "knn": [1e-6], "scores": [1e-6], "features": [], "health": [2e-6]}
    counts = {**COUNTS, "knn": 0}  # no labels, and too few images to hold some out
    parts = time_parts(seconds, 40.0, 2, counts, Scored(0, 200), make_config())
    assert [part.name for part in parts[:-1]] == ["training steps", "pictures", "checkpoints"]


def test_parts_that_did_not_happen_are_left_out() -> None:
    parts = time_parts({"step": [1.0, 1.0]}, 5.0, 1, COUNTS, Scored(0, 10), make_config())
    assert [part.name for part in parts] == ["training steps", "start, last scores and export"]


def test_the_largest_batch_fills_nine_tenths_of_what_is_free() -> None:
    config = make_config(train=TrainConfig(steps=1, batch_size=8, device="cpu"))
    waiting = 2 * 4 * 64 * 64  # two float32 images per image of a batch, in the reader's hands
    growth = 1_000_000.0
    taken, free = 1e9, 2e9
    expected = int(8 + (0.9 * 2e9 - 1e9) / (growth + waiting))
    assert largest_batch(config, taken, free, growth) == expected
    assert largest_batch(config, 3e9, free, growth) == 1
    assert largest_batch(config, taken, free, 0.0) is None


def test_the_largest_batch_of_a_gpu_leaves_room_for_the_batch_that_is_copied_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = make_config(train=TrainConfig(steps=1, batch_size=8, device="cuda"))
    expected = int(8 + (0.9 * 2e9 - 1e9) / (1_000_000 + 4 * 64 * 64))
    assert largest_batch(config, 1e9, 2e9, 1_000_000.0) == expected


def test_a_plan_that_needs_no_change_says_so() -> None:
    assert list(advise(make_plan())) == []
    text = describe(make_plan())
    assert "convnextv2_atto, 400 images, 100 steps of 8 on cpu (2 cores)" in text
    assert "100 x     1.00 s  =   1 min 40 s" in text
    assert "whole run" in text
    assert "1 min 45 s" in text
    assert "An epoch takes 50 s: 8.0 images/s." in text
    assert "1 reader gives 40.0 and the steps take 9.0: computing sets the pace." in text
    assert "Peak memory 1.00 GiB in the training process and 0.10 GiB in its readers" in text
    assert "8.00 GiB were free on the cpu. Up to about 500 images at a time should fit." in text
    assert text.endswith("Nothing needs to change.")


def data(workers: int) -> DataConfig:
    return DataConfig(path="images", image_size=64, in_chans=1, workers=workers)


@pytest.mark.parametrize(
    ("sections", "changes", "advice"),
    [
        ({}, {"is_busy": True}, "Measure again when the machine is idle"),
        ({"data": data(2)}, {"device": "cuda:0", "cores": 16, "read_rate": 100.0,
         "compute_rate": 290.0, "config": None}, "Set data.workers to 6: 2 readers give 100"),
        ({"data": data(2)}, {"device": "cuda:0", "cores": 4, "read_rate": 100.0,
         "compute_rate": 290.0, "config": None}, "Set data.workers to 3: 2 readers give 100"),
        ({}, {"read_rate": 5.0}, "Set data.cache .* 1 reader gives 5 .* could take 9"),
        ({"data": data(0)}, {}, "Set data.workers to 1: reading in the training process"),
        ({"data": data(4)}, {}, "Set data.workers to 1: 4 readers and 2 computing threads share 2"),
        ({}, {"memory_bytes": 7 * GIB, "largest_batch": 8},
         "train.batch_size to 4 and train.accumulate to 2, or .* 7.10 GiB of 8.00 GiB"),
        ({"train": TrainConfig(steps=100, batch_size=8, accumulate=4)}, {},
         "train.batch_size to 32 and train.accumulate to 1"),
        ({"model": ModelConfig(name="convnextv2_atto", checkpoint_activations=True)}, {},
         "model.checkpoint_activations false"),
        ({"model": ModelConfig(name="convnextv2_atto", backend="masked_dense")}, {},
         "model.backend native: masked_dense"),
        ({}, {"device": "cuda:0"}, "train.precision bf16"),
        ({}, {"threads": 1}, "OMP_NUM_THREADS to 2: torch uses 1 of the 2 cores"),
        ({}, {"parts": (Part("training steps", 1.0, 80), Part("kNN scores", 2.0, 10))},
         "Raise evaluate.every_steps: kNN scores take 20 % of the whole time"),
        ({}, {"parts": (Part("training steps", 1.0, 80), Part("pictures", 2.0, 10))},
         "Raise log.pictures_every_steps: pictures take 20 %"),
        ({}, {"parts": (Part("training steps", 1.0, 80), Part("checkpoints", 2.0, 10))},
         "Raise checkpoint.every_steps: checkpoints take 20 %"),
        ({}, {"parts": (Part("training steps", 1.0, 80), Part("health checks", 2.0, 10))},
         "Lower health.images or health.checks: health checks take 20 %"),
        ({"checkpoint": CheckpointConfig(every_minutes=None)},
         {"parts": (Part("training steps", 60.0, 100),)},
         "Set checkpoint.every_minutes to 30: a kill would cost up to 1 h 40 min"),
    ],
)  # fmt: skip
def test_advice_names_the_setting_and_the_reason(
    sections: dict[str, Any], changes: dict[str, Any], advice: str
) -> None:
    import re

    changes.pop("config", None)
    found = list(advise(make_plan(make_config(**sections), **changes)))
    assert any(re.search(advice, sentence) for sentence in found), found


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.853, "0.85 s"), (12.4, "12 s"), (59.6, "1 min 0 s"), (423, "7 min 3 s"),
     (3600, "1 h 0 min"), (19_200, "5 h 20 min"), (273_600, "3 d 4 h")],
)  # fmt: skip
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_sizes_in_words() -> None:
    assert size(1.5 * GIB) == "1.50 GiB"
    assert size(79.6 * GIB) == "80 GiB"


def test_memory_is_read_in_bytes(tmp_path: Path) -> None:
    before = peak_bytes()
    assert 10_000_000 < before < 2**40
    assert 0 < available_bytes(torch.device("cpu")) < 2**50
    assert private_bytes(os.getpid()) in range(1_000_000, 2**40)
    assert private_bytes(2**30) is None  # no such process
    log = tmp_path / "log"
    assert SERVER.wait(SERVER.start(grow_by_a_block, log)) == 0, log.read_text()


def grow_by_a_block() -> None:
    before = peak_bytes()
    block = bytearray(200_000_000)
    block[::4096] = b"\x01" * len(block[::4096])
    assert peak_bytes() >= before + 100_000_000


def words_of_a_plan(folder: Path) -> list[str]:
    return [
        *("plan", "--run.dir", str(folder / "run"), "--data.path", str(folder / "pictures")),
        *("--model.name", "convnextv2_atto", "--model.decoder_dim", "8", "--train.steps", "50"),
        *("--data.image_size", "64", "--data.workers", "0", "--train.batch_size", "4"),
        *("--log.tensorboard", "false", "--log.num_pictures", "1"),
    ]


@pytest.mark.slow
def test_a_plan_is_printed_and_the_run_folder_is_not_touched(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    write_pictures(tmp_path / "pictures", 90)
    command = [sys.executable, "-m", "fcmae", *words_of_a_plan(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "86 images, 50 steps of 4 on cpu" in done.stdout
    assert "training steps" in done.stdout
    assert "health checks" in done.stdout
    assert "Peak memory" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]
    log = tmp_path_factory.mktemp("logs") / "log"
    words = [*words_of_a_plan(tmp_path), "--data.cache", str(tmp_path / "cache")]
    assert real_runs.run(words, log) == 0, log.read_text()
    assert re.search(r"filling data\.cache +86 x", log.read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]


def test_a_trial_leaves_the_cache_of_the_user_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fcmae.machine.plan import trials
    from fcmae.settings.reading import to_plain

    write_pictures(tmp_path / "pictures", 60, channels=1)
    monkeypatch.setattr("fcmae.pretraining.monitoring.draw_reconstructions", lambda *_, **__: None)
    config = make_config(
        data=DataConfig(
            path=str(tmp_path / "pictures"),
            image_size=64,
            in_chans=1,
            workers=0,
            cache=str(tmp_path / "cache"),
        ),
        train=TrainConfig(steps=2, batch_size=4, device="cpu"),
        model=ModelConfig(name="convnextv2_speck", decoder_dim=8),
        health=HealthConfig(checks=0),
    )
    plain = to_plain(config)
    assert trials.rehearse(plain)["num_cached"] == 8
    assert trials.measure_parts(plain)["read_seconds_per_image"] > 0
    assert not (tmp_path / "cache").exists()


def test_mistakes_are_those_of_pretrain(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from fcmae.__main__ import main
    from fcmae.errors import MISTAKE

    write_pictures(tmp_path / "pictures", 4)
    base = ["plan", "--run.dir", str(tmp_path / "run"), "--data.path", str(tmp_path / "pictures")]
    assert main([*base, "--train.steps", "5", "--train.batch_size", "64"]) == MISTAKE
    assert "train.batch_size: a step takes 64 images" in capfd.readouterr().err
    assert main([*base, "--train.stepz", "5"]) == MISTAKE
    assert "Did you mean train.steps" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_trials_that_fail_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from fcmae.errors import ConfigError, DataError
    from fcmae.machine.plan import trials

    def pretend(returncode: int, stderr: str) -> None:
        done = subprocess.CompletedProcess([], returncode, "", stderr)
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)

    pretend(-9, "step 1\rstep 2")
    with pytest.raises(ConfigError, match="8 images at a time do not fit into the memory"):
        trials.run_trial(trials.rehearse, make_config())
    pretend(1, "torch.OutOfMemoryError: CUDA out of memory.\n")
    with pytest.raises(ConfigError, match=r"train.batch_size: .* raise train.accumulate"):
        trials.run_trial(trials.rehearse, make_config())
    pretend(1, "Traceback\nfcmae.errors.DataError: nothing can be decoded.\n")
    with pytest.raises(DataError, match=r"the trial run failed: .*nothing can be decoded"):
        trials.run_trial(trials.rehearse, make_config())


def test_a_recipe_that_stands_out_is_told() -> None:
    config = make_config(
        train=TrainConfig(steps=400, batch_size=8), optim=OptimConfig(warmup_steps=107)
    )
    advice = list(advise(make_plan(config)))
    assert [sentence.split(" ")[0] for sentence in advice] == ["Warm-up", "400", "The"]
