"""The frozen line: what the encoder that a fine-tuning starts from knows before a step is taken.

A linear probe and kNN see the same labels and are scored on the same validation images, so that a
recipe that falls behind them shows itself. They are looked at once, and no look harms the run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fcmae.data import EvaluationDataset, EvaluationTransform, ImageList, in_order, make_loader
from fcmae.errors import DataError
from fcmae.evaluation import (
    METHODS,
    MOST_CLASSES,
    Describer,
    Features,
    balanced_accuracy,
    extract_together,
)
from fcmae.evaluation.classification import ClassificationScores
from fcmae.finetuning.recipe import usual_peak
from fcmae.finetuning.setup import create_reading
from fcmae.randomness import sample_seed
from fcmae.settings.finetune import FinetuneConfig
from fcmae.training.schedule import Schedule

MOST_LABELS = 2000  # that a probe sees: fitting it takes seconds
BATCH_IMAGES = 32  # bounds memory, changes no number
START = "start"  # the describer that a fine-tuning starts from
LINE = "frozen_{}_balanced_accuracy"  # in metrics.jsonl, of step 0

# What tends to be wrong where a recipe falls behind its own start.
FEW_PASSES = 50.0
FAR = 2.0  # factor between a peak rate and the rule's
STRONG_FROM_STEPS = 2000
LONG_WARMUP = 0.15


@dataclass(frozen=True)
class FrozenScores:
    """Balanced accuracies of frozen features on a split.

    Attributes:
        scores: {feature set: {method: share of 0..1}}.
        num_labels: labelled images that the methods saw.
    """

    scores: dict[str, dict[str, float]]
    num_labels: int


class FrozenFeatures:
    """Features of images by describers, each image read once however often it is asked for.

    Args:
        describers: encoders on `device`, or functions of images.
        transform: what the encoders are fed.
        config: of data and seed.
        device: of the encoders.
    """

    def __init__(
        self,
        describers: Mapping[str, Describer],
        transform: EvaluationTransform,
        config: FinetuneConfig,
        device: torch.device,
    ) -> None:
        self._describers = describers
        self._transform = transform
        self._config = config
        self._device = device
        self._vectors: dict[str, dict[str, Tensor]] = {}  # by path, of each describer
        self._unusable: set[str] = set()

    def score(self, train: ImageList, validation: ImageList, seed: int) -> FrozenScores:
        """Return what classifiers that see the training labels get right on the validation images.

        Args:
            train: with labels; of many images MOST_LABELS are drawn by `seed`.
            validation: with labels.
            seed: of the draw.

        Raises:
            DataError: no image can be decoded, the images are of one class, or features are not
                finite.
        """
        known, unknown = self.of_labelled(train, seed), self._of(validation)
        scores = {name: score_split(known[name], unknown[name]) for name in self._describers}
        return FrozenScores(scores, len(next(iter(known.values())).labels))

    def of_labelled(self, train: ImageList, seed: int) -> dict[str, Features]:
        """Return the features of the training images that `score` learns from, by describer.

        Raises:
            DataError: no image can be decoded.
        """
        rng = torch.Generator().manual_seed(sample_seed(seed, "frozen"))
        places = list({path: n for n, path in enumerate(train.paths)}.values())  # some repeat
        chosen = torch.randperm(len(places), generator=rng)[:MOST_LABELS].tolist()
        return self._of(train.select([places[c] for c in chosen]))

    def _of(self, images: ImageList) -> dict[str, Features]:
        assert images.labels is not None
        paths, seen = list(images.paths), self._vectors.keys() | self._unusable
        new = [place for place, path in enumerate(paths) if path not in seen]
        if new:
            self._extract(images.select(new))
        usable = [place for place, path in enumerate(paths) if path in self._vectors]
        if not usable:
            raise DataError("no image can be decoded.")
        labels = torch.tensor([images.labels[place] for place in usable])
        kept = tuple(paths[place] for place in usable)
        return {
            name: Features(torch.stack([self._vectors[path][name] for path in kept]), labels, kept)
            for name in self._describers
        }

    def _extract(self, images: ImageList) -> None:
        dataset = EvaluationDataset(images, self._transform, reading=create_reading(self._config))
        loader = make_loader(
            dataset,
            in_order(len(dataset), BATCH_IMAGES),
            self._config.data.workers,
            timeout_seconds=self._config.data.timeout_seconds,
        )
        found = extract_together(self._describers, loader, self._device)
        for name, features in found.items():
            for path, vector in zip(features.paths, features.vectors, strict=True):
                self._vectors.setdefault(path, {})[name] = vector
            self._unusable.update(path for path, _ in features.skipped)


def score_split(known: Features, unknown: Features) -> dict[str, float]:
    """Return the balanced accuracy, 0 to 1, of each method that sees `known` on `unknown`.

    Raises:
        DataError: fewer than two classes, or features that are not finite.
    """
    num_classes = len(known.labels.unique())
    if num_classes < 2:
        raise DataError("the labelled images are of a single class.")
    if not (known.vectors.isfinite().all() and unknown.vectors.isfinite().all()):
        raise DataError("the features are not finite.")
    found = {}
    for method, predict in METHODS.items():
        if method == "linear" and num_classes > MOST_CLASSES:
            continue
        predicted = predict(known.vectors, known.labels, unknown.vectors)
        found[method] = balanced_accuracy(predicted, unknown.labels)
    return found


def measure(
    features: FrozenFeatures, train: ImageList, validation: ImageList, seed: int
) -> tuple[dict[str, Any], str]:
    """Return a line for metrics.jsonl, and a sentence.

    See FrozenFeatures for the arguments and what is raised; START is the classifier before its
    first step, and is left as it was.
    """
    found = features.score(train, validation, seed)
    scores = found.scores[START]
    line: dict[str, Any] = {LINE.format(name.lower()): value for name, value in scores.items()}
    line["frozen_labels"] = found.num_labels
    return line, f"before the first step: {_frozen_sentence(line, len(train))}"


def of_metrics(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the line that `measure` made, or {}."""
    return next((dict(line) for line in lines if "frozen_labels" in line), {})


