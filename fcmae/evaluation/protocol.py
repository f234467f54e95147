"""Compares feature sets fairly: the same few labels and the same test images for each of them.

Repeats over several draws of the labels, and claims no more than fcmae.evaluation.statistics does.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fcmae.errors import ConfigError, DataError
from fcmae.evaluation.features import Features
from fcmae.evaluation.knn import knn_predict
from fcmae.evaluation.label_draws import Sides, draw_labels
from fcmae.evaluation.linear_probe import balanced_accuracy, linear_probe_predict
from fcmae.evaluation.statistics import RULE, PairedDifference, differences
from fcmae.randomness import sample_seed
from fcmae.runs.terminal import progress_bar

METHODS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "kNN": knn_predict,
    "linear": linear_probe_predict,
}
MIN_DRAWS = 3  # below it a spread says nothing


@dataclass(frozen=True)
class Scores:
    """Balanced accuracies, in per cent, of several feature sets.

    Attributes:
        accuracies: {method: {feature set: one value per draw}}; draw i is the same everywhere.
        num_labels: training images per draw.
        num_test: test images per draw, all the others.
        num_classes: classes that were scored.
        note: what was left out or changed, or "".
    """

    accuracies: dict[str, dict[str, tuple[float, ...]]]
    num_labels: int
    num_test: int
    num_classes: int
    note: str = ""

    @property
    def draws(self) -> int:
        """How often the labels were drawn."""
        return len(next(iter(next(iter(self.accuracies.values())).values())))

    def mean(self, method: str, name: str) -> float:
        """Return the mean over the draws, per cent."""
        return float(np.mean(self.accuracies[method][name]))

    def spread(self, method: str, name: str) -> float:
        """Return the standard deviation over the draws, percentage points."""
        return float(np.std(self.accuracies[method][name], ddof=1))


def score_features(
    features: Mapping[str, Features],
    *,
    labels: int = 200,
    draws: int = 5,
    seed: int = 0,
    methods: Sequence[str] = tuple(METHODS),
    sides: Sides | None = None,
) -> Scores:
    """Score every feature set by every method on the same label draws.

    Each draw takes `labels` training images, of each class its share and at least one; all other
    images are the test. The score is balanced accuracy: the mean over classes of the share of
    their images that is right.

    Args:
        features: feature sets of the same images in the same order, by name.
        labels: training images per draw; half of the images when they are fewer than twice that.
        draws: how often the labels are drawn, 3 or more.
        seed: decides the draws.
        methods: keys of METHODS.
        sides: which images may be on which side of a draw; None: any on either.

    Raises:
        ConfigError: fewer than 3 draws, or fewer labels than classes (as `check_draws`).
        DataError: fewer than two classes with two images each.
    """
    check_draws(labels, draws)
    first = next(iter(features.values()))
    usable, num_classes, note = _usable_images(first.labels)
    kept = torch.tensor(usable)
    known = first.labels[kept]
    cut = None if sides is None else sides.select(kept)
    num_candidates = len(usable) if cut is None else cut.num_candidates
    num_labels = min(labels, num_candidates // 2)
    if num_labels < labels:
        note += f"{labels} labels asked for, {num_labels} of {num_candidates} images taken. "
    if num_labels < num_classes:
        raise ConfigError(
            f"labels: got {num_labels}, expected {num_classes} or more, one for each class."
        )
    results: dict[str, dict[str, list[float]]] = {
        method: {name: [] for name in features} for method in methods
    }
    for draw in progress_bar(range(draws), unit="draw", title="probing", is_brief=True):
        rng = torch.Generator().manual_seed(sample_seed(seed, "labels", draw))
        if cut is None:
            train, test = draw_labels(known, num_labels, rng)
        else:
            train, test = cut.draw(known, num_labels, rng, (seed, draw))
        num_test = len(test)
        for name, method in itertools.product(features, methods):
            vectors = features[name].vectors[kept]
            predicted = METHODS[method](vectors[train], known[train], vectors[test])
            results[method][name].append(100 * balanced_accuracy(predicted, known[test]))
    accuracies = {
        method: {name: tuple(values) for name, values in sets.items()}
        for method, sets in results.items()
    }
    if cut is not None:
        note += f"{cut.note} "
    return Scores(accuracies, num_labels, num_test, num_classes, note.strip())


def check_draws(labels: int, draws: int) -> None:
    """Raise ConfigError unless so many labels and draws can show anything."""
    if draws < MIN_DRAWS:
        raise ConfigError(
            f"draws: got {draws}, expected {MIN_DRAWS} or more: fewer show no spread."
        )
    if labels < 2:
        raise ConfigError(f"labels: got {labels}, expected 2 or more, one for each class.")


def difference(scores: Scores, method: str, name: str, baseline: str) -> PairedDifference:
    """Return how much `name` exceeds `baseline`, draw by draw."""
    sets = scores.accuracies[method]
    pair = {key: dict(enumerate(sets[key])) for key in (name, baseline)}
    return differences(pair, baseline)[name]


def sentence(scores: Scores, method: str, name: str, baseline: str) -> str:
    """Say in plain words whether `name` differs from `baseline`, and no more than that."""
    gap = difference(scores, method, name, baseline)
    if not gap.exceeds_noise:
        return (
            f"{method}: no difference between {name} and {baseline} beyond the noise of "
            f"{scores.draws} label draws ({gap.text()} points)."
        )
    verb = "beats" if gap.value > 0 else "is worse than"
    return f"{method}: {name} {verb} {baseline} by {gap.amount()} points."


def table(scores: Scores) -> str:
    """Return the scores as lines of text: one row per feature set, mean +- spread per method."""
    methods = list(scores.accuracies)
    names = list(scores.accuracies[methods[0]])
    width = max(map(len, names))
    rows = [f"{'':<{width}}  " + "  ".join(f"{method:>13}" for method in methods)]
    for name in names:
        cells = [f"{scores.mean(m, name):5.1f} +- {scores.spread(m, name):4.1f}" for m in methods]
        rows.append(f"{name:<{width}}  " + "  ".join(f"{cell:>13}" for cell in cells))
    rows.append(
        f"Balanced accuracy in % ({scores.num_classes} classes, chance "
        f"{100 / scores.num_classes:.0f}): mean +- standard deviation over {scores.draws} draws "
        f"of {scores.num_labels} labels, {scores.num_test} test images each."
    )
    if scores.note:
        rows.append(f"Note: {scores.note}")
    return "\n".join(rows)


def summary(scores: Scores, name: str, baselines: Sequence[str]) -> str:
    """Return the table, one sentence per method and baseline that was scored, and the rule."""
    lines = [table(scores)]
    for method, sets in scores.accuracies.items():
        lines += [sentence(scores, method, name, other) for other in baselines if other in sets]
    if baselines:
        lines.append(
            f"{RULE} The pairs are draws of labels: it holds for these images and this one "
            "pretraining; other seeds were not tried."
        )
    return "\n".join(lines)


def _usable_images(labels: Tensor) -> tuple[list[int], int, str]:
    """Return the images whose class can be on both sides, the number of classes, and a note."""
    classes, sizes = labels[labels >= 0].unique(return_counts=True)
    large = classes[sizes >= 2]
    if len(large) < 2:
        raise DataError(
            f"labels: {len(large)} classes with two images or more, expected at least two; put "
            "the images of each class into a folder of its own."
        )
    usable = torch.isin(labels, large).nonzero().flatten().tolist()
    left_out = len(labels) - len(usable)
    note = f"{left_out} images without a class of two or more left out. " if left_out else ""
    return usable, len(large), note
