"""Fine-tuning: a classifier on labelled images, evaluated, kept at its best, exported."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from fcmae.data import ImageList
from fcmae.data.augmentation import mean_and_std
from fcmae.data.splits import open_labelled
from fcmae.evaluation.classification import ClassificationScores, draw_confusion_matrix
from fcmae.finetuning.classifier_export import export_classifier
from fcmae.finetuning.data import FinetuneDataset
from fcmae.finetuning.scoring import evaluate_classifier
from fcmae.finetuning.setup import (
    create_augmentation,
    create_classifier,
    create_evaluation_transform,
    create_loss,
    create_mixup,
    create_optimizer,
    create_reading,
    weights_metadata,
)
from fcmae.settings.finetune import FinetuneConfig
from fcmae.training.first_look import look_first, write_files
from fcmae.training.loop import TrainingLoop
from fcmae.training.optimization import StepResult
from fcmae.training.processes import Processes
from fcmae.training.schedule import Schedule


@dataclass(frozen=True)
class FinetuneResult:
    """How a fine-tuning ended.

    Attributes:
        signal: what stopped it, with a checkpoint written; None when it is done.
        last: scores after the last step; None when it was stopped before.
        num_train: training images.
        classes: names of the classes.
    """

    signal: str | None
    last: ClassificationScores | None
    num_train: int
    classes: tuple[str, ...]


def finetune(config: FinetuneConfig, processes: Processes) -> FinetuneResult:
    """Run or continue the fine-tuning that `config` describes, in its run folder.

    Raises:
        ConfigError: a setting that cannot work, before anything starts.
        CheckpointError: weights that cannot be read or do not fit; damaged checkpoints.
        DataError: too many undecodable files, or readers that die or are stuck.
        NonFiniteLossError: the loss is NaN or infinite.
        DiskError: no checkpoint could be written several times in a row.
    """
    train, validation = open_labelled(config.data, config.train.seed)
    run = Finetuning(config, processes, train, validation)
    signal = run.run()
    return FinetuneResult(signal, run.last, len(run.images), run.classes)


class Finetuning(TrainingLoop):
    """One run, from its settings to the exported classifier.

    Attributes:
        classes: names of the classes, in the order of the model's outputs.
        best: scores of the exported weights; of two equal ones the earlier.
        last: scores after the last step.
    """

    model: Any  # timm's ConvNeXt
    schedule: Schedule

    def __init__(
        self,
        config: FinetuneConfig,
        processes: Processes,
        train: ImageList,
        validation: ImageList,
    ) -> None:
        assert train.classes is not None
        self.classes = train.classes
        self.validation = validation
        model, told = create_classifier(config, self.classes)
        super().__init__(config, processes, train, model)
        self._told = told
        self._augmentation = create_augmentation(config)
        self._transform = create_evaluation_transform(config)
        self._mixup = create_mixup(config, len(self.classes))
        self._loss = create_loss(config)
        self.best: ClassificationScores | None = None
        self.best_step = 0
        self.last: ClassificationScores | None = None

    def total_steps_for(self, num_images: int) -> int:
        """Return the steps of the whole run, and bring the schedule up to date."""
        train, optim, evaluate = self.config.train, self.config.optim, self.config.evaluate
        self.schedule = Schedule(train, optim, num_images, self.effective_batch)
        whole = self.schedule.total_steps
        cadence = self.schedule.steps(evaluate.every_steps, evaluate.every_epochs, whole)
        self._evaluate_every = max(1, cadence)
        return self.schedule.total_steps

    def create_optimizer(self) -> torch.optim.Optimizer:
        """Return AdamW with layer decay."""
        return create_optimizer(self.config, self.model)

    def lr_of_step(self, step: int) -> float:
        """Return the rate of the layers without decay."""
        return self.schedule(step)

    def create_dataset(self) -> FinetuneDataset:
        """Return the augmented training images."""
        return FinetuneDataset(
            self.images,
            self._augmentation,
            seed=self.config.train.seed,
            reading=create_reading(self.config),
        )

    def prepare(self) -> None:
        """Start the moving average at the first weights."""
        ema = self.config.ema
        self.ema: ModelEmaV3 | None = None
        if ema.decay is not None:
            self.ema = ModelEmaV3(self.model, decay=ema.decay, use_warmup=ema.warmup)

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated and exported: the average when there is one."""
        return self.model if self.ema is None else self.ema.module

    def compute_loss(self, batch: dict[str, Any]) -> Tensor:
        """Mix the images of the batch where that is asked for, and score the predictions."""
        device = self.processes.device
        images = batch["image"].to(device, non_blocking=True)
        target = batch["label"].to(device, non_blocking=True)
        if self._mixup is not None:
            images, target = self._mixup(images, target)
        logits = self.network(images)
        loss: Tensor = self._loss(logits.float(), target)
        return loss

    def begin(self) -> None:
        """Say what runs, and keep training images out of a validation set that has changed."""
        known = set(self.images.paths)
        paths = self.validation.paths
        self.validation = self.validation.select(
            index for index in range(len(paths)) if paths[index] not in known
        )
        config = self.config
        parameters = sum(p.numel() for p in self.model.parameters())
        self.say(
            f"{config.model.name} ({parameters / 1e6:.1f} M parameters), {len(self.classes)} "
            f"classes, {len(self.images)} training and {len(self.validation)} validation images, "
            f"{self.total_steps} steps of {self.effective_batch}, {self.processes.world_size} x "
            f"{self.processes.device}, {config.train.precision}; weights: "
            f"{config.model.weights or 'from scratch'}."
        )
        for sentence in self._told:
            self.say(sentence)
        if self.processes.is_main:
            mean, std = mean_and_std(config.data, weights_metadata(config))
            look_first(self, self.validation, mean, std, is_normalised=True)

    def after_step(self, result: StepResult) -> None:
        """Update the average, and evaluate at the cadence and after the last step."""
        step = self.progress.step
        if self.ema is not None and result.is_finite:
            self.ema.update(self.model, step if self.config.ema.warmup else None)
        is_last = step == self.total_steps
        if is_last or step % self._evaluate_every == 0:
            self._evaluate(is_last=is_last)

    def _evaluate(self, *, is_last: bool) -> None:
        started = time.monotonic()
        scores, skipped = evaluate_classifier(
            self.evaluated,
            self.validation,
            self._transform,
            self.config,
            self.processes,
            self.optimization.autocast,
        )
        if skipped and self.best is None:
            path, reason = skipped[0]
            self.say(f"{len(skipped)} validation images left out; the first is {path!r}: {reason}.")
        step = self.progress.step
        if is_last:
            self.last = scores
        if self.best is None or scores.balanced_accuracy > self.best.balanced_accuracy:
            self.best, self.best_step = scores, step
            self._export("classifier.safetensors", scores)
        if self.log is not None:
            values: dict[str, float | None] = {
                "val_loss": scores.loss,
                "val_accuracy": scores.accuracy,
                "val_balanced_accuracy": scores.balanced_accuracy,
                "best_val_balanced_accuracy": self.best.balanced_accuracy,
            }
            for name, share in zip(self.classes, scores.per_class, strict=True):
                values[f"val_accuracy/{name}"] = None if math.isnan(share) else share
            self.log.log(step, values)
        self.say(
            f"step {step}: accuracy {100 * scores.accuracy:.2f} %, balanced "
            f"{100 * scores.balanced_accuracy:.2f} %, loss {scores.loss:.4f}."
        )
        self.clock += time.monotonic() - started

    def _export(self, name: str, scores: ClassificationScores) -> None:
        if self.processes.is_main:
            path = self.folder.export / name
            self.attempt(
                lambda: export_classifier(
                    self.evaluated, path, self.config, self.classes, self.progress.step, scores
                ),
                path,
            )

    def extra_state(self) -> dict[str, Any]:
        """Return the average and the scores so far."""
        return {
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "best": _to_plain(self.best),
            "best_step": self.best_step,
            "last": _to_plain(self.last),
        }

    def restore_extra_state(self, state: dict[str, Any]) -> None:
        """Continue from what `extra_state` returned."""
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.best = _from_plain(state["best"])
        self.best_step = state["best_step"]
        self.last = _from_plain(state["last"])

    def finish(self) -> None:
        """Export the last weights, draw the confusion matrix, print the best scores."""
        assert self.best is not None
        assert self.last is not None
        self._export("classifier_last.safetensors", self.last)
        if not self.processes.is_main:
            return
        write_files(self, self.validation)
        best, path = self.best, self.folder.path / "confusion_matrix.png"
        self.attempt(lambda: draw_confusion_matrix(best, self.classes, path), path)
        self.say(
            f"best of the evaluations, after step {self.best_step}, chosen on these same "
            f"validation images (after the last step: accuracy {100 * self.last.accuracy:.1f} %, "
            f"balanced {100 * self.last.balanced_accuracy:.1f} %):\n" + best.table(self.classes)
        )
        self.say(f"{self.folder.export / 'classifier.safetensors'} and {path} written.")


def _to_plain(scores: ClassificationScores | None) -> dict[str, Any] | None:
    return None if scores is None else {"confusion": scores.confusion, "loss": scores.loss}


def _from_plain(state: dict[str, Any] | None) -> ClassificationScores | None:
    return None if state is None else ClassificationScores(**state)
