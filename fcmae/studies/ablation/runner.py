"""Runs the cells of an ablation that are not done yet, each in a process of its own.

The number of processes at a time changes no result: nothing is shared but the machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fcmae.errors import DONE, FAILED, INTERRUPTED, ConfigError
from fcmae.runs.folder import RunFolder
from fcmae.runs.metrics import read_metrics
from fcmae.runs.terminal import progress_bar
from fcmae.settings.ablation import Ablation
from fcmae.settings.auto import with_values
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.reading import forbidden_changes, load, to_plain
from fcmae.studies.ablation.cluster import CellJob, check_slurm
from fcmae.studies.ablation.evaluation import check_labels, read_result
from fcmae.studies.ablation.grid import Cell, build_cells, trained
from fcmae.studies.ablation.masks import check_masks
from fcmae.studies.ablation.split import open_split, write_split
from fcmae.studies.ablation.worker import failure_file, note_failure
from fcmae.training.auto import as_recorded
from fcmae.training.signals import StopRequest

POLL_SECONDS = 0.2
POLLS_PER_LOOK = 10  # at the metrics of the cells that run
GRACE_SECONDS = 120.0  # for the step and the checkpoint that a stopped cell still makes


@dataclass
class _Running:
    cell: Cell
    process: subprocess.Popen[bytes] | CellJob
    slot: int
    started: float


class Runner:
    """One ablation, from its settings to the results of all cells.

    Creating it checks every cell and starts nothing.

    Attributes:
        ablation: what is asked for.
        cells: all of them, in the order in which they are run.
        stopped_by: name of the signal that stopped `run`; None while nothing has.

    Raises:
        ConfigError: a cell that cannot work, no labels where they are needed, a folder that holds
            something else.
    """

    def __init__(self, ablation: Ablation, say: Callable[[str], None] = print) -> None:
        self.ablation = ablation
        self.folder = Path(ablation.run.dir)
        self.stopped_by: str | None = None
        self._say = say
        self._split = open_split(ablation)
        for path, reason in self._split.train.problems:
            say(f"{path!r} {reason}; left out.")
        check_labels(ablation.evaluate, self._split)
        if ablation.run.cluster:
            check_slurm(ablation.slurm)
        self.cells = build_cells(ablation, self._split)
        for cell in trained(self.cells):
            _check_folder(cell)
        check_masks(self.cells, ablation, self._split, say)

    def run(self) -> int:
        """Run what is left; return DONE, FAILED when a cell failed, or INTERRUPTED."""
        folder = RunFolder(self.folder)
        folder.open(self.ablation)
        try:
            write_split(self._split, self.folder)
            with StopRequest() as stop:
                return self._run(stop)
        finally:
            folder.close()

    def _run(self, stop: StopRequest) -> int:
        waiting = [cell for cell in self.cells if read_result(cell, self.ablation) is None]
        done = len(self.cells) - len(waiting)
        self._say(
            f"{len(self.cells)} cells, {done} of them done; "
            f"{min(self.ablation.run.jobs, max(len(waiting), 1))} at a time."
        )
        (self.folder / "logs").mkdir(exist_ok=True)
        with progress_bar((), unit="run", total=len(self.cells), done=done, title="grid") as bar:
            return self._run_all(stop, waiting, done, bar)

    def _run_all(self, stop: StopRequest, waiting: list[Cell], done: int, bar: Any) -> int:
        running: list[_Running] = []
        failures = looked = 0
        while running or (waiting and stop.name is None):
            free = set(range(self.ablation.run.jobs)) - {one.slot for one in running}
            while waiting and free and stop.name is None:
                running.append(self._start(waiting.pop(0), free.pop()))
            time.sleep(POLL_SECONDS)
            looked += 1
            if looked % POLLS_PER_LOOK == 0:
                bar.set_postfix_str("; ".join(_how_far(one.cell) for one in running))
                bar.update(0)
            if stop.name is not None:
                self.stopped_by = stop.name
                self._stop(running)
                return INTERRUPTED
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                _let_go(one.process)
                status = one.process.returncode
                assert status is not None  # it has ended
                if status == INTERRUPTED:  # somebody stopped this one cell
                    self.stopped_by = "a signal to a cell"
                    self._say(f"{one.cell.title}: stopped; start the same command again.")
                    self._stop(running)
                    return INTERRUPTED
                failures += status != DONE
                done += 1
                bar.update()
                self._tell(one, status, done)
        return FAILED if failures else DONE

    def _start(self, cell: Cell, slot: int) -> _Running:
        is_job = self.ablation.run.cluster
        process = self._submit(cell) if is_job else self.start_process(cell, slot)
        number = f"run {self.cells.index(cell) + 1} of {len(self.cells)}"
        self._say(f"{number}: {cell.title}: {'queued' if is_job else 'started'}.")
        return _Running(cell, process, slot, time.monotonic())

    def _submit(self, cell: Cell) -> CellJob:
        return CellJob(
            cell,
            str(self.folder.absolute()),
            self.ablation.slurm,
            lambda: read_result(cell, self.ablation) is not None,
        )

    def start_process(self, cell: Cell, slot: int) -> subprocess.Popen[bytes]:
        """Start a cell on this machine, in the place of this number among those at a time."""
        threads = str(self.ablation.run.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        environment |= _gpu_of(slot)
        command = [
            sys.executable,
            "-m",
            "fcmae.studies.ablation.worker",
            str(self.folder),
            cell.name,
        ]
        with self._log_file(cell).open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # closes when this process dies, and the cell with it
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # the terminal's interrupt comes through _stop alone
            )

    def _tell(self, one: _Running, status: int, done: int) -> None:
        cell = one.cell
        result = read_result(cell, self.ablation) if status == DONE else None
        count = f"{done} of {len(self.cells)}"
        if result is None:
            if not failure_file(self.folder, cell.name).exists():
                note_failure(self.folder, cell.name, self._why(one, status))
            why = failure_file(self.folder, cell.name).read_text(encoding="utf-8").strip()
            self._say(f"{cell.title}: failed ({count}): {why}")
            return
        means = {name: sum(draws) / len(draws) for name, draws in result["scores"].items()}
        scores = ", ".join(f"{name} {mean:.1f} %" for name, mean in means.items())
        seconds = time.monotonic() - one.started
        self._say(f"{cell.title}: done in {seconds:.0f} s ({count}). {scores}".rstrip(" ."))

    def _why(self, one: _Running, status: int) -> str:
        if isinstance(one.process, CellJob):
            return one.process.why()
        log = self._log_file(one.cell)
        if status < 0:
            name = signal.Signals(-status).name
            return (
                f"its process was ended by {name}; too little memory is a usual cause. See {log}."
            )
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return f"{said[-1] if said else f'exit status {status}'} (see {log})."

    def _log_file(self, cell: Cell) -> Path:
        return self.folder / "logs" / f"{cell.name}.txt"

    def _stop(self, running: list[_Running]) -> None:
        """Let every running cell write a checkpoint and end."""
        self._say(f"stopping {len(running)} cells, each with a checkpoint.")
        for one in running:
            with contextlib.suppress(ProcessLookupError):
                one.process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for one in running:
            try:
                one.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.process.kill()
            _let_go(one.process)


def _let_go(process: subprocess.Popen[bytes] | CellJob) -> None:
    """Close what told a cell's process that this one lives."""
    if isinstance(process, subprocess.Popen) and process.stdin is not None:
        process.stdin.close()


