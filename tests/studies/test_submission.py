"""`fcmae submit`: the job's script, and a job that is submitted, preempted, requeued, finished."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fork_server import PATIENCE_SECONDS
from pictures_on_disk import write_pictures
from real_runs import assert_same_run, pretrain_arguments, run_together
from undrawn import without_pictures

from fcmae.__main__ import main
from fcmae.cli import pretrain
from fcmae.errors import DONE, MISTAKE
from fcmae.settings.submit import SlurmConfig
from fcmae.studies.submission import Job, submit

pytest.importorskip("submitit", reason="the extra slurm is not installed")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("dance", "fcmae submit: got 'dance', expected pretrain or finetune."),
        ("pretrain --slurm.node 2", "unknown setting 'slurm.node'. Did you mean slurm.nodes"),
        ("pretrain --slurm.gpus -1", "slurm.gpus: got -1, expected 0 or more."),
        ("pretrain --slurm.hours 0.01", "slurm.hours: got 0.01, expected more than slurm.grace_"),
        ("pretrain --slurm.hours .inf", "slurm.hours: got inf, expected more than slurm.grace_"),
        ("pretrain --executor local --slurm.nodes 2", "expected 1 with the local executor."),
        ("pretrain --executor cloud", "slurm.executor: got 'cloud', expected one of slurm, local"),
        ("pretrain --train.stepz 3", "unknown setting 'train.stepz'. Did you mean train.steps"),
        ("pretrain --data.path nosuch", "data.path: 'nosuch'"),
        ("finetune --data.path nosuch --model.name convnextv2_atto", "data.path: 'nosuch'"),
        ("pretrain --model.name nosuch", "model.name: 'nosuch' is not a ConvNeXt of timm"),
        ("pretrain --data.image_size 100", "data.image_size: 100 px is not a multiple of"),
    ],
)
def test_mistakes_are_told_before_anything_is_queued(
    words: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_pictures(tmp_path / "data", 3)
    rest = ["--run.dir", str(tmp_path / "run")]
    rest += [] if "data.path" in words else ["--data.path", str(tmp_path / "data")]
    rest += [] if "stepz" in words else ["--train.steps", "3"]
    assert main(["submit", *words.split(), *rest]) == MISTAKE
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_machine_without_slurm_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    write_pictures(tmp_path / "data", 3)
    words = ["--run.dir", str(tmp_path / "run"), "--data.path", str(tmp_path / "data")]
    words += ["--train.steps", "3"]
    assert main(["submit", "pretrain", *words]) == MISTAKE
    told = capsys.readouterr().err
    assert "slurm.executor: slurm cannot be used here" in told
    assert "run this on a login node" in told


def test_without_submitit_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    write_pictures(tmp_path / "data", 3)
    words = ["--run.dir", "run", "--data.path", str(tmp_path / "data"), "--train.steps", "3"]
    assert main(["submit", "pretrain", *words]) == MISTAKE
    assert "pip install 'fcmae[slurm]'" in capsys.readouterr().err


def test_the_script_that_slurm_gets_asks_for_what_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in (("sbatch", "echo Submitted batch job 42"), ("srun", "")):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    write_pictures(tmp_path / "data", 3)
    words = ["--run.dir", str(tmp_path / "run"), "--data.path", str(tmp_path / "data")]
    words += ["--train.steps", "3"]
    job = "--slurm.nodes 2 --slurm.gpus 8 --slurm.hours 24 --slurm.partition big"
    extra = ["--slurm.memory_gib=500", "--slurm.extra={qos: low}"]
    assert main(["submit", "pretrain", *words, *job.split(), *extra]) == DONE
    assert "job 42 is queued; it trains in" in capsys.readouterr().out
    script = next((tmp_path / "run-jobs").glob("*.sh")).read_text()
    for line in (
        "#SBATCH --nodes=2",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --time=1440",
        "#SBATCH --partition=big",
        "#SBATCH --mem=500GB",
        "#SBATCH --qos=low",
        "#SBATCH --signal=USR2@120",
        "#SBATCH --job-name=run",
    ):
        assert line in script.splitlines(), script
    assert "--kill-on-bad-exit=1" in script


@pytest.mark.slow
@pytest.mark.ddp
def test_a_local_job_is_submitted_preempted_requeued_and_finished_exactly(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", 13)
    settings: dict[str, Any] = {
        "model__name": "convnextv2_atto",
        "train__batch_size": 2,
        "data__workers": 1,
    }
    undisturbed = pretrain_arguments(tmp_path / "data", tmp_path / "undisturbed", 16, **settings)
    log = tmp_path / "log"
    assert run_together(undisturbed, log, 2, before=without_pictures) == [DONE, DONE]
    run_dir = tmp_path / "run"
    arguments = pretrain_arguments(tmp_path / "data", run_dir, 16, **settings)[1:]
    slurm = SlurmConfig(executor="local", gpus=2, hours=1.0)
    job = submit(Job(pretrain.run, arguments), slurm, str(run_dir))
    wait_for(run_dir / "checkpoints" / "step-00000006", job)
    main_process = int((run_dir / "lock").read_text().split()[1])
    os.kill(main_process, signal.SIGUSR2)  # as SLURM does before the time is over
    wait_for(run_dir / "finished.txt", job)
    job.wait()
    output = job.paths.stdout.read_text() + job.paths.stderr.read_text()
    assert "SIGUSR2: stopped after step" in output
    assert "Requeued job" in output
    assert "continuing after step" in output
    assert_same_run(run_dir, tmp_path / "undisturbed")


def wait_for(path: Path, job: Any) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not path.exists():
        assert time.monotonic() < end
        assert not job.done(), job.paths.stderr.read_text()
        time.sleep(0.01)
