"""Fine-tuning: a classifier on labelled images, evaluated, kept at its best, exported."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fcmae.data import EvaluationTransform, ImageList
from fcmae.data.files import Problem
from fcmae.errors import DataError
from fcmae.evaluation.classification import ClassificationScores, draw_confusion_matrix
from fcmae.finetuning import frozen
from fcmae.finetuning.classifier_export import export_classifier
from fcmae.finetuning.data import FinetuneDataset
from fcmae.finetuning.frozen import FrozenFeatures
from fcmae.finetuning.head import start_at_probe
from fcmae.finetuning.opening import open_or_recall
from fcmae.finetuning.recipe import (
    EPOCHS,
    FEWEST_STEPS,
    MOST_STEPS,
    choose_after_length,
    choose_before_length,
    steps_for,
)
from fcmae.finetuning.resolving import Rules, resolve_settings
from fcmae.finetuning.scored import Finetuned, ScoredTask
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
)
from fcmae.runs.folder import RunFolder
from fcmae.runs.metrics import read_metrics
from fcmae.settings.finetune import FinetuneConfig
from fcmae.training.auto import Choices
from fcmae.training.loop import TrainingLoop
from fcmae.training.processes import Processes
from fcmae.weights.export import write
from fcmae.weights.formats import FILE_NAMES, TIMM_FOLDER
from fcmae.weights.sources import open_source

BEST_FILE, LAST_FILE = "classifier.safetensors", "classifier_last.safetensors"


def finetune(
    config: FinetuneConfig,
    processes: Processes,
    images: tuple[ImageList, ImageList] | None = None,
    *,
    scores_frozen: bool = True,
) -> Finetuned[ClassificationScores]:
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
    return task.run(processes, rules)


def resolve(
    config: FinetuneConfig,
    train: ImageList,
    validation: ImageList,
    processes: Processes,
    record: str | None = None,
    starts: Sequence[str] | None = None,
) -> tuple[FinetuneConfig, list[str]]:
    """Return the settings with nothing left to a rule; see `resolve_settings`."""
    reading = create_reading(config)

    def before() -> Choices:
        variant = variant_of(config, len(train))
        return choose_before_length(config, train, reading, variant, processes.world_size, starts)

    def steps(effective_batch: int) -> tuple[int, str]:
        labels = len(set(train.paths))
        why = f"{EPOCHS} epochs of {labels:,} labels, {FEWEST_STEPS} to {MOST_STEPS:,} steps"
        return steps_for(labels, effective_batch), why

    def task(resolved: FinetuneConfig) -> Finetuning:
        return Finetuning(resolved, train, validation)

    rules = Rules(before, choose_after_length, steps, task)
    return resolve_settings(config, len(train), processes, rules, record)


def not_scored(run_dir: str) -> DataError:
    """Return the error of whoever needs the scores of a run whose last evaluation failed."""
    finished = RunFolder(run_dir).finished
    return DataError(
        f"{run_dir}: the evaluation after its last step failed, so that there is nothing to "
        f"compare; mend what its output names, remove {finished} and start the same command again."
    )


class Finetuning(ScoredTask[ClassificationScores]):
    """A classifier, from its settings to the exported weights."""

    model: Any  # timm's ConvNeXt
    best_file, last_file = BEST_FILE, LAST_FILE
    scores_class = ClassificationScores
    score_name = "val_balanced_accuracy"

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
        model, sentences = create_classifier(config, train.classes)
        super().__init__(config, train, validation, model, train.classes, [*sentences, *told])
        self._scores_frozen = scores_frozen
        self._frozen: FrozenFeatures | None = None  # from prepare to begin
        self._augmentation = create_augmentation(config)
        self._transform = create_evaluation_transform(config)
        self._mixup = create_mixup(config, len(train.classes))
        self._loss = create_loss(config)

    def prepare(self, run: TrainingLoop) -> None:
        """Let the classifier start as a linear probe where it is to; then as every task does."""
        if self.config.model.head_start == "probe" and not run.is_continued:
            features = self._frozen_features(run)
            crops = self._dataset(None)
            told = start_at_probe(self.model, features, crops, self.config, run.processes)
            self.told.append(told)
        super().prepare(run)

    def _frozen_features(self, run: TrainingLoop) -> FrozenFeatures:
        """Return features of the start, each image read once while they are asked for."""
        if self._frozen is None:
            describers = {frozen.START: self.model}
            self._frozen = FrozenFeatures(
                describers, self._transform, self.config, run.processes.device
            )
        return self._frozen

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return a group per layer and decay."""
        return layer_groups(self.config, self.model)

    def create_dataset(self) -> FinetuneDataset:
        """Return the augmented training images; beside a probe half of them as evaluation has them.

        What a probe knows of pictures is lost by learning from crops alone.
        """
        keeps_probe = self.config.model.head_start == "probe"
        return self._dataset(self._transform if keeps_probe else None)

    def _dataset(self, evaluated: EvaluationTransform | None) -> FinetuneDataset:
        return FinetuneDataset(
            self.images,
            self._augmentation,
            seed=self.config.train.seed,
            reading=create_reading(self.config),
            evaluated=evaluated,
        )

    def compute_loss(self, network: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Mix the images of the batch where that is asked for, and score the predictions."""
        images, target = batch["image"], batch["label"]
        if self._mixup is not None:
            images, target = self._mixup(images, target)
        loss: Tensor = self._loss(self.outputs(network, images), target)
        return loss

    def begin(self, run: TrainingLoop) -> None:
        """Record the validation images, and say what runs."""
        super().begin(run)
        self.introduce(run, self.config.model.name)
        if run.processes.is_main and self._scores_frozen and run.progress.step == 0:
            run.look("scoring the frozen features", lambda: self._look_at_frozen(run))
        self._frozen = None

    def _look_at_frozen(self, run: TrainingLoop) -> None:
        features, seed = self._frozen_features(run), self.config.train.seed
        line, said = frozen.measure(features, self.images, self.validation, seed)
        if run.log is not None:
            run.log.log(0, line)
        run.say(said)

    def evaluate(self, run: TrainingLoop) -> tuple[ClassificationScores, list[Problem]]:
        """Return the scores on all validation images, and those that cannot be decoded."""
        return evaluate_classifier(
            self.evaluated,
            self.validation,
            self._transform,
            self.config,
            run.processes,
            run.optimization.autocast,
        )

    def score_of(self, scores: ClassificationScores) -> float:
        """Return the balanced accuracy."""
        return scores.balanced_accuracy

    def log_values(self, scores: ClassificationScores) -> dict[str, float | None]:
        """Return the loss and accuracies, also of each class."""
        values: dict[str, float | None] = {
            "val_loss": scores.loss,
            "val_accuracy": scores.accuracy,
            "val_balanced_accuracy": scores.balanced_accuracy,
        }
        for name, share in zip(self.class_names, scores.per_class, strict=True):
            values[f"val_accuracy/{name}"] = None if math.isnan(share) else share
        return values

    def sentence(self, scores: ClassificationScores) -> str:
        """Say accuracies and loss."""
        return (
            f"accuracy {100 * scores.accuracy:.2f} %, balanced "
            f"{100 * scores.balanced_accuracy:.2f} %, loss {scores.loss:.4f}"
        )

    def export(
        self,
        run: TrainingLoop,
        name: str,
        weights: dict[str, Tensor],
        step: int,
        scores: ClassificationScores | None,
    ) -> None:
        """Write a classifier for timm."""
        path = run.folder.export / name
        export_classifier(weights, path, self.config, self.class_names, step, scores)

    def draw(self, scores: ClassificationScores, path: Path) -> Path:
        """Draw the confusion matrix of images."""
        return draw_confusion_matrix(scores, self.class_names, path)

    def in_short(self, scores: ClassificationScores) -> str:
        """Say accuracies."""
        return (
            f"accuracy {100 * scores.accuracy:.1f} %, balanced "
            f"{100 * scores.balanced_accuracy:.1f} %"
        )

    def beside_best(self, run: TrainingLoop, best: ClassificationScores) -> list[str]:
        """Return what classifiers of the frozen features score."""
        if self.last is None:
            return []
        line = frozen.of_metrics(read_metrics(run.folder.metrics))
        num_images = len(self.images)
        return frozen.compared(line, best, self.last, self.config, run.schedule, num_images)

    def write_more(self, run: TrainingLoop) -> Path | None:
        """Write timm's folder."""
        folder = run.folder.export / f"classifier{FILE_NAMES[TIMM_FOLDER]}"
        is_written = (run.folder.export / BEST_FILE).is_file() and run.attempt(
            lambda: write(open_source(run.folder.path), TIMM_FOLDER, folder), folder
        )
        return folder if is_written else None
