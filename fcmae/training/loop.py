"""The loop that every training shares: it can be killed anywhere and goes on bit for bit.

What a step computes depends on the settings, the weights and the number of the step alone.
"""

import collections
import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fcmae.data import ImageList, MicroBatches, SampleStream, make_loader, sample_seed, seeded
from fcmae.data.recorded import fix_images
from fcmae.data.transfer import DeviceBatches
from fcmae.errors import CheckpointError, ConfigError
from fcmae.model.compiling import begin_call, check_compiling, compiled, holds_graphs
from fcmae.runs import terminal
from fcmae.runs.folder import RunFolder
from fcmae.runs.metrics import MetricsLog
from fcmae.runs.skipped_files import SkippedFiles
from fcmae.runs.trackers import TENSORBOARD, Subject, check_trackers, openers
from fcmae.settings.reading import to_plain
from fcmae.training.auto import check_resolved
from fcmae.training.optimization import (
    LateResult,
    Optimization,
    StepResult,
    check_precision,
    create_optimizer,
    may_read_late,
)
from fcmae.training.processes import Processes
from fcmae.training.progress import Progress, nonfinite_loss_error
from fcmae.training.saving import RunSaving, disk_error
from fcmae.training.schedule import Schedule, effective_batch_of
from fcmae.training.signals import StopRequest
from fcmae.training.task import Task

SKIPPED_SAID = 5  # undecodable files of one step that are named on the screen; the list has all

_Sent = tuple[dict[str, Any], dict[str, Any]]  # a batch, and its copy on the device
Around = Callable[[str], contextlib.AbstractContextManager[Any]]


class _Taken(NamedTuple):
    """A step that was taken: its number from 1, what it did, and what this process read for it."""

    step: int
    result: StepResult | LateResult
    batches: list[dict[str, Any]]


def nothing(name: str) -> contextlib.AbstractContextManager[Any]:
    """Do nothing around the work of this name."""
    return contextlib.nullcontext()


def say_nothing(sentence: str) -> None:
    """Leave it to the main process to say it."""


