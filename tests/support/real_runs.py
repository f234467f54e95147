"""Real training runs in processes of their own: signals, deaths and files are real."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from disk_room import keep_nothing_free
from fork_server import PATIENCE_SECONDS, POLL_SECONDS, SERVER
from pictures_on_disk import write_pictures
from speck import SPECK
from torch import nn
from tqdm import tqdm
from undrawn import without_pictures

from fcmae.__main__ import main
from fcmae.cli import COMMANDS
from fcmae.runs.checkpoints import CheckpointStore
from fcmae.runs.metrics import WALL_CLOCK, read_metrics


def pretrain_arguments(data: Path | str, run: Path, steps: int, **changes: object) -> list[str]:
    """Return a console command of a tiny pretraining; `changes` are section__name=value."""
    settings: dict[str, object] = {
        "run.dir": run,
        "data.path": data,
        "data.image_size": 64,
        "data.workers": 0,
        "model.name": SPECK,
        "model.decoder_dim": 8,
        "mask.ratio": 0.5,
        "optim.base_lr": 0.05,
        "optim.warmup_steps": 3,
        "optim.clip_grad": 5.0,
        "train.batch_size": 4,
        "train.steps": steps,
        "train.device": "cpu",
        "log.every_steps": 2,
        "log.num_pictures": 1,
        "log.tensorboard": "false",
        "evaluate.draws": 0,
        "checkpoint.every_steps": 3,
    }
    return ["pretrain", *options(settings, changes)]


def options(settings: Mapping[str, object], changes: Mapping[str, object]) -> list[str]:
    """Return --section.name=value words of the settings with changes section__name=value."""
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    return [f"--{name}={value}" for name, value in {**settings, **dotted}.items()]


Before = Callable[[], object] | Sequence[Callable[[], object]]


def start(
    arguments: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    before: Before = (),
) -> int:
    """Start `fcmae ARGUMENTS` in a process of its own, with its output behind `log`'s.

    What `before` names runs in that process first; see fork_server for what that may be.
    Returns its id.
    """
    first = [before] if callable(before) else list(before)
    return SERVER.start(partial(_console, list(arguments), first), log, environment)


def _console(arguments: list[str], before: list[Callable[[], object]]) -> int:
    for install in before:
        install()
    return main(arguments)


def wait(pid: int, seconds: float = PATIENCE_SECONDS) -> int:
    """Return the exit status of a process, or minus the signal that ended it; never hang."""
    return SERVER.wait(pid, seconds)


def wait_for(path: Path, pid: int) -> None:
    """Wait until a process has made a file or folder."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        assert not SERVER.has_ended(pid), f"process {pid} ended without {path}"
        time.sleep(POLL_SECONDS)


def run(arguments: Sequence[str], log: Path, **how: Any) -> int:
    """Run a command to its end; return its exit status."""
    return wait(start(arguments, log, **how))