def _how_far(cell: Cell) -> str:
    """Say how far a running cell is."""
    lines = read_metrics(RunFolder(cell.folder).metrics)
    steps = f" of {cell.config.train.steps}" if cell.config.train.steps else ""
    return f"{cell.title}: step {lines[-1]['step'] if lines else 0}{steps}"


def _gpu_of(slot: int) -> dict[str, str]:
    """Give each process at a time a GPU of its own, where there are several."""
    count = torch.cuda.device_count()
    if count < 2:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(count)]
    return {"CUDA_VISIBLE_DEVICES": names[slot % len(names)]}


def _check_folder(cell: Cell) -> None:
    """Raise ConfigError when the folder of a cell holds a run of other settings."""
    folder = RunFolder(cell.folder)
    if not folder.config.exists() or not any(folder.checkpoints.glob("step-*")):
        return
    saved = load(PretrainConfig, folder.config)
    plain = to_plain(saved)
    changed = forbidden_changes(plain, with_values(cell.config, as_recorded(cell.config, plain)))
    if changed:
        listed = "; ".join(f"{name} {old} there, {new} now" for name, (old, new) in changed.items())
        raise ConfigError(
            f"cell {cell.title}: {cell.folder} holds a run with other settings ({listed}); choose "
            "another run.dir, or give the settings of the first time."
        )
