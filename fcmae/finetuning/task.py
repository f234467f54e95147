"""Fine-tuning: a classifier on labelled images, evaluated, kept at its best, exported."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from fcmae.data import ImageList
from fcmae.data.augmentation import mean_and_std
from fcmae.data.recorded import fix_images
from fcmae.errors import DataError
from fcmae.evaluation.classification import ClassificationScores, draw_confusion_matrix
from fcmae.finetuning import frozen
from fcmae.finetuning.classifier_export import export_classifier, float32_weights
from fcmae.finetuning.data import FinetuneDataset
from fcmae.finetuning.opening import open_or_recall
from fcmae.finetuning.recipe import (
    EPOCHS,
    FEWEST_STEPS,
    MOST_STEPS,
    choose_after_length,
    choose_before_length,
    steps_for,
)
from fcmae.finetuning.scoring import evaluate_classifier
from fcmae.finetuning.setup import (
    create_augmentation,
    create_classifier,
    create_evaluation_transform,
    create_loss,
    create_mixup,
    create_reading,
    layer_groups,
    variant_of,
    weights_metadata,
)
from fcmae.runs.durable import write_text
from fcmae.runs.folder import RunFolder
from fcmae.runs.metrics import read_metrics
from fcmae.settings.auto import with_values
from fcmae.settings.finetune import FinetuneConfig
from fcmae.training.auto import Choices, as_recorded, length_is_open, recorded_settings, time_of
from fcmae.training.first_look import look_first, write_files
from fcmae.training.loop import TrainingLoop
from fcmae.training.optimization import StepResult
from fcmae.training.pace import seconds_per_step
from fcmae.training.processes import Processes
from fcmae.training.remarks import warmup_remarks
from fcmae.training.schedule import effective_batch_of, steps_of
from fcmae.training.task import Task
from fcmae.weights.export import write
from fcmae.weights.files import read_metadata
from fcmae.weights.formats import FILE_NAMES, TIMM_FOLDER
from fcmae.weights.sources import open_source

BEST_FILE, LAST_FILE = "classifier.safetensors", "classifier_last.safetensors"


@dataclass(frozen=True)
class FinetuneResult:
    """How a fine-tuning ended.

    Attributes:
        signal: what stopped it, with a checkpoint written; None when it is done.
        last: scores after the last step; None when it was stopped before, or they failed.
        total_steps: of the whole run.
        classes: names of the classes.
    """

    signal: str | None
    last: ClassificationScores | None
    total_steps: int
    classes: tuple[str, ...]


def finetune(
    config: FinetuneConfig,
    processes: Processes,
    images: tuple[ImageList, ImageList] | None = None,
    *,
    scores_frozen: bool = True,
) -> FinetuneResult:
    """Run or continue the fine-tuning that `config` describes, in its run folder.

    Args:
        config: of the run.
        processes: this process and the others.
        images: for training and for validation; None takes them as config.data says.
        scores_frozen: score the frozen features of the start, too; see `finetuning.frozen`.

    Raises:
        ConfigError: a setting that cannot work, before anything starts.
        CheckpointError: weights that cannot be read or do not fit; damaged checkpoints.
        DataError: too many undecodable files, or readers that die or are stuck.
        NonFiniteLossError: the loss is NaN or infinite.
        DiskError: no checkpoint could be written several times in a row.
    """
    train, validation, told = open_or_recall(config, images)
    config, rules = resolve(config, train, validation, processes)
    task = Finetuning(config, train, validation, told, scores_frozen=scores_frozen)
    task.rules = rules
    run = TrainingLoop(task, processes)
    signal = run.run()
    return FinetuneResult(signal, task.last, run.total_steps, task.classes)


def resolve(
    config: FinetuneConfig,
    train: ImageList,
    validation: ImageList,
    processes: Processes,
    record: str | None = None,
) -> tuple[FinetuneConfig, list[str]]:
    """Return the settings with values in place of every `auto` and of a time, and their rules.

    A folder that holds a run has them already. Every process calls it.

    Args:
        config: of the run.
        train, validation: labelled images.
        processes: this process and the others.
        record: folder of the run that may have them; None: config.run.dir.

    Raises:
        As `finetune`.
    """
    saved = processes.from_main(lambda: recorded_settings(record or config.run.dir))
    if saved is not None:
        return with_values(config, as_recorded(config, saved)), []

    def choose() -> tuple[dict[str, Any], list[str]]:
        variant = variant_of(config, len(train))
        choices = choose_before_length(
            config, train, create_reading(config), variant, processes.world_size
        )
        return choices.values, choices.lines

    chosen = processes.from_main(choose)
    choices = Choices(with_values(config, chosen[0]), chosen[1])
    effective_batch = effective_batch_of(choices.config.train, processes.world_size, len(train))
    if config.train.time is not None:
        provisional = Choices(with_values(choices.config, {"train.steps": 1, "train.time": None}))
        choose_after_length(provisional, 1, effective_batch)
        pace = seconds_per_step(Finetuning(provisional.config, train, validation), processes)
        choices.settle_time(time_of(config, config.train.time), pace, effective_batch)
    elif length_is_open(config):
        labels = len(set(train.paths))
        steps = steps_for(labels, effective_batch)
        choices.settle_steps(
            steps, f"{EPOCHS} epochs of {labels:,} labels, {FEWEST_STEPS} to {MOST_STEPS:,} steps"
        )
    length = choices.config.train
    steps = length.steps or steps_of(length.epochs or 0.0, len(train), effective_batch)
    choose_after_length(choices, steps, effective_batch)
    return choices.config, choices.lines


def not_scored(run_dir: str) -> DataError:
    """Return the error of whoever needs the scores of a run whose last evaluation failed."""
    finished = RunFolder(run_dir).finished
    return DataError(
        f"{run_dir}: the evaluation after its last step failed, so that there is nothing to "
        f"compare; mend what its output names, remove {finished} and start the same command again."
    )


class Finetuning(Task):
    """A classifier, from its settings to the exported weights.

    Attributes:
        classes: names of the classes, in the order of the model's outputs.
        ema: the moving average of the weights; None without one.
        best: scores of the exported weights; of two equal ones the earlier.
        last: scores after the last step.
    """

    model: Any  # timm's ConvNeXt

    def __init__(
        self,
        config: FinetuneConfig,
        train: ImageList,
        validation: ImageList,
        told: Sequence[str] = (),
        *,
        scores_frozen: bool = True,
    ) -> None:
        assert train.classes is not None
        self.classes = train.classes
        model, sentences = create_classifier(config, self.classes)
        self._told = [*sentences, *told]
        super().__init__(config, train, model)
        self._validation = validation
        self._scores_frozen = scores_frozen
        self._augmentation = create_augmentation(config)
        self._transform = create_evaluation_transform(config)
        self._mixup = create_mixup(config, len(self.classes))
        self._loss = create_loss(config)
        self.ema: ModelEmaV3 | None = None
        self.best: ClassificationScores | None = None
        self.best_step = 0
        self.last: ClassificationScores | None = None
        self._unwritten_best: dict[str, Tensor] | None = None  # in the main process
        self._score_to_beat = -math.inf  # of a file that the run made when it was shorter
        self._folder = RunFolder(config.run.dir)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return a group per layer and decay."""
        return layer_groups(self.config, self.model)

    def create_dataset(self) -> FinetuneDataset:
        """Return the augmented training images."""
        return FinetuneDataset(
            self.images,
            self._augmentation,
            seed=self.config.train.seed,
            reading=create_reading(self.config),
        )

    def prepare(self, run: TrainingLoop) -> None:
        """Start the moving average at the first weights."""
        ema = self.config.ema
        if ema.decay is not None:
            self.ema = ModelEmaV3(self.model, decay=ema.decay, use_warmup=ema.warmup)

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated and exported: the average when there is one."""
        return self.model if self.ema is None else self.ema.module

    def compute_loss(self, network: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Mix the images of the batch where that is asked for, and score the predictions."""
        images, target = batch["image"], batch["label"]
        if self._mixup is not None:
            images, target = self._mixup(images, target)
        loss: Tensor = self._loss(network(images).float(), target)
        return loss

    def begin(self, run: TrainingLoop) -> None:
        """Record the validation images, and say what runs."""
        self._validation = run.processes.from_main(lambda: self._fix_validation(run))
        config = self.config
        parameters = sum(p.numel() for p in self.model.parameters())
        run.say(
            f"{config.model.name} ({parameters / 1e6:.1f} M parameters), {len(self.classes)} "
            f"classes, {len(self.images)} training and {len(self._validation)} validation images, "
            f"{run.length}; weights: {config.model.weights or 'from scratch'}."
        )
        for sentence in (*self._told, *warmup_remarks(run.schedule)):
            run.say(sentence)
        if run.processes.is_main:
            self._score_to_beat = self._score_of_file()
            mean, std = mean_and_std(config.data, weights_metadata(config))
            run.look(
                "the first look at the images",
                lambda: look_first(run, self._validation, mean, std, is_normalised=True),
            )
            if self._scores_frozen and run.progress.step == 0:
                run.look("scoring the frozen features", lambda: self._look_at_frozen(run))

    def _look_at_frozen(self, run: TrainingLoop) -> None:
        line, said = frozen.measure(
            self.model,
            self.images,
            self._validation,
            self._transform,
            self.config,
            run.processes.device,
        )
        if run.log is not None:
            run.log.log(0, line)
        run.say(said)

    def _fix_validation(self, run: TrainingLoop) -> ImageList:
        file = run.folder.validation
        is_continued = run.progress.step > 0 and file.exists()
        return fix_images(file, self._validation, is_continued=is_continued, report=run.say)

    @property
    def reads_late(self) -> bool:
        """Evaluations ask nothing of a step's result."""
        return True

    def after_update(self, run: TrainingLoop, was_taken: bool | Tensor) -> None:
        """Let the average follow the weights, unless they were left alone."""
        if self.ema is None:
            return
        step = run.progress.step if self.config.ema.warmup else None
        if isinstance(was_taken, Tensor):
            follow_if(was_taken, self.ema, self.model, step)
        elif was_taken:
            self.ema.update(self.model, step)

    def after_step(self, run: TrainingLoop, result: StepResult) -> None:
        """Evaluate at the cadence and after the last step."""
        step, total_steps, evaluate = run.progress.step, run.total_steps, self.config.evaluate
        cadence = run.schedule.steps(evaluate.every_steps, evaluate.every_epochs, total_steps)
        if step == total_steps or step % max(1, cadence) == 0:
            self._evaluate(run)

    def _evaluate(self, run: TrainingLoop) -> None:
        found = run.look(
            f"the evaluation of step {run.progress.step}",
            lambda: evaluate_classifier(
                self.evaluated,
                self._validation,
                self._transform,
                self.config,
                run.processes,
                run.optimization.autocast,
            ),
        )
        if found is None:
            return
        scores, skipped = found
        if skipped and self.best is None:
            path, reason = skipped[0]
            run.say(f"{len(skipped)} validation images left out; the first is {path!r}: {reason}.")
        step = run.progress.step
        if step == run.total_steps:
            self.last = scores
        if self.best is None or scores.balanced_accuracy > self.best.balanced_accuracy:
            self.best, self.best_step = scores, step
            if run.processes.is_main:
                self._unwritten_best = float32_weights(self.evaluated)
        self._write_best(run)
        if run.log is not None:
            values: dict[str, float | None] = {
                "val_loss": scores.loss,
                "val_accuracy": scores.accuracy,
                "val_balanced_accuracy": scores.balanced_accuracy,
                "best_val_balanced_accuracy": self.best.balanced_accuracy,
            }
            for name, share in zip(self.classes, scores.per_class, strict=True):
                values[f"val_accuracy/{name}"] = None if math.isnan(share) else share
            run.log.log(step, values)
        run.say(
            f"step {step}: accuracy {100 * scores.accuracy:.2f} %, balanced "
            f"{100 * scores.balanced_accuracy:.2f} %, loss {scores.loss:.4f}."
        )

    def _score_of_file(self) -> float:
        """Return the score of the classifier that the run has exported, or -inf.

        A run that was extended has one of its former decay, which is worth more than what the
        longer run has before its own: it stays until that is better or done.
        """
        score = read_metadata(self._folder.export / BEST_FILE).get("val_balanced_accuracy")
        return float(score) if isinstance(score, (int, float)) else -math.inf

    def _write_best(self, run: TrainingLoop, *, is_last: bool = False) -> None:
        """Write the best weights unless the disk has them; what fails is tried again."""
        weights = self._unwritten_best
        if weights is None or not run.processes.is_main:
            return
        assert self.best is not None
        if self.best.balanced_accuracy < self._score_to_beat and not is_last:
            return
        if self._write(run, BEST_FILE, weights, self.best_step, self.best):
            self._unwritten_best = None

    def _write(
        self,
        run: TrainingLoop,
        name: str,
        weights: dict[str, Tensor],
        step: int,
        scores: ClassificationScores | None,
    ) -> bool:
        path = run.folder.export / name
        return run.attempt(
            lambda: export_classifier(weights, path, self.config, self.classes, step, scores), path
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the average, the scores so far, and the best weights that have no file yet."""
        return {
            "unwritten_best": self._unwritten_best,
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "best": _to_plain(self.best),
            "best_step": self.best_step,
            "last": _to_plain(self.last),
        }

    def state_to_extend(self) -> dict[str, Any]:
        """Return the state with the best weights so far: the file may hold later ones by then."""
        state = self.state_dict()
        if state["unwritten_best"] is None and self.best is not None:
            file = self._folder.export / BEST_FILE
            if read_metadata(file).get("steps") == self.best_step:
                with contextlib.suppress(OSError, SafetensorError):
                    state["unwritten_best"] = load_file(file)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.best = _from_plain(state["best"])
        self.best_step = state["best_step"]
        self.last = _from_plain(state["last"])
        self._unwritten_best = state.get("unwritten_best")  # version 0.1.0 had none

    def finish(self, run: TrainingLoop) -> None:
        """Export the last weights, draw the confusion matrix, print the best scores.

        Scores that failed are tried once more; without any the weights go out unscored.
        """
        if self.last is None:
            self._evaluate(run)
        if not run.processes.is_main:
            return
        self._write_best(run, is_last=True)
        last, step = float32_weights(self.evaluated), run.progress.step
        self._write(run, LAST_FILE, last, step, self.last)
        run.look("the account of files", lambda: write_files(run, self._validation))
        best = self.best
        if best is None:
            if self._write(run, BEST_FILE, last, step, None):
                run.say(
                    f"no evaluation succeeded: {run.folder.export / BEST_FILE} has the weights "
                    f"after step {step}, unscored; fcmae finetune --evaluate.only true scores "
                    "them later."
                )
            return
        path = run.folder.path / "confusion_matrix.png"
        drawn = run.look(
            "the confusion matrix", lambda: draw_confusion_matrix(best, self.classes, path)
        )
        after, beside = "it failed", []
        if self.last is not None:
            line = frozen.of_metrics(read_metrics(run.folder.metrics))
            beside = frozen.compared(
                line, best, self.last, self.config, run.schedule, len(self.images)
            )
            after = (
                f"accuracy {100 * self.last.accuracy:.1f} %, balanced "
                f"{100 * self.last.balanced_accuracy:.1f} %"
            )
        text = (
            f"best of the evaluations, after step {self.best_step}, chosen on these same "
            f"validation images (after the last step: {after}):\n"
            + "\n".join([best.table(self.classes), *beside])
        )
        run.say(text)
        scores = run.folder.path / "scores.txt"
        run.attempt(lambda: write_text(scores, text + "\n"), scores)
        written = [run.folder.export / BEST_FILE] if self._unwritten_best is None else []
        written += [] if drawn is None else [drawn]
        folder = run.folder.export / f"classifier{FILE_NAMES[TIMM_FOLDER]}"
        if (run.folder.export / BEST_FILE).is_file() and run.attempt(
            lambda: write(open_source(run.folder.path), TIMM_FOLDER, folder), folder
        ):
            written.append(folder)
        if written:
            run.say(f"{' and '.join(map(str, written))} written.")


@torch.no_grad()
def follow_if(was_taken: Tensor, ema: ModelEmaV3, model: nn.Module, step: int | None) -> None:
    """Do what ema.update(model, step) does, bit for bit, if the device finds that a step was taken.

    Nobody waits for it. A weight of zero leaves an average as it is.

    Args:
        was_taken: bool without dimensions, on the device.
        ema: changed in place.
        model: what is averaged.
        step: as `update` takes it.
    """
    weight = was_taken.float() * (1.0 - ema.get_decay(step))
    for average, value in zip(
        ema.module.state_dict().values(), model.state_dict().values(), strict=True
    ):
        if average.is_floating_point():
            average.lerp_(value, weight)
        else:
            average.copy_(value)


def _to_plain(scores: ClassificationScores | None) -> dict[str, Any] | None:
    return None if scores is None else {"confusion": scores.confusion, "loss": scores.loss}


def _from_plain(state: dict[str, Any] | None) -> ClassificationScores | None:
    return None if state is None else ClassificationScores(**state)
