"""What a comparison of starts found, and the sentences about two of them."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fcmae.evaluation import RULE, Mean, PairedDifference, differences, means

PRETRAINED, SCRATCH, OTHER = "pretrained", "from scratch", "other weights"
LINEAR, KNN, PIXELS = (
    "linear probe of the frozen encoder",
    "kNN of the frozen encoder",
    "linear probe of raw pixels",
)


def means_of(table: dict[str, dict[int, float]], *, are_named: bool) -> dict[str, Mean]:
    """Return the mean score of each start over its seeds, with its interval.

    The spread over the seeds is that of both of two starts, and each named one's own: one that has
    not learned is not as noisy as the others.

    Args:
        table: {start: {seed: score}}.
        are_named: whether the settings name the starts.
    """
    if not are_named:
        return means(table)
    return {start: means({start: values})[start] for start, values in table.items()}


@dataclass
class Compared:
    """What was found of starts over shares of the labels, of any task.

    Attributes:
        starts: the pretrained one and what it is compared with, or all named ones.
        results: {share in per cent: {start: {seed: scores after the last step}}}.
        num_labels: {share: labelled training images}.
        steps: of every fine-tuning.
        config: the settings, with nothing left to a rule; None of scores without runs.
        are_named: whether the settings name the starts.
        seconds: {share: {start: {seed: seconds of fine-tuning}}}, where they were measured.
        pretraining_seconds: of named starts; None where nobody has measured them.
    """

    starts: tuple[str, ...] = (PRETRAINED, SCRATCH)
    results: dict[float, dict[str, dict[int, Any]]] = field(default_factory=dict)
    num_labels: dict[float, int] = field(default_factory=dict)
    steps: int = 0
    config: Any = None
    are_named: bool = False
    seconds: dict[float, dict[str, dict[int, float]]] = field(default_factory=dict)
    pretraining_seconds: dict[str, float | None] = field(default_factory=dict)


@dataclass
class Comparison(Compared):
    """Scores of classifiers from several starts.

    Sentences about two are here; those about all pairs of named ones: `comparison.pairs`.

    Attributes:
        drawn: the shares at which each seed has labelled images of its own.
        num_classes: classes to tell apart.
        num_test: images that all are scored on.
        frozen: {share: {what: {seed: balanced accuracy in per cent}}} of classifiers on frozen
            features that saw the same labels: LINEAR, KNN and PIXELS; without what failed.
        advice: what to change in a recipe that falls behind them.
        probes: {share: {method: {start: {seed: balanced accuracy in per cent}}}} of named starts.
    """

    drawn: set[float] = field(default_factory=set)
    num_classes: int = 0
    num_test: int = 0
    frozen: dict[float, dict[str, dict[int, float]]] = field(default_factory=dict)
    advice: str = ""
    probes: dict[float, dict[str, dict[str, dict[int, float]]]] = field(default_factory=dict)

    def accuracies(self, share: float) -> dict[str, dict[int, float]]:
        """Return the balanced accuracies in per cent, {start: {seed: accuracy}}."""
        return {
            start: {seed: 100 * scores.balanced_accuracy for seed, scores in by_seed.items()}
            for start, by_seed in self.results[share].items()
        }

    def means(self, share: float) -> dict[str, Mean]:
        """Return the mean of `accuracies` of each start with its interval; see `means_of`."""
        return means_of(self.accuracies(share), are_named=self.are_named)

    def difference(self, share: float) -> PairedDifference:
        """Return how much the first start exceeds the second, paired by seed."""
        first, second = self.starts
        return differences(self.accuracies(share), second)[first]

    def at_chance(self, share: float) -> dict[str, Mean]:
        """Return the starts that have not learned: their interval reaches down to chance."""
        found = means(self.accuracies(share))
        chance = 100 / self.num_classes
        return {
            start: mean
            for start, mean in found.items()
            if mean.value - (mean.half_width or 0.0) <= chance
        }

    def sentence(self) -> str:
        """Say in one line where pretraining helps, after how many steps, and no more than that."""
        parts = [
            self.difference(share).effect("points", f"at {count} labels")
            for share, count in self.num_labels.items()
        ]
        said = (
            f"After {self.length}, compared with {_in_words(self.starts[1])}, pretraining "
            f"{'; '.join(parts)}."
        )
        return " ".join([said, *self.not_learned()])

    @property
    def length(self) -> str:
        """Steps of every fine-tuning, in words."""
        return f"{self.steps} step{'s' * (self.steps != 1)}"

    def not_learned(self) -> list[str]:
        """Say which starts are still at chance: their gap tells of speed, not of the end."""
        said = []
        for start in self.starts:
            stuck = {
                count: self.at_chance(share)[start]
                for share, count in self.num_labels.items()
                if start in self.at_chance(share)
            }
            if stuck:
                where = ", ".join(f"{mean.text()} % at {n} labels" for n, mean in stuck.items())
                said.append(
                    f"But {_in_words(start)} has not learned yet after {self.length} ({where}; "
                    f"chance is {100 / self.num_classes:.0f} %): more steps may change this."
                )
        return said

    def worth(self, share: float) -> str:
        """Say in one line what pretraining was worth on so many labels, and beside what."""
        scores = {"fine-tuned": self.accuracies(share)[self.starts[0]]}
        scores |= {self.starts[1]: self.accuracies(share)[self.starts[1]]}
        scores |= self.frozen.get(share, {})
        parts = [
            f"{name} {np.mean(list(values.values())):.1f} +- "
            f"{np.std(list(values.values()), ddof=1):.1f}"
            for name, values in scores.items()
        ]
        return (
            f"What pretraining was worth with {self.num_labels[share]} labels, balanced accuracy "
            f"in % (mean +- standard deviation over the seeds): {', '.join(parts)}."
        )

    def behind_frozen(self, share: float) -> list[str]:
        """Say so, and what to change, when frozen features do better than fine-tuning."""
        tuned = self.accuracies(share)[self.starts[0]]
        said = []
        for name in (LINEAR, KNN):
            values = self.frozen.get(share, {}).get(name)
            gap = None if values is None else differences({name: values, "": tuned}, "").get(name)
            if gap is not None and gap.exceeds_noise and gap.value > 0:
                said.append(
                    f"With {self.num_labels[share]} labels {name} beats fine-tuning by "
                    f"{gap.amount()} points: the recipe loses what the encoder knows. {self.advice}"
                )
        return said[:1]

    def notes(self) -> list[str]:
        """Return what one must know to read the figures."""
        seeds = len(next(iter(self.results.values()))[self.starts[0]])
        own = [self.num_labels[share] for share in self.results if share in self.drawn]
        shared = [self.num_labels[share] for share in self.results if share not in self.drawn]
        images = []
        if own:
            listed = ", ".join(map(str, own))
            images.append(f"with {listed} labels each seed has its own labelled images")
        if shared:
            listed = ", ".join(map(str, shared))
            images.append(f"with {listed} all seeds have the same ones")
        return [
            f"Balanced accuracy on {self.num_test} held-out images after {self.length}, "
            f"{seeds} seeds: {'; '.join(images)}. Order and crops are the seed's, and the same for "
            f"{'all' if self.are_named else 'both'} starts.",
            f"{RULE} The pairs are seeds; the images that score them are the same in all.",
            "The pretraining itself is one run: another one may differ.",
        ]

    def text(self) -> str:
        """Return scores, verdict and how to read them as lines of text."""
        width = max(map(len, self.starts))
        lines = []
        for share, count in self.num_labels.items():
            lines.append(f"{'':<{width}}  {f'{count} labels':>15}  {'all images':>10}")
            for start, values in self.accuracies(share).items():
                spread = list(values.values())
                overall = np.mean([one.accuracy for one in self.results[share][start].values()])
                lines.append(
                    f"{start:<{width}}  {np.mean(spread):6.1f} +- {np.std(spread, ddof=1):5.1f}  "
                    f"{100 * overall:10.1f}"
                )
        lines.append(
            f"Balanced accuracy in % ({self.num_classes} classes, chance "
            f"{100 / self.num_classes:.0f}), mean +- standard deviation over the seeds, and "
            "accuracy over all images."
        )
        beside = [self.worth(share) for share in self.num_labels]
        beside += [said for share in self.num_labels for said in self.behind_frozen(share)]
        return "\n".join([*lines, *beside, self.sentence(), *self.notes()])


def _in_words(start: str) -> str:
    return f"training {start}" if start == SCRATCH else start
