"""`fcmae submit` and `ablate` on a real SLURM: preempted, requeued, refused, failed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fork_server import PATIENCE_SECONDS
from pictures_on_disk import write_pictures
from real_runs import assert_same_run, options, pretrain_arguments, run
from slurm import KILL_SECONDS, Slurm, missing_programs, running_slurm

from fcmae.errors import DONE, FAILED, MISTAKE
from fcmae.runs.checkpoints import CheckpointStore

pytest.importorskip("submitit", reason="the extra slurm is not installed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("slurm"),  # there is one, and it mostly waits: for `--dist loadgroup`
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
STEPS = 60
Console = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    missing = missing_programs()
    if missing:
        reason = f"not run: SLURM is not installed ({', '.join(missing)}): slurm-wlm and munge"
        if os.environ.get("FCMAE_REQUIRE_SLURM"):
            pytest.fail(reason)
        pytest.skip(reason)
    with running_slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_pictures(folder, 13)
    return folder


def words_of_a_run(data: Path, run_dir: Path, **changes: object) -> list[str]:
    settings: dict[str, object] = {"model__name": "convnextv2_atto", "train__batch_size": 2}
    settings |= {"checkpoint__every_steps": 100, "log__pictures_every_steps": "null"}
    return pretrain_arguments(data, run_dir, STEPS, **{**settings, **changes})


def console(slurm: Slurm, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the console as a user does; its interpreter imports for seconds."""
    return subprocess.run(
        [sys.executable, "-m", "fcmae", *words],
        env={**slurm.environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def fcmae(slurm: Slurm, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the same in a forked process, all of whose output is stdout here."""
    log = slurm.folder / "told"
    log.unlink(missing_ok=True)
    status = run(words, log, environment=slurm.environment)
    return subprocess.CompletedProcess(words, status, log.read_text())


def submit(slurm: Slurm, words: list[str], by: Console = fcmae, **job: object) -> str:
    settings: dict[str, object] = {"slurm.gpus": 0, "slurm.cpus_per_process": 1, "slurm.hours": 1}
    settings |= {"slurm.grace_seconds": 60}
    settings |= {f"slurm.{name}": value for name, value in job.items()}
    done = by(slurm, "submit", words[0], *words[1:], *options(settings, {}))
    assert done.returncode == DONE, (done.stdout, done.stderr)
    found = re.match(r"job (\d+) is queued", done.stdout)
    assert found, done.stdout
    return found[1]


def wait_for(what: Callable[[], object], where: Path, seconds: float = PATIENCE_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, said(where)
        time.sleep(0.1)


def said(jobs: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in sorted(jobs.glob("*_log.*")))


def is_training(run_dir: Path, step: int) -> Callable[[], bool]:
    lines = run_dir / "metrics.jsonl"
    return lambda: lines.exists() and f'"step": {step}' in lines.read_text()


@pytest.fixture(scope="module")
def undisturbed(slurm: Slurm, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    submit(slurm, words_of_a_run(data, run_dir, train__steps=STEPS), console)
    wait_for((run_dir / "finished.txt").exists, run_dir.with_name("run-jobs"))
    return run_dir


@pytest.mark.parametrize("partition", ["low", "grace"])
@pytest.mark.parametrize("sends_user_signal", [False, True])
def test_a_preempted_job_loses_no_step_and_goes_on_exactly(
    partition: str,
    sends_user_signal: bool,
    slurm: Slurm,
    data: Path,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    slurm.let_preemption_send_the_user_signal(sends_user_signal)
    run_dir, jobs = tmp_path / "run", tmp_path / "run-jobs"
    job = submit(slurm, words_of_a_run(data, run_dir), partition=partition)
    wait_for(is_training(run_dir, 2), jobs)
    slurm.preempt()
    wait_for(lambda: slurm.job(job)["Restarts"] == "1", jobs)
    # None was due yet, and nothing else lets the run go on.
    wait_for(lambda: CheckpointStore(run_dir / "checkpoints").steps(), jobs, KILL_SECONDS)
    wait_for((run_dir / "finished.txt").exists, jobs)
    assert "continuing after step" in said(jobs)
    assert "Traceback" not in said(jobs)
    assert_same_run(run_dir, undisturbed)
    wait_for(lambda: slurm.job(job)["JobState"] == "COMPLETED", jobs)


def test_a_job_of_two_processes_is_requeued_although_the_first_is_slow_to_save(
    slurm: Slurm, data: Path, tmp_path: Path
) -> None:
    run_dir, jobs = tmp_path / "run", tmp_path / "run-jobs"
    words = words_of_a_run(data, run_dir, train__batch_size=1)
    # The main process closes its files three seconds after the others have left.
    patch = tmp_path / "patch"
    patch.mkdir()
    (patch / "sitecustomize.py").write_text(
        "import os, time\n"
        "if os.environ.get('SLURM_PROCID') == '0':\n"
        "    import fcmae.training.processes as p\n"
        "    close = p.Processes.close\n"
        "    p.Processes.close = lambda self: (close(self), time.sleep(6))\n"
    )
    slurm.environment["PYTHONPATH"] = f"{patch}:{os.environ.get('PYTHONPATH', '')}"
    try:
        job = submit(slurm, words, nodes=2)
    finally:
        slurm.environment["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
    wait_for(is_training(run_dir, 2), jobs)
    slurm.ask("scancel", "--signal=USR2", job)
    wait_for(lambda: slurm.job(job)["Restarts"] == "1", jobs)
    wait_for((run_dir / "finished.txt").exists, jobs)
    assert "SIGUSR2: stopped after step" in said(jobs)
    assert "Traceback" not in said(jobs)


def test_a_cancelled_job_leaves_a_checkpoint_and_is_not_queued_again(
    slurm: Slurm, data: Path, tmp_path: Path
) -> None:
    run_dir, jobs = tmp_path / "run", tmp_path / "run-jobs"
    job = submit(slurm, words_of_a_run(data, run_dir, train__steps=4000))
    wait_for(is_training(run_dir, 2), jobs)
    slurm.ask("scancel", job)
    wait_for(lambda: slurm.job(job)["JobState"] == "CANCELLED", jobs)
    wait_for(lambda: CheckpointStore(run_dir / "checkpoints").steps(), jobs)
    time.sleep(8)
    assert slurm.job(job)["Restarts"] == "0"
    assert slurm.job(job)["JobState"] == "CANCELLED"


def test_a_job_whose_requeues_are_used_up_says_so_in_one_sentence(
    slurm: Slurm, data: Path, tmp_path: Path
) -> None:
    run_dir, jobs = tmp_path / "run", tmp_path / "run-jobs"
    words = words_of_a_run(data, run_dir, train__steps=4000)
    job = submit(slurm, words, requeues=0, hours=0.02)
    wait_for(is_training(run_dir, 2), jobs)
    slurm.ask("scancel", "--signal=USR2", job)
    wait_for(lambda: slurm.job(job)["JobState"] not in ("RUNNING", "COMPLETING"), jobs)
    told = said(jobs)
    assert "slurm.requeues: used up" in told
    assert "Traceback" not in told
    assert slurm.job(job)["Restarts"] == "0"


@pytest.mark.parametrize(
    ("setting", "reason", "by"),
    [
        ("--slurm.partition=nosuch", "invalid partition specified: nosuch", console),
        ("--slurm.memory_gib=900000", "Memory specification can not be satisfied", fcmae),
        ("--slurm.constraint=nosuch", "Invalid feature specification", fcmae),
        ("--slurm.gpus=1", "Invalid generic resource (gres) specification", fcmae),
        ("--slurm.extra={qos: nosuch, nodes: many}", '"many" is not a valid node count', fcmae),
    ],
)
def test_what_slurm_refuses_is_one_sentence_and_leaves_nothing(
    setting: str, reason: str, by: Console, slurm: Slurm, data: Path, tmp_path: Path
) -> None:
    settings = [setting, "--slurm.hours=1", "--slurm.cpus_per_process=1"]
    settings += [] if "gpus" in setting else ["--slurm.gpus=0"]
    done = by(slurm, "submit", *words_of_a_run(data, tmp_path / "run"), *settings)
    told = done.stderr if by is console else done.stdout
    assert done.returncode == MISTAKE
    assert told.startswith("fcmae: error: SLURM refused the job: "), told
    assert reason in told
    assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_ablation_without_accounting_tells_of_a_failed_cell_and_ends(
    slurm: Slurm, data: Path, tmp_path: Path
) -> None:
    run = words_of_a_run(data, tmp_path / "cell", optim__base_lr=1e30, train__batch_size=4)
    settings = [word.replace("--", "--base.", 1) for word in run[1:] if "run.dir" not in word]
    job = ["--run.cluster=true", "--run.jobs=2", "--slurm.gpus=0", "--slurm.cpus_per_process=1"]
    where = [f"--run.dir={tmp_path / 'run'}", "--slurm.hours=1"]
    where += ["--grid={mask.ratio: [0.25, 0.5], train.seed: [0]}"]
    done = console(slurm, "ablate", *where, *job, *settings, "--evaluate.methods=[]")
    assert done.returncode == FAILED, done.stdout + done.stderr
    assert done.stdout.count("the loss is") == 2, done.stdout
    assert "sacct" not in done.stdout + done.stderr
    assert "Bypassing" not in done.stdout + done.stderr