class TrainingLoop:
    """One run of a task, from its settings to its results.

    Creating it checks every setting and starts nothing.

    Args:
        task: what is trained on what.
        processes: this process and the others.
        around: entered around each piece of work, with its name: step, checkpoint, finish, and
            what the task names; for whoever measures a run.

    Attributes:
        task, processes, around: as given.
        config: the task's.
        folder: where the run lives.
        say: prints one sentence above the progress bar, from the main process.
        attempt: writes what training can do without; see RunSaving.
        look: does what looks at the run and may fail; see Looks.
        look_later: does so after the next step, before anything of that step is logged or saved;
            a run that ends in it has been looked at, too. At once where work is measured.
        effective_batch: images of a step, in all processes.
        schedule: lengths in steps and learning rates.
        progress: how far the run is.
        is_continued: whether it began with a checkpoint.
        skipped: files that it does without.
        log: where the main process writes numbers; None in the others.
    """

    def __init__(self, task: Task, processes: Processes, around: Around = nothing) -> None:
        self.task = task
        self.processes = processes
        self.around = around
        self.config = config = task.config
        check_resolved(config)
        check_trackers(config.log.trackers)
        check_precision(config.train.precision, processes.device)
        check_compiling(config.train.compile, processes.world_size)
        num_images = len(task.images)
        self.effective_batch = effective_batch_of(config.train, processes.world_size, num_images)
        self._make_schedule()
        self.folder = RunFolder(config.run.dir)
        # No method: what keeps it would keep this run, and its model, until garbage is collected.
        self.say: Callable[[str], None] = terminal.say if processes.is_main else say_nothing
        self._saving = RunSaving(self.folder, config.checkpoint, processes, self.say)
        self.attempt = self._saving.attempt
        self.look = self._saving.looks.look
        looks = self._saving.looks
        self.look_later = looks.later if around is nothing else looks.look
        self.progress = Progress()
        self.is_continued = False
        self.log: MetricsLog | None = None
        self._step_batches: list[dict[str, Any]] = []
        self._untold: collections.deque[_Taken] = collections.deque()
        self._undecodable: list[tuple[str, str]] = []
        self._saved_at = time.monotonic()

    def _make_schedule(self) -> None:
        config, num_images = self.config, len(self.task.images)
        self.schedule = Schedule(config.train, config.optim, num_images, self.effective_batch)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.schedule.total_steps

    @property
    def length(self) -> str:
        """How long the run is and on what it computes, in words."""
        return (
            f"{self.total_steps} steps of {self.effective_batch}, {self.processes.world_size} x "
            f"{self.processes.device}, {self.config.train.precision}"
        )

    def run(self) -> str | None:
        """Train what is left of the run.

        Returns:
            The name of the signal that stopped it, with a checkpoint written; None when done.
        """
        try:
            with StopRequest() as stop:
                has_other_length: bool = self.processes.from_main(
                    lambda: self.folder.open(self.config, report=self.say)
                )
                self._prepare(has_other_length)
                if self._saving.is_finished(self.progress.step, self.total_steps):
                    return None
                self._start()
                return self._train(stop)
        finally:
            self._saving.looks.catch_up()
            if self.log is not None:
                self.log.close()
            self.folder.close()

    def _prepare(self, has_other_length: bool) -> None:
        """Put everything where the newest checkpoint left it, or at the start."""
        self.is_continued = self._saving.is_begun()
        task, config = self.task, self.config
        task.images = self.processes.from_main(self._fix_images)
        num_images = len(task.images)
        self._make_schedule()
        found = self._saving.load_newest(self.schedule)
        recorded = num_images if found is None else found[1].get("num_images")
        if recorded != num_images:
            raise CheckpointError(
                f"{self.folder.images}: lists {num_images} images, and the checkpoint's run has "
                f"{recorded}; restore the file, or start again in another run.dir."
            )
        self.skipped = SkippedFiles(self.folder, num_images, config.data.max_skipped_share)
        task.model.to(self.processes.device)
        self._network: nn.Module = task.model
        if self.processes.world_size > 1:
            self._network = DistributedDataParallel(self._network)
        # Around DDP, whose exchange of gradients it cuts the graph for.
        self._network = compiled(self._network, config.train.compile)
        task.prepare(self)
        device = self.processes.device
        # Whoever measures a run wants to see each step to its end.
        self._is_late = may_read_late(device) and task.reads_late and self.around is nothing
        self.optimization = Optimization(
            self._network,
            create_optimizer(task.parameter_groups(), config.optim, device),
            self.schedule,
            self.processes,
            precision=config.train.precision,
            accumulate=config.train.accumulate,
            clip_grad=config.optim.clip_grad,
            is_late=self._is_late,
            owns_gradients=holds_graphs(config.train.compile, device),
        )
        self._unwritten: list[str] = []
        self._results: list[StepResult] = []  # the newest that is known, none before the first
        if found is not None:
            step, state, is_changed = found
            self._restore(step, state)
            former = state.get("length", list(self.schedule.length))
            is_changed |= has_other_length and former != list(self.schedule.length)
            self._saving.go_on_from(
                step, config, has_other_length=has_other_length, is_changed=is_changed
            )
            if is_changed:
                self.say(
                    f"the run of {former[0]} steps becomes one of {self.total_steps}: it goes on "
                    f"after step {step}, from before its rate began to fall. What it exported "
                    "stays until it is exported again."
                )
            self.say(f"continuing after step {step} of {self.total_steps}.")
        else:
            self.skipped.add_unlisted(task.images.problems)

    def _fix_images(self) -> ImageList:
        images = self.task.images
        for path, reason in images.problems:
            self.say(f"{path!r} {reason}; left out.")
        try:
            return fix_images(
                self.folder.images,
                images,
                is_continued=self.is_continued,
                report=self.say,
                max_gone=self.config.data.max_skipped_share,
            )
        except OSError as error:
            raise disk_error(error) from error

    def _restore(self, step: int, state: dict[str, Any]) -> None:
        try:
            self.task.model.load_state_dict(state["model"])
            self.optimization.load_state_dict(state["optimization"])
            self.task.load_state_dict(state["extra"])
            self.progress = Progress(**state["progress"])
            self.skipped.load_state_dict(state["skipped"])
            self._unwritten = list(state["unwritten"])
            effective_batch = state["effective_batch"]
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            first = " ".join(str(error).split())
            raise CheckpointError(
                f"{self.folder.checkpoints}: does not fit the model: {first}"
            ) from error
        if effective_batch != self.effective_batch:
            raise ConfigError(
                f"train.batch_size: the run's effective batch size is {effective_batch} "
                f"and now it is {self.effective_batch} (batch_size x accumulate x processes); "
                "change batch_size or accumulate so that it stays the same."
            )

    def _start(self) -> None:
        try:
            if self.processes.is_main:
                self.log = MetricsLog(
                    self.folder.path,
                    resumed_step=self.progress.step if self.is_continued else -1,
                    unwritten=self._unwritten,
                    tensorboard=TENSORBOARD in self.config.log.trackers,
                    trackers=openers(self.config.log.trackers, self._subject()),
                    report=self.say,
                )
                self.attempt(self.skipped.write, self.folder.skipped_files)
            self.skipped.check_share()
            for sentence in self.task.rules:
                self.say(sentence)
            self.task.begin(self)
        except OSError as error:
            raise disk_error(error) from error

    def _subject(self) -> Subject:
        """Return what services that track runs are told of this one."""
        plain = to_plain(self.config)
        settings = {
            f"{s}.{name}": value for s, part in plain.items() for name, value in part.items()
        }
        return Subject(self.folder.path, self.config.log.project, settings)

    def _train(self, stop: StopRequest) -> str | None:
        config, progress = self.config, self.progress
        stream = SampleStream(len(self.task.images), config.train.seed, self.effective_batch)
        micro_batches = MicroBatches(
            stream,
            progress.step,
            self.total_steps,
            config.train.batch_size,
            config.train.accumulate,
            self.processes.rank,
            self.processes.world_size,
        )
        loader = make_loader(
            self.task.create_dataset(),
            micro_batches,
            config.data.workers,
            timeout_seconds=config.data.timeout_seconds,
            pin_memory=self.processes.device.type == "cuda",
        )
        batches = DeviceBatches(loader, self.processes.device)
        save_seconds = 60 * (config.checkpoint.every_minutes or math.inf)
        for step in self._bar():
            self.task.model.train()
            self._step_batches = []
            with self.around("step"):
                taken = self.optimization.step(
                    step,
                    self._micro_batches(batches),
                    self._compute_loss,
                    lambda: (stop.name is not None, self._seconds_unsaved() >= save_seconds),
                )
            progress.step = step + 1
            self.task.after_update(self, taken.was_taken)
            self._untold.append(_Taken(progress.step, taken, self._step_batches))
            is_last = progress.step == self.total_steps
            cadence = config.checkpoint.every_steps
            is_log_step = progress.step % config.log.every_steps == 0 or progress.step == 1
            should_save = is_last or progress.step == self.schedule.decay_start
            should_save |= cadence is not None and progress.step % cadence == 0
            # What is saved or logged says how every step before went; else one may be unread.
            is_known = should_save or is_log_step or not self._is_late or not self._results
            found = self._read_results(0 if is_known else 1)
            should_stop = any(result.agreed[0] for result in found)
            if should_stop or any(result.agreed[1] for result in found):
                should_save = True
                should_stop |= any(result.agreed[0] for result in self._read_results(0))
            result = self._results[-1]
            self._note_skipped(is_shared=should_save or is_log_step or is_last)
            started = time.monotonic()
            self._saving.looks.catch_up()
            self._clock += time.monotonic() - started
            if is_log_step or is_last:
                self._log(result)
            started = time.monotonic()
            self.task.after_step(self, result)
            self._clock += time.monotonic() - started
            if should_save:
                self._saved_at = time.monotonic()
                with self.around("checkpoint"):
                    self._saving.save(progress.step, self._state, is_needed=should_stop or is_last)
            if should_stop:
                self.say(f"{stop.name or 'a signal'}: stopped after step {progress.step}.")
                return stop.name or "a signal in another process"
        with self.around("finish"):
            self._saving.finish(progress.step, lambda: self.task.finish(self))
        return None

    def _read_results(self, unread: int) -> list[StepResult]:
        """Learn how the steps taken went, all but the last `unread` of them; return the results.

        Raises:
            NonFiniteLossError: more steps than allowed were left out.
        """
        found = []
        while len(self._untold) > unread:
            taken = self._untold.popleft()
            result = taken.result.read()
            self._note_loss(taken, result)
            found.append(result)
        self._results = [*self._results, *found][-1:]
        return found

    def _seconds_unsaved(self) -> float:
        return time.monotonic() - self._saved_at

    def _micro_batches(self, batches: DeviceBatches) -> Iterator[_Sent]:
        """Yield those of a step; the work of each stands in the device's queue before the next."""
        accumulate = self.config.train.accumulate
        left = (self.total_steps - self.progress.step) * accumulate
        for number, sent in enumerate(itertools.islice(batches, accumulate), start=1):
            yield sent
            if number < left:  # readers stay to the end of the run
                batches.read_ahead()

    def _compute_loss(self, sent: _Sent) -> Tensor:
        """Seed what the model draws (drop path, mixing) by the step and the place in it.

        Two micro-steps of one process and one of two processes draw the same.
        """
        batch, on_device = sent
        slot = len(self._step_batches) * self.processes.world_size + self.processes.rank
        self._step_batches.append(batch)
        seed = sample_seed(self.config.train.seed, "step", self.progress.step, slot)
        if self.processes.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        begin_call(self.config.train.compile, self.processes.device)
        with seeded(seed):
            return self.task.compute_loss(self._network, on_device)

    def _bar(self) -> Iterator[int]:
        """Yield the steps that are left, showing loss, rate, images/s and time left."""
        steps = range(self.progress.step, self.total_steps)
        self._clock = time.monotonic()
        self._clock_step = self.progress.step
        with terminal.progress_bar(
            steps,
            unit="step",
            total=self.total_steps,
            done=self.progress.step,
            title="training",
            is_shown=self.processes.is_main,
        ) as self._progress_bar:
            yield from self._progress_bar

    def _note_loss(self, taken: _Taken, result: StepResult) -> None:
        progress = self.progress
        if result.is_finite:
            progress.add_loss(result.loss)
            return
        progress.nonfinite_steps += 1
        budget = self.config.train.skip_nonfinite_steps
        if progress.nonfinite_steps > budget:
            raise nonfinite_loss_error(
                taken.step,
                self.processes.rank,
                result,
                taken.batches,
                progress.history,
                self.folder.path,
            )
        self.say(
            f"step {taken.step}: loss {result.loss}, gradient norm {result.grad_norm}; step "
            f"left out ({progress.nonfinite_steps} of {budget})."
        )

    def _note_skipped(self, *, is_shared: bool) -> None:
        """Collect undecodable files; `is_shared` steps exchange them between the processes."""
        self._undecodable += [
            problem for batch in self._step_batches for problem in batch["skipped"]
        ]
        if not is_shared:
            return
        mine: list[Any] = list(self._undecodable)
        found: Any = self.processes.gather(mine)
        self._undecodable = []
        new = self.skipped.add((path, reason) for path, reason in found)
        for path, reason in new[:SKIPPED_SAID]:
            self.say(f"skipped {path!r}: {reason}.")
        if self.processes.is_main:
            self.attempt(self.skipped.write, self.folder.skipped_files)
        self.skipped.check_share()

    def _log(self, result: StepResult) -> None:
        """Write a line with the mean loss since the last one; pauses for the task do not count."""
        progress = self.progress
        now, steps = time.monotonic(), progress.step - self._clock_step
        rate = steps * self.effective_batch / max(now - self._clock, 1e-9)
        loss = progress.take_mean_loss()
        self._clock, self._clock_step = now, progress.step
        if self.log is None:
            return
        self._progress_bar.set_postfix_str(
            f"loss {result.loss if loss is None else loss:.4f}, lr {result.lr:.2e}, "
            f"{rate:.1f} images/s"
        )
        values = {
            "epoch": round(progress.step * self.effective_batch / len(self.task.images), 4),
            "loss": loss,
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            "skipped_files": len(self.skipped),
            "nonfinite_steps": progress.nonfinite_steps,
            "images_per_second": round(rate, 2),  # of all processes together
            "effective_batch": self.effective_batch,
            "processes": self.processes.world_size,
        }
        self.log.log(progress.step, values)

    def _state(self) -> dict[str, Any]:
        """Return what a checkpoint holds: all that decides the future of the run."""
        assert self.log is not None
        return {
            "model": self.task.model.state_dict(),
            "optimization": self.optimization.state_dict(),
            "progress": dataclasses.asdict(self.progress),
            "skipped": self.skipped.state_dict(),
            "length": list(self.schedule.length),
            "effective_batch": self.effective_batch,
            "num_images": len(self.task.images),
            "unwritten": self.log.force(),
            "extra": (
                self.task.state_to_extend()
                if self.progress.step == self.schedule.decay_start
                else self.task.state_dict()
            ),
        }