def run_together(
    arguments: Sequence[str],
    log: Path,
    processes: int,
    *,
    before: Before = (),
) -> list[int]:
    """Run a command in processes that train together; return their exit statuses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pids = [
        start(
            arguments,
            log,
            environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            before=before,
        )
        for rank in range(processes)
    ]
    return [wait(pid) for pid in pids]


def signal_in(moment: str, at_call: int, *numbers: signal.Signals) -> Callable[[], None]:
    """Return what makes a process signal itself when a moment comes for the `at_call`th time.

    The moment is `begin`, before the first step, `loss`, in a step, or `step`, when its work is
    done.
    """
    return partial(_signal_in, moment, at_call, *numbers)


def _signal_in(moment: str, at_call: int, *numbers: signal.Signals) -> None:
    from fcmae.pretraining.task import Pretraining
    from fcmae.training.optimization import Optimization

    without_pictures()
    owner, method = {
        "begin": (Pretraining, "begin"),
        "loss": (Pretraining, "compute_loss"),
        "step": (Optimization, "step"),
    }[moment]
    original, calls = getattr(owner, method), 0
    for number in numbers:  # tests started by nohup hand down that SIGHUP is ignored
        signal.signal(number, signal.SIG_DFL)

    def signalling(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        result = original(self, *args, **kwargs)
        if calls == at_call:
            for number in numbers:
                os.kill(os.getpid(), number)
        return result

    setattr(owner, method, signalling)


def before_step(number: int, act: Callable[[nn.Module], object]) -> None:
    """Let `act` see the model before a step, counted from 1, is taken."""
    from fcmae.training.optimization import Optimization

    original = Optimization.step

    def step(self: Optimization, step: int, *args: Any) -> Any:
        if step == number - 1:
            act(self.model)
        return original(self, step, *args)

    Optimization.step = step  # type: ignore[method-assign]


def tell_threads_after_closing() -> None:
    """Print the names of the threads that are left when the processes have parted."""
    from fcmae.training.processes import Processes

    close = Processes.close

    def close_and_tell(self: Processes) -> None:
        close(self)
        names = []
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended just now
                names.append((thread / "comm").read_text().strip())
        told = f"threads of {self.rank} left: {' '.join(sorted(names))}\n"
        os.write(1, told.encode())  # whole, whatever the other process writes

    Processes.close = close_and_tell  # type: ignore[method-assign]


def import_all() -> None:
    """Import what a run imports, which takes seconds."""
    for command in COMMANDS.values():
        module = command.partition(":")[0]
        import_module(module)
    for name in ("matplotlib.pyplot", "pytest", "sklearn.linear_model", "torch._dynamo"):
        import_module(name)
    import_module("torch.utils.tensorboard")
    PIL.Image.init()
    keep_nothing_free()
    _warm_up()


def _warm_up() -> None:
    """Have done once what takes longest the first time, such as making parsers of settings."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for label, seed in (("left", 1), ("right", 2)):
            write_pictures(folder / "data" / label, 4, seed=seed)
        tuning = {"run.dir": folder / "tuned", "data.path": folder / "data", "data.workers": 0}
        tuning |= {"model.name": SPECK, "data.image_size": 32, "train.steps": 1}
        tuning |= {"train.batch_size": 2, "train.device": "cpu", "log.tensorboard": "false"}
        interval, tqdm.monitor_interval = tqdm.monitor_interval, 0  # it would start a thread
        with (
            (folder / "log").open("w") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            statuses = (
                main(pretrain_arguments(folder / "data", folder / "run", 2, optim__warmup_steps=0)),
                main(["finetune", *options(tuning, {})]),
            )
        tqdm.monitor_interval = interval
        assert statuses == (0, 0), (folder / "log").read_text()


def final_state(run_dir: Path) -> dict[str, Any]:
    """Return what the newest checkpoint of a run holds."""
    found = CheckpointStore(run_dir / "checkpoints").load_newest()
    assert found is not None
    return found[1]


def lines_without_clock(run_dir: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl apart from wall-clock fields; every line must be whole."""
    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    assert len(text.splitlines()) == len(read_metrics(run_dir / "metrics.jsonl"))
    lines = [json.loads(line) for line in text.splitlines()]
    return [{name: line[name] for name in line if name not in WALL_CLOCK} for line in lines]


def assert_same_state(got: Any, expected: Any, where: str = "state") -> None:
    """Assert that two checkpoint states are bitwise the same, and say where they are not."""
    assert type(got) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert got.dtype == expected.dtype, where
        assert torch.equal(got, expected), where
    elif isinstance(expected, dict):
        assert list(got) == list(expected), where
        for name in expected:
            assert_same_state(got[name], expected[name], f"{where}.{name}")
    elif isinstance(expected, (list, tuple)):
        assert len(got) == len(expected), where
        for place, item in enumerate(expected):
            assert_same_state(got[place], item, f"{where}[{place}]")
    else:
        assert got == expected, where


def assert_same_run(got: Path, expected: Path) -> None:
    """Assert that two run folders hold the same run, bit for bit, apart from wall-clock fields."""
    states = [final_state(folder) for folder in (got, expected)]
    for state in states:
        del state["unwritten"]  # lines that waited for a full disk; their order is checked below
    assert_same_state(*states)
    assert lines_without_clock(got) == lines_without_clock(expected)
