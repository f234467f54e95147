"""Several processes compute what one computes, come back after a death, and fail together."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fork_server import PATIENCE_SECONDS
from pictures_on_disk import write_pictures
from real_runs import (
    assert_same_run,
    before_step,
    final_state,
    lines_without_clock,
    options,
    pretrain_arguments,
    run,
    run_together,
    tell_threads_after_closing,
)
from undrawn import without_pictures

from fcmae.errors import DONE, FAILED, INTERRUPTED, MISTAKE, ConfigError, DataError
from fcmae.training.processes import Processes, agree_on_a_name, start_processes

ROOT = Path(__file__).resolve().parents[2]
ddp = pytest.mark.ddp


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_pictures(folder, 29)
    return folder


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in lines_without_clock(run_dir) if "loss" in line]


def keep_gradients(folder: Path) -> None:
    """Let the main process save the gradients of its first step."""
    from fcmae.training.optimization import Optimization

    without_pictures()
    original = Optimization.step

    def step(self: Any, number: int, *args: Any) -> Any:
        result = original(self, number, *args)
        if number == 0 and self.processes.is_main:
            named = self.model.named_parameters()
            torch.save(
                {name.removeprefix("module."): p.grad for name, p in named if p.requires_grad},
                folder / "gradients.pt",
            )
        return result

    Optimization.step = step  # type: ignore[method-assign]


SPLITS = {"2 micro-steps": (1, 2), "2 processes": (2, 1), "2 processes of 2 micro-steps": (2, 2)}


@ddp
def test_every_split_of_a_batch_gives_the_gradients_and_losses_of_one_process(
    data: Path, tmp_path: Path
) -> None:
    def train(name: str, processes: int, accumulate: int) -> tuple[dict[str, Any], list[float]]:
        folder = tmp_path / name
        folder.mkdir()
        size = {
            "train__batch_size": 8 // processes // accumulate,
            "train__accumulate": accumulate,
            "log__every_steps": 1,
            "optim__base_lr": 0.01,
        }
        arguments = pretrain_arguments(data, folder / "run", 5, **size)
        statuses = run_together(
            arguments, folder / "log", processes, before=partial(keep_gradients, folder)
        )
        assert statuses == [DONE] * processes, (folder / "log").read_text()
        return torch.load(folder / "gradients.pt", weights_only=True), losses(folder / "run")

    expected, expected_losses = train("whole", 1, 1)
    assert len(expected) > 30
    for name, (processes, accumulate) in SPLITS.items():
        gradients, found = train(name, processes, accumulate)
        assert list(gradients) == list(expected)
        for parameter, gradient in expected.items():
            difference = (gradients[parameter] - gradient).norm()
            # Another order of summation in float32; some gradients are exactly zero at the start.
            assert difference <= 1e-5 * gradient.norm() + 1e-12, (name, parameter)
        assert found == pytest.approx(expected_losses, rel=1e-5)


@ddp
def test_a_run_goes_on_with_another_number_of_processes(data: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    smooth = {"log__every_steps": 1, "optim__base_lr": 0.01, "checkpoint__every_steps": 20}

    def arguments(name: str, size: int, **more: object) -> list[str]:
        return pretrain_arguments(
            data, tmp_path / name, 40, train__batch_size=size, **smooth, **more
        )

    assert run(arguments("one", 8), log, before=without_pictures) == DONE
    assert run(arguments("both", 8), log, before=partial(stop_in_step, 20)) == INTERRUPTED
    assert final_state(tmp_path / "both")["progress"]["step"] == 20
    statuses = run_together(arguments("both", 4), log, 2, before=without_pictures)
    assert statuses == [DONE, DONE], log.read_text()
    assert len(losses(tmp_path / "both")) == 40
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def stop_in_step(number: int, rank: str = "0") -> None:
    """Let the process of a rank send itself SIGTERM in a step, counted from 1."""
    without_pictures()
    if os.environ.get("RANK", "0") == rank:
        before_step(number, lambda _: os.kill(os.getpid(), signal.SIGTERM))


@ddp
def test_a_signal_to_one_process_stops_all_and_the_run_goes_on_exactly(
    data: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    settings = {"train__batch_size": 2, "data__workers": 1, "checkpoint__every_minutes": 0.0001}
    undisturbed = pretrain_arguments(data, tmp_path / "undisturbed", 9, **settings)
    assert run_together(undisturbed, log, 2, before=without_pictures) == [DONE, DONE]
    stopped = pretrain_arguments(data, tmp_path / "stopped", 9, **settings)
    statuses = run_together(stopped, log, 2, before=partial(stop_in_step, 5, rank="1"))
    assert statuses == [INTERRUPTED, INTERRUPTED], log.read_text()
    assert final_state(tmp_path / "stopped")["progress"]["step"] == 5
    assert "a signal: stopped after step 5." in log.read_text()
    assert run_together(stopped, log, 2, before=without_pictures) == [DONE, DONE]
    assert_same_run(tmp_path / "stopped", tmp_path / "undisturbed")
    assert run_together(stopped, log, 2, before=without_pictures) == [DONE, DONE]  # finished twice
    assert "this run is finished" in log.read_text()


@ddp
def test_a_mistake_seen_by_the_main_process_ends_all_with_one_sentence(
    data: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    arguments = pretrain_arguments(data, tmp_path / "run", 3, train__batch_size=2)
    assert run_together(arguments, log, 2) == [MISTAKE, MISTAKE]
    assert log.read_text().count("is not empty and holds no run") == 2
    assert "Traceback" not in log.read_text()


def poison_batches() -> None:
    """Let the second process read a NaN in steps 4 and 6."""
    from fcmae.training.optimization import Optimization

    original = Optimization.step

    def poisoned(sent: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        images = sent[0]["image"] / 255
        images[0, 0, 0, 0] = float("nan")
        return tuple({**batch, "image": images} for batch in sent)

    def step(self: Any, number: int, batches: Iterable[Any], *args: Any) -> Any:
        if number in (3, 5) and self.processes.rank == 1:
            batches = map(poisoned, batches)
        return original(self, number, batches, *args)

    Optimization.step = step  # type: ignore[method-assign]


@ddp
def test_a_loss_that_is_not_finite_in_one_process_stops_all_with_their_batches(
    data: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    arguments = pretrain_arguments(data, tmp_path / "run", 9, train__batch_size=2)
    arguments.append("--train.skip_nonfinite_steps=1")
    assert run_together(arguments, log, 2, before=poison_batches) == [FAILED, FAILED]
    told = log.read_text()
    assert "step 4: loss nan, gradient norm nan; step left out (1 of 1)." in told
    for rank in (0, 1):
        assert f"error: step 6, process {rank}: the loss is nan" in told
        saved = tmp_path / "run" / f"nonfinite-step-00000006-{rank}.pt"
        batches = torch.load(saved, weights_only=True)["batches"]
        assert len(batches[0]["path"]) == 2
        assert bool(batches[0]["image"].isnan().any()) is (rank == 1)
    lines = lines_without_clock(tmp_path / "run")
    assert [line["nonfinite_steps"] for line in lines] == [0, 0, 1]
    assert lines[-1]["grad_norm"] is None


@ddp
def test_no_thread_of_the_group_is_left_to_outlive_the_interpreter(
    data: Path, tmp_path: Path
) -> None:
    before = [without_pictures, tell_threads_after_closing]
    log = tmp_path / "log"
    arguments = pretrain_arguments(data, tmp_path / "run", 4, train__batch_size=2)
    assert run_together(arguments, log, 2, before=before) == [DONE, DONE], log.read_text()
    told = re.findall(r"threads of \d left:(.*)", log.read_text())
    assert len(told) == 2
    assert not any("gloo" in names for names in told), told


def test_processes_started_again_meet_in_the_store_of_those_before() -> None:
    """Whoever comes first, none takes what the dead ones left for news."""
    store, names = dist.HashStore(), set[str]()
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)):
        store.set("caller-1", "died before it heard its name")
        with ThreadPoolExecutor(3) as pool:
            meeting = []
            for rank in order:
                meeting.append(pool.submit(agree_on_a_name, store, rank, 3))
                time.sleep(0.1)
            met = [name.result(timeout=PATIENCE_SECONDS) for name in meeting]
        assert len(set(met)) == 1
        names.update(met)
    assert len(names) == 4


@ddp
@pytest.mark.slow
def test_a_killed_process_under_torchrun_is_started_again_and_nothing_is_lost(
    data: Path, tmp_path: Path
) -> None:
    """The main process is killed first, then the other one; torchrun restarts both each time."""
    settings = {
        "model__name": "convnextv2_atto",
        "train__batch_size": 2,
        "checkpoint__every_steps": 4,
        "log__every_steps": 1,
        "optim__base_lr": 1e-4,
    }
    log, steps, folder = tmp_path / "log", 24, tmp_path / "run"
    undisturbed = pretrain_arguments(data, tmp_path / "undisturbed", steps, **settings)
    assert run_together(undisturbed, log, 2, before=without_pictures) == [DONE, DONE]
    arguments = pretrain_arguments(data, folder, steps, **settings)[1:]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=2", "--max-restarts=3", str(ROOT / "pretrain.py"), *arguments]
    deadline = time.monotonic() + 600
    with log.open("a") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT)
        try:
            for victim, checkpoint in (("main", 4), ("other", 12)):
                while not (folder / "checkpoints" / f"step-{checkpoint:08d}").exists():
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.01)
                main = int((folder / "lock").read_text().split()[1])
                others = [pid for pid in children(process.pid) if pid != main]
                os.kill(main if victim == "main" else others[0], signal.SIGKILL)
            assert process.wait(timeout=600) == 0, log.read_text()
        finally:
            process.terminate()
            process.wait()
    assert log.read_text().count("continuing after step") >= 2
    assert losses(folder) == pytest.approx(losses(tmp_path / "undisturbed"), rel=1e-6)
    assert len(losses(folder)) == steps


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def check_values_of_the_main_process() -> None:
    processes = start_processes("cpu")
    made = {"a": [torch.arange(3), (torch.tensor(1.5), "x")], "b": None, "c": torch.ones(0, 2)}
    value = processes.from_main(lambda: made if processes.is_main else {})
    assert torch.equal(value["a"][0], torch.arange(3))
    assert value["a"][1] == (torch.tensor(1.5), "x")
    assert value["b"] is None
    assert value["c"].shape == (0, 2)

    def fail() -> None:
        raise ConfigError("no.")

    with pytest.raises(ConfigError, match=r"no\."):
        processes.from_main(fail)

    def fail_in_one() -> int:
        if processes.rank == 1:
            raise ConfigError("not here.")
        return processes.rank

    with pytest.raises((ConfigError, DataError), match=r"not here\."):
        processes.in_each(fail_in_one)
    assert processes.in_each(lambda: processes.rank) == processes.rank
    processes.close()


@ddp
def test_values_of_the_main_process_reach_all(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert run_together(["--version"], log, 2, before=check_values_of_the_main_process) == [
        DONE,
        DONE,
    ], log.read_text()


def test_alone_nothing_is_exchanged() -> None:
    alone = Processes(0, 1, torch.device("cpu"))
    value = object()
    assert alone.from_main(lambda: value) is value
    assert alone.in_each(lambda: value) is value
    assert alone.gather([1]) == [1]
    alone.wait()


@pytest.mark.parametrize("text", ["many", "-1", "1.5", "\u00b2"])
def test_a_launchers_variable_that_makes_no_sense_is_one_sentence(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", text)
    with pytest.raises(ConfigError, match=r"WORLD_SIZE: the environment says .* unset it to train"):
        start_processes("cpu")


def test_a_world_without_the_others_address_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"2 processes are asked for and cannot meet .*torchrun"):
        start_processes("cpu")


def test_options_win_over_settings() -> None:
    assert options({"a.b": 1}, {"a__b": 2}) == ["--a.b=2"]


def test_the_gpu_that_was_chosen_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    processes = start_processes("cuda:2")
    assert processes.device == torch.device("cuda", 2)
    assert current == [torch.device("cuda", 2)]
