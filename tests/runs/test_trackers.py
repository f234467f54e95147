"""Weights & Biases and MLflow get a run's numbers, continue with it, and stop nothing."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import real_runs
from fork_server import SERVER
from pictures_on_disk import write_pictures
from undrawn import without_pictures

from fcmae.__main__ import main
from fcmae.errors import DONE, INTERRUPTED, MISTAKE
from fcmae.runs.metrics import MetricsLog, read_metrics
from fcmae.runs.trackers import FILE, Subject, openers

pytestmark = pytest.mark.usefixtures("undrawn")

STEPS, STOPPED_AT = 4, 2


class Broken:
    """A tracker that fails when it is told of a step from `at_step` on, or when it is closed."""

    def __init__(self, at_step: int = 1, error: Exception | None = None) -> None:
        self.got: list[int] = []
        self.at_step, self.error = at_step, error or RuntimeError("no server")

    def add(self, step: int, values: dict[str, float]) -> None:
        """Take a step's scalars, or fail."""
        if step >= self.at_step:
            raise self.error
        self.got.append(step)

    def close(self) -> None:
        """Fail."""
        raise ConnectionError(111, "Connection refused")


def refuse() -> Any:
    raise ImportError("libtracker.so: cannot open shared object file")


def test_a_tracker_that_fails_is_one_sentence_and_the_others_go_on(tmp_path: Path) -> None:
    told: list[str] = []
    broken, patient = Broken(at_step=2), Broken(at_step=99)
    trackers: dict[str, Callable[[], Any]] = {
        "numbers at A": lambda: broken,
        "numbers at B": lambda: patient,
        "numbers at C": refuse,
    }
    log = MetricsLog(tmp_path, report=told.append, tensorboard=False, trackers=trackers)
    for step in (1, 2, 3):
        log.log(step, {"loss": 1 / step, "name": "no number", "nothing": None})
    log.close()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert (broken.got, patient.got) == ([1], [1, 2, 3])
    assert told == [
        "there are no numbers at C: opening them failed (ImportError: libtracker.so: cannot open "
        "shared object file); training goes on.",
        "numbers at A stop here: writing those of step 2 failed (RuntimeError: no server); "
        "training goes on.",
        "closing the numbers at B failed (Connection refused); training goes on.",
    ]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_one_sentence_before_anything_starts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fcmae.runs.trackers.find_spec", lambda name: None)
    data, run = write_pictures(tmp_path / "data", 4)[0].parent, tmp_path / "run"
    words = real_runs.pretrain_arguments(data, run, STEPS, log__to=f"[tensorboard, {name}]")
    assert main(words) == MISTAKE
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert f"log.to: {name} is not installed; run pip install 'fcmae[{name}]'" in said
    assert not run.exists()


def test_a_service_that_nobody_knows_is_refused_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = real_runs.pretrain_arguments(tmp_path, tmp_path / "run", STEPS, log__to="wandbb")
    assert main(words) == MISTAKE
    said = capsys.readouterr().err
    assert "log.to" in said
    assert "wandb" in said


def tracked_stopped_and_continued(words: list[str]) -> None:
    """Be a run that a signal stops after some steps and that is started again."""
    real_runs.signal_in("step", STOPPED_AT, signal.SIGTERM)()
    assert main(words) == INTERRUPTED
    assert main(words) == DONE


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that two services were told of, stopped once."""
    folder = tmp_path_factory.mktemp("tracked")
    data = write_pictures(folder / "data", 8)[0].parent
    words = real_runs.pretrain_arguments(
        data, folder / "run", STEPS, log__to="[wandb, mlflow]", log__every_steps=1,
        log__project="cells",
    )  # fmt: skip
    log = folder / "log"
    offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_TRACKING_URI": ""}
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):  # else a home has it
        offline[name] = str(folder / name)
    work = partial(tracked_stopped_and_continued, words)
    assert SERVER.wait(SERVER.start(work, log, offline)) == 0, log.read_text()
    said = log.read_text()
    assert "failed" not in said, said
    return folder / "run"


def test_mlflow_has_every_step_of_a_continued_run_in_one_run(tracked: Path) -> None:
    known = json.loads((tracked / FILE).read_text())
    (experiment,) = [
        path for path in (tracked / "mlruns").iterdir() if (path / known["mlflow"]).is_dir()
    ]
    (run,) = [path for path in experiment.iterdir() if path.is_dir() and path.name != "tags"]
    lines = (run / "metrics/loss").read_text().splitlines()
    values = {int(line.split()[2]): float(line.split()[1]) for line in lines}
    expected = {
        line["step"]: line["loss"]
        for line in read_metrics(tracked / "metrics.jsonl")
        if "loss" in line
    }
    assert values == expected
    assert sorted(values) == [1, 2, 3, 4]
    assert (run / "params/mask.ratio").read_text() == "0.5"
    assert "name: cells" in (experiment / "meta.yaml").read_text()
    assert "end_time: null" not in (run / "meta.yaml").read_text()


def test_weights_and_biases_has_the_continued_run_under_one_name(tracked: Path) -> None:
    name = json.loads((tracked / FILE).read_text())["wandb"]
    files = sorted((tracked / "wandb").glob("offline-run-*/*.wandb"))
    assert {file.name for file in files} == {f"run-{name}.wandb"}
    assert all(file.stat().st_size > 0 for file in files)
    content = b"".join(file.read_bytes() for file in files)
    assert b"cells" in content
    assert b"grad_norm" in content


def test_what_tracks_a_run_changes_nothing_in_it(tracked: Path, tmp_path: Path) -> None:
    words = real_runs.pretrain_arguments(
        tracked.parent / "data", tmp_path / "run", STEPS, log__every_steps=1
    )
    log = tmp_path / "log"
    assert real_runs.run(words, log, before=without_pictures) == DONE, log.read_text()
    real_runs.assert_same_run(tracked, tmp_path / "run")


def test_a_run_that_is_gone_at_mlflow_is_begun_anew(tmp_path: Path) -> None:
    log = tmp_path / "log"
    work = partial(begun_anew, str(tmp_path))
    environment = {"MLFLOW_TRACKING_URI": ""}
    assert SERVER.wait(SERVER.start(work, log, environment)) == 0, log.read_text()


def begun_anew(folder: str) -> None:
    """Be told of a run of MLflow that nobody has any more."""
    subject = Subject(Path(folder), "cells", {"mask.ratio": 0.6})
    subject.remember("mlflow", "0" * 32)
    (opener,) = openers(["tensorboard", "mlflow"], subject).values()
    tracker = opener()
    tracker.add(1, {"health/loss_at_0.6": 0.5, "val_accuracy/a & b": 1.0})
    tracker.close()
    name = subject.recall("mlflow")
    assert name not in (None, "0" * 32)
    metrics = next(Path(folder, "mlruns").glob(f"*/{name}/metrics"))
    assert {path.name for path in (metrics / "val_accuracy").iterdir()} == {"a _ b"}
