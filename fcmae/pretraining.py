"""The pretraining of a run folder: a loop that can be killed anywhere and goes on bit for bit.

What a step computes depends on the settings, the weights and the number of the step alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from fcmae.checkpoints import CheckpointStore
from fcmae.config import PretrainConfig
from fcmae.data import ImageList, MicroBatches, SampleStream, make_loader, open_images
from fcmae.distributed import Processes, start_processes
from fcmae.errors import CheckpointError, ConfigError, DiskError
from fcmae.metrics import MetricsLog
from fcmae.nonfinite import nonfinite_loss_error
from fcmae.optimization import Optimization, StepResult, check_precision
from fcmae.pretraining_setup import (
    LearningRate,
    create_dataset,
    create_model,
    create_optimizer,
    total_steps_of,
)
from fcmae.pretraining_watch import Watch
from fcmae.run_folder import RunFolder
from fcmae.run_images import fix_images
from fcmae.signals import StopRequest
from fcmae.skipped_files import SkippedFiles

# Settings in which a continued run may differ from what its folder records.
MAY_CHANGE = (
    *("run.dir", "data.path", "data.workers", "data.timeout_seconds", "data.max_skipped_share"),
    *("train.batch_size", "train.accumulate", "train.device", "train.compile"),
    *("train.skip_nonfinite_steps", "model.checkpoint_activations", "model.init_from"),
    *("log.pictures_every_steps", "log.num_pictures", "log.tensorboard"),
    *("evaluate.max_images", "evaluate.labels", "evaluate.draws"),
    *("checkpoint.every_steps", "checkpoint.every_minutes", "checkpoint.keep_last"),
    *("checkpoint.keep_every", "checkpoint.max_failures"),
)
LOSS_HISTORY = 10  # finite losses that an error message shows
SKIPPED_SAID = 5  # undecodable files of one step that are named on the screen; the list has all


@dataclasses.dataclass
class Progress:
    """What decides the future of a run beside weights and optimizer; part of a checkpoint.

    Attributes:
        step: steps taken.
        loss_sum: sum of the losses since the last line of metrics.jsonl.
        loss_count: how many they are.
        nonfinite_steps: steps left out because of a loss that was not finite.
        history: the last finite losses.
    """

    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    nonfinite_steps: int = 0
    history: list[float] = dataclasses.field(default_factory=list)


def pretrain(config: PretrainConfig) -> str | None:
    """Run or continue the pretraining that `config` describes, in its run folder.

    Returns:
        The name of the signal that stopped it, with a checkpoint written; None when it is done.

    Raises:
        ConfigError: a setting that cannot work, before anything starts.
        DataError: too many undecodable files, or readers that die or are stuck.
        CheckpointError: every checkpoint of the run is damaged, or init weights do not fit.
        NonFiniteLossError: the loss is NaN or infinite.
        DiskError: no checkpoint could be written several times in a row.
    """
    processes = start_processes(config.train.device)
    try:
        images = open_images(config.data.path, config.data.label)
        return Pretraining(config, processes, images).run()
    finally:
        processes.close()


class Pretraining:
    """One run, from its settings to the exported encoder.

    Creating it checks every setting and starts nothing.
    """

    def __init__(self, config: PretrainConfig, processes: Processes, images: ImageList) -> None:
        train, checkpoint = config.train, config.checkpoint
        self.config = config
        self.processes = processes
        self.effective_batch = train.batch_size * train.accumulate * processes.world_size
        if len(images) < self.effective_batch:
            raise ConfigError(
                f"train.batch_size: a step takes {self.effective_batch} images (batch_size x "
                f"accumulate x processes) and data.path has {len(images)}; use a smaller "
                "batch_size, or more images."
            )
        total_steps_of(config, len(images), self.effective_batch)
        check_precision(train.precision, processes.device)
        self.images = images
        self.model = create_model(config)
        if config.model.init_from is not None:
            from fcmae.weights import load_encoder

            load_encoder(self.model.encoder, config.model.init_from)
        self.folder = RunFolder(config.run.dir)
        self.store = CheckpointStore(
            self.folder.checkpoints,
            keep_last=checkpoint.keep_last,
            keep_every=checkpoint.keep_every,
            report=self.say,
        )
        self.progress = Progress()
        self._step_batches: list[dict[str, Any]] = []
        self._undecodable: list[tuple[str, str]] = []
        self._save_failures = 0
        self._saved_at = time.monotonic()

    def say(self, sentence: str) -> None:
        """Print one sentence above the progress bar, from the main process."""
        if self.processes.is_main:
            tqdm.write(f"fcmae: {sentence}", file=sys.stderr)

    def run(self) -> str | None:
        """Train what is left of the run; see `pretrain`."""
        try:
            if self.processes.is_main:
                self.folder.open(self.config, may_change=MAY_CHANGE)
            self._prepare()
            with StopRequest() as stop:
                return self._train(stop)
        finally:
            self.folder.close()

    def _prepare(self) -> None:
        """Put everything where the newest checkpoint left it, or at the start."""
        found: Any = self.store.load_newest() if self.processes.is_main else None
        found = self.processes.from_main(found)
        if self.processes.is_main:
            for path, reason in self.images.problems:
                self.say(f"{path!r} {reason}; left out.")
            self._fix_images(is_continued=found is not None)
        self.processes.wait()
        if not self.processes.is_main:
            self._fix_images(is_continued=True)
        num_images = len(self.images)
        self.total_steps = total_steps_of(self.config, num_images, self.effective_batch)
        self.skipped = SkippedFiles(self.folder, num_images, self.config.data.max_skipped_share)
        self.model.to(self.processes.device)
        self.network: nn.Module = self.model
        if self.config.train.compile:
            self.network = torch.compile(self.network)  # type: ignore[assignment]
        if self.processes.world_size > 1:
            self.network = DistributedDataParallel(self.network)
        self.optimization = Optimization(
            self.network,
            create_optimizer(self.config, self.model),
            LearningRate(self.config, num_images, self.effective_batch),
            self.processes,
            precision=self.config.train.precision,
            accumulate=self.config.train.accumulate,
            clip_grad=self.config.optim.clip_grad,
        )
        if found is not None:
            self._restore(*found)
        self.watch: Watch | None = None
        if self.processes.is_main:
            log = MetricsLog(
                self.folder.path,
                resumed_step=self.progress.step if found is not None else -1,
                tensorboard=self.config.log.tensorboard,
                report=self.say,
            )
            self.watch = Watch(self.config, self.folder, self.model, self.images, log, self.say)
            self._describe()
            if self.progress.step == 0:
                self.watch.begin()

    def _fix_images(self, *, is_continued: bool) -> None:
        self.images = fix_images(
            self.folder, self.images, is_continued=is_continued, report=self.say
        )

    def _describe(self) -> None:
        """Say what runs, once, before it runs."""
        model, config = self.model, self.config
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.say(
            f"{config.model.name} ({parameters / 1e6:.1f} M parameters with decoder), "
            f"{len(self.images)} images, {self.total_steps} steps of {self.effective_batch}, "
            f"{self.processes.world_size} x {self.processes.device}, {config.train.precision}."
        )
        hidden = round(model.effective_mask_ratio * model.num_patches)
        self.say(
            f"{hidden} of {model.num_patches} patches hidden: effective mask ratio "
            f"{model.effective_mask_ratio:.3f} for mask.ratio {config.mask.ratio}."
        )

    def _restore(self, step: int, state: dict[str, Any]) -> None:
        if state["effective_batch"] != self.effective_batch:
            raise ConfigError(
                f"train.batch_size: the run's effective batch size is {state['effective_batch']} "
                f"and now it is {self.effective_batch} (batch_size x accumulate x processes); "
                "change batch_size or accumulate so that it stays the same."
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimization.load_state_dict(state["optimization"])
        except (RuntimeError, ValueError) as error:
            first = " ".join(str(error).split())
            raise CheckpointError(
                f"{self.folder.checkpoints}: does not fit the model: {first}"
            ) from error
        self.progress = Progress(**state["progress"])
        self.skipped.load_state_dict(state["skipped"])
        self.say(f"continuing after step {step} of {self.total_steps}.")

    def _train(self, stop: StopRequest) -> str | None:
        config, progress = self.config, self.progress
        stream = SampleStream(len(self.images), config.train.seed, self.effective_batch)
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
            create_dataset(config, self.model, self.images),
            micro_batches,
            config.data.workers,
            timeout_seconds=config.data.timeout_seconds,
            pin_memory=self.processes.device.type == "cuda",
        )
        batches = iter(loader)
        self.model.train()
        for step in self._bar():
            self._step_batches.clear()
            result = self.optimization.step(
                step,
                itertools.islice(batches, config.train.accumulate),
                self._compute_loss,
                (stop.name is not None, self._is_save_due_by_time()),
            )
            should_stop, should_save = result.agreed
            progress.step = step + 1
            is_last = progress.step == self.total_steps
            self._note_loss(result)
            cadence = config.checkpoint.every_steps
            should_save |= should_stop or is_last
            should_save |= cadence is not None and progress.step % cadence == 0
            is_log_step = progress.step % config.log.every_steps == 0 or progress.step == 1
            self._note_skipped(is_shared=should_save or is_log_step or is_last)
            if is_log_step or is_last:
                self._log(result)
            if self.watch is not None:
                self.watch.look(progress.step)
            if should_save:
                self._save()
            if should_stop and not is_last:
                self.say(f"{stop.name or 'a signal'}: stopped after step {progress.step}.")
                return stop.name or "a signal in another process"
        if self.watch is not None:
            self.watch.finish(progress.step)
        self.processes.wait()
        return None

    def _compute_loss(self, batch: dict[str, Any]) -> Tensor:
        self._step_batches.append(batch)
        device = self.processes.device
        images = batch["image"].to(device, non_blocking=True)
        visible = batch["visible"].to(device, non_blocking=True)
        loss: Tensor = self.network(images, visible).loss
        return loss

    def _bar(self) -> Iterator[int]:
        """Yield the steps that are left, showing loss, rate, images/s and time left."""
        steps = range(self.progress.step, self.total_steps)
        self._clock = time.monotonic()
        self._clock_step = self.progress.step
        with tqdm(
            steps,
            initial=self.progress.step,
            total=self.total_steps,
            unit="step",
            dynamic_ncols=True,
            disable=not self.processes.is_main,
        ) as self._progress_bar:
            yield from self._progress_bar

    def _note_loss(self, result: StepResult) -> None:
        progress = self.progress
        if result.is_finite:
            progress.loss_sum += result.loss
            progress.loss_count += 1
            progress.history = [*progress.history, result.loss][-LOSS_HISTORY:]
            return
        progress.nonfinite_steps += 1
        budget = self.config.train.skip_nonfinite_steps
        if progress.nonfinite_steps > budget:
            raise nonfinite_loss_error(
                result,
                self._step_batches,
                progress.history,
                self.folder.path / f"nonfinite-step-{progress.step:08d}-{self.processes.rank}.pt",
            )
        self.say(
            f"step {progress.step}: loss {result.loss}, gradient norm {result.grad_norm}; step "
            f"left out ({progress.nonfinite_steps} of {budget})."
        )

    def _note_skipped(self, *, is_shared: bool) -> None:
        """Collect undecodable files; `is_shared` steps exchange them between the processes."""
        self._undecodable += [
            problem for batch in self._step_batches for problem in batch["skipped"]
        ]
        if not is_shared:
            return
        found: Any = self.processes.gather(self._undecodable)
        self._undecodable = []
        new = self.skipped.add((path, reason) for path, reason in found)
        for path, reason in new[:SKIPPED_SAID]:
            self.say(f"skipped {path!r}: {reason}.")
        if new and self.processes.is_main:
            self._try(self.skipped.write, self.folder.skipped_files)
        self.skipped.check_share()

    def _log(self, result: StepResult) -> None:
        """Write a line with the mean loss since the last one."""
        progress = self.progress
        now, steps = time.monotonic(), progress.step - self._clock_step
        rate = steps * self.effective_batch / max(now - self._clock, 1e-9)
        loss = progress.loss_sum / progress.loss_count if progress.loss_count else None
        progress.loss_sum, progress.loss_count = 0.0, 0
        self._clock, self._clock_step = now, progress.step
        if self.watch is None:
            return
        self._progress_bar.set_postfix_str(
            f"loss {result.loss:.4f}, lr {result.lr:.2e}, {rate:.1f} images/s"
        )
        values = {
            "epoch": round(progress.step * self.effective_batch / len(self.images), 4),
            "loss": loss,
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            "skipped_files": len(self.skipped),
            "nonfinite_steps": progress.nonfinite_steps,
            "images_per_second": round(rate, 2),
        }
        self.watch.log.log(progress.step, values)

    def _is_save_due_by_time(self) -> bool:
        minutes = self.config.checkpoint.every_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def _save(self) -> None:
        """Write a checkpoint; a failure is told, and too many in a row stop the run."""
        self._saved_at = time.monotonic()
        if not self.processes.is_main:
            return
        state = {
            "model": self.model.state_dict(),
            "optimization": self.optimization.state_dict(),
            "progress": dataclasses.asdict(self.progress),
            "skipped": self.skipped.state_dict(),
            "effective_batch": self.effective_batch,
        }
        if self._try(lambda: self.store.save(self.progress.step, state), self.folder.checkpoints):
            self._save_failures = 0
            return
        self._save_failures += 1
        if self._save_failures >= self.config.checkpoint.max_failures:
            raise DiskError(
                f"{self.folder.checkpoints}: {self._save_failures} checkpoints in a row could not "
                f"be written; stopped at step {self.progress.step}. Make room or mend permissions "
                "and start the same command again: it goes on from the last good checkpoint."
            )

    def _try(self, write: Callable[[], object], where: Path) -> bool:
        """Write something that training can do without; say what failed and where."""
        try:
            write()
        except OSError as error:
            self.say(f"{where}: cannot be written ({error.strerror or error}); training goes on.")
            return False
        return True
