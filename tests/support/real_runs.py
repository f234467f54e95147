"""Real training runs in forked processes: signals and files are real, starting costs milliseconds.

The parent has imported torch and everything else, which takes seconds in a new interpreter.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.utils.tensorboard
from timm.models import convnext, register_model
from timm.models.convnext import ConvNeXt

import fcmae.finetuning.task
import fcmae.pretraining.task  # noqa: F401
from fcmae.__main__ import main
from fcmae.runs.checkpoints import CheckpointStore
from fcmae.runs.metrics import WALL_CLOCK, read_metrics

CRASHED = 70  # an exception that the console does not turn into a sentence


@register_model
def convnextv2_speck(pretrained: bool = False, **kwargs: Any) -> ConvNeXt:
    """A ConvNeXt V2 of 20,000 parameters, whose steps and checkpoints take milliseconds."""
    sizes = {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 20), "use_grn": True}
    model: ConvNeXt = convnext._create_convnext(
        "convnextv2_speck", ls_init_value=None, **sizes, **{**kwargs, "pretrained_cfg": {}}
    )
    return model


def pretrain_arguments(data: Path | str, run: Path, steps: int, **changes: object) -> list[str]:
    """Return a console command of a tiny pretraining; `changes` are section__name=value."""
    settings: dict[str, object] = {
        "run.dir": run,
        "data.path": data,
        "data.image_size": 64,
        "data.workers": 0,
        "model.name": "convnextv2_speck",
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


def start(
    arguments: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    before: Callable[[], object] | None = None,
) -> int:
    """Start `fcmae ARGUMENTS` in a process of its own, with its output behind `log`'s.

    `before` runs in that process first. Returns its id.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = CRASHED
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for descriptor in (1, 2):
                os.dup2(output, descriptor)
            with (
                open(1, "w", closefd=False) as text,
                open(2, "w", closefd=False) as errors,
                contextlib.redirect_stdout(text),
                contextlib.redirect_stderr(errors),
            ):
                os.environ.update(environment or {})
                if before is not None:
                    before()
                status = main(list(arguments))
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    return pid


def wait(pid: int, seconds: float = 120.0) -> int:
    """Return the exit status of a process, or minus the signal that ended it; never hang."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"process {pid} did not end within {seconds} s")


def run(arguments: Sequence[str], log: Path, **how: Any) -> int:
    """Run a command to its end; return its exit status."""
    return wait(start(arguments, log, **how))


def run_together(
    arguments: Sequence[str],
    log: Path,
    processes: int,
    *,
    before: Callable[[], object] | None = None,
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


def without_pictures() -> None:
    """Draw nothing: it takes most of the time of a tiny run."""
    from fcmae.pretraining import monitoring

    monitoring.draw_reconstructions = lambda *args, **kwargs: None
    monitoring.draw_loss_curve = lambda *args, **kwargs: None
    monitoring.draw_health = lambda *args, **kwargs: None


def signal_in(method: str, at_call: int, *numbers: signal.Signals) -> Callable[[], None]:
    """Return what makes this process signal itself in the `at_call`th call of a loop's method."""

    def install() -> None:
        from fcmae.training.loop import TrainingLoop

        without_pictures()
        original, calls = getattr(TrainingLoop, method), 0

        def signalling(self: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at_call:
                for number in numbers:
                    os.kill(os.getpid(), number)
            return original(self, *args, **kwargs)

        setattr(TrainingLoop, method, signalling)

    return install


def tell_threads_after_closing() -> None:
    """Print the names of the threads that are left when the processes have parted."""
    from fcmae.training.processes import Processes

    close = Processes.close

    def close_and_tell(self: Processes) -> None:
        close(self)
        threads = Path("/proc/self/task").iterdir()
        names = sorted((thread / "comm").read_text().strip() for thread in threads)
        print(f"threads of {self.rank} left:", *names, flush=True)

    Processes.close = close_and_tell  # type: ignore[method-assign]


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


assert "convnextv2_speck" in timm.list_models("convnextv2_*")