def _frozen_sentence(line: Mapping[str, Any], num_images: int) -> str:
    parts = [
        f"{words} {100 * line[LINE.format(name)]:.1f} %"
        for name, words in (("linear", "linear probe"), ("knn", "kNN"))
        if LINE.format(name) in line
    ]
    count = line["frozen_labels"]
    some = "" if count >= num_images else f" (of {count} of the {num_images} labels)"
    return (
        f"frozen features of the start, same labels and validation images{some}: "
        f"{', '.join(parts)} balanced accuracy."
    )


def compared(
    line: Mapping[str, Any],
    best: ClassificationScores,
    last: ClassificationScores,
    config: FinetuneConfig,
    schedule: Schedule,
    num_images: int,
) -> list[str]:
    """Return sentences that put the frozen line beside the fine-tuned score.

    Args:
        line: of `measure`.
        best, last: scores of the best evaluation and of the last step.
        config, schedule: of the fine-tuning.
        num_images: that it was trained on.
    """
    if not line:
        return []
    frozen = {
        words: line[LINE.format(name)]
        for name, words in (("linear", "the linear probe"), ("knn", "kNN"))
        if LINE.format(name) in line
    }
    name = max(frozen, key=lambda key: frozen[key])
    said = [_frozen_sentence(line, num_images)]
    gap = 100 * (frozen[name] - best.balanced_accuracy)
    if gap > 0:
        said.append(
            f"{name} of the untouched encoder beats the fine-tuning (best evaluation "
            f"{100 * best.balanced_accuracy:.1f} %) by {gap:.1f} points, where "
            f"{uncertainty(best):.1f} are noise of {best.num_images} images: the recipe loses what "
            f"the encoder knows. {what_to_change(config, schedule, num_images)}"
        )
    else:
        said.append(
            f"fine-tuned: {100 * last.balanced_accuracy:.1f} % after the last step, "
            f"{100 * best.balanced_accuracy:.1f} % at best; {name} is {-gap:.1f} points below that."
        )
    return said


def uncertainty(scores: ClassificationScores) -> float:
    """Return the half width, in points, of the 95 % interval that so few images leave."""
    counts = scores.confusion.sum(dim=1).tolist()
    variances = [
        share * (1 - share) / count
        for share, count in zip(scores.per_class, counts, strict=True)
        if count
    ]
    return 100 * 1.96 * math.sqrt(sum(variances)) / len(variances)


def what_to_change(config: FinetuneConfig, schedule: Schedule, num_images: int) -> str:
    """Say which settings tend to cost most, those of them that the recipe has."""
    augment, steps = config.augment, schedule.total_steps
    batch = schedule.effective_batch
    changes = []
    passes = steps * batch / num_images
    if passes < FEW_PASSES:
        more = max(2 * steps, math.ceil(FEW_PASSES * num_images / batch))
        changes.append(f"train longer (--train.steps {more}; it saw each image {passes:.0f} times)")
    usual = usual_peak(batch, config.model.head_start)
    if not usual / FAR <= schedule.peak <= usual * FAR:
        verb = "raise" if schedule.peak < usual else "lower"
        changes.append(
            f"{verb} the rate (--optim.base_lr auto: a peak of {usual:.2g}; it had "
            f"{schedule.peak:.2g})"
        )
    is_strong = augment.rand_augment is not None or augment.reprob > 0
    if steps < STRONG_FROM_STEPS and (is_strong or augment.mixup > 0 or augment.cutmix > 0):
        changes.append(
            "change the images less, which short runs have no time for (--augment.rand_augment "
            "null --augment.reprob 0 --augment.mixup 0 --augment.cutmix 0)"
        )
    if schedule.warmup_steps > LONG_WARMUP * steps:
        changes.append(
            f"shorten the warm-up (--optim.warmup_steps auto; it took "
            f"{100 * schedule.warmup_steps / steps:.0f} % of the run)"
        )
    if config.ema.decay is not None and not config.ema.warmup and steps < STRONG_FROM_STEPS:
        changes.append("leave out the average of the weights (--ema.decay null)")
    listed = f"In a new run.dir, {'; '.join(changes)}. Or" if changes else "You may"
    return f"{listed} take the probe itself: fcmae probe RUN DATA --save FILE."
