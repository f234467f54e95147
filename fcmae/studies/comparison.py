"""Did pretraining help, and with how many labels? The same fine-tuning from two starts.

Both take the same labelled images, order, augmentation, steps and seeds, and are scored after the
last step: nothing is chosen on the images that score them.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fcmae.data import ImageList
from fcmae.data.augmentation import mean_and_std
from fcmae.data.recorded import fix_images
from fcmae.data.splits import draw_per_class, draw_share
from fcmae.errors import ConfigError, DataError
from fcmae.evaluation import RULE, Mean, PairedDifference, differences, means, thumbnails
from fcmae.evaluation.classification import ClassificationScores
from fcmae.finetuning.frozen import FrozenFeatures, what_to_change
from fcmae.finetuning.opening import open_or_recall
from fcmae.finetuning.setup import (
    create_classifier,
    create_evaluation_transform,
    weights_metadata,
)
from fcmae.finetuning.task import finetune, not_scored, resolve
from fcmae.runs import terminal
from fcmae.runs.durable import write_text
from fcmae.runs.folder import RunFolder
from fcmae.settings.finetune import FinetuneConfig
from fcmae.training.processes import Processes
from fcmae.training.saving import disk_error
from fcmae.training.schedule import Schedule, effective_batch_of

PRETRAINED, SCRATCH, OTHER = "pretrained", "from scratch", "other weights"
ALL = 100.0  # per cent of the labels
LINEAR, KNN, PIXELS = (
    "linear probe of the frozen encoder",
    "kNN of the frozen encoder",
    "linear probe of raw pixels",
)

# The labelled images of a seed, and those that score them.
Images = Callable[[int], tuple[ImageList, ImageList]]


@dataclass
class Comparison:
    """Scores of two starts over shares of the labels.

    Attributes:
        starts: the pretrained one and what it is compared with.
        results: {share in per cent: {start: {seed: scores after the last step}}}.
        num_labels: {share: labelled training images}.
        drawn: the shares at which each seed has labelled images of its own.
        num_classes: classes to tell apart.
        num_test: images that all are scored on.
        steps: of every fine-tuning.
        config: the settings, with nothing left to a rule.
        frozen: {share: {what: {seed: balanced accuracy in per cent}}} of classifiers on frozen
            features that saw the same labels: LINEAR, KNN and PIXELS; without what failed.
        advice: what to change in a recipe that falls behind them.
    """

    starts: tuple[str, str]
    results: dict[float, dict[str, dict[int, ClassificationScores]]] = field(default_factory=dict)
    num_labels: dict[float, int] = field(default_factory=dict)
    drawn: set[float] = field(default_factory=set)
    num_classes: int = 0
    num_test: int = 0
    steps: int = 0
    config: FinetuneConfig | None = None
    frozen: dict[float, dict[str, dict[int, float]]] = field(default_factory=dict)
    advice: str = ""

    def accuracies(self, share: float) -> dict[str, dict[int, float]]:
        """Return the balanced accuracies in per cent, {start: {seed: accuracy}}."""
        return {
            start: {seed: 100 * scores.balanced_accuracy for seed, scores in by_seed.items()}
            for start, by_seed in self.results[share].items()
        }

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
        parts = []
        for share, count in self.num_labels.items():
            gap = self.difference(share)
            if gap.exceeds_noise:
                verb = "helps" if gap.value > 0 else "hurts"
                parts.append(f"{verb} by {gap.amount()} points at {count} labels")
            else:
                parts.append(f"makes no difference beyond noise at {count} labels ({gap.text()})")
        said = (
            f"After {self._time}, compared with {_in_words(self.starts[1])}, pretraining "
            f"{'; '.join(parts)}."
        )
        return " ".join([said, *self._not_learned()])

    @property
    def _time(self) -> str:
        return f"{self.steps} step{'s' * (self.steps != 1)}"

    def _not_learned(self) -> list[str]:
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
                    f"But {_in_words(start)} has not learned yet after {self._time} ({where}; "
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
            f"Balanced accuracy on {self.num_test} held-out images after {self._time}, "
            f"{seeds} seeds: {'; '.join(images)}. Order and crops are the seed's, and the same for "
            "both starts.",
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


def compare_with_scratch(config: FinetuneConfig, processes: Processes) -> str | None:
    """Fine-tune from model.weights and from scratch for compare.seeds seeds, print both.

    Every run has a folder of its own below run.dir, and a stopped comparison goes on where it
    was. The text is also written to run.dir/comparison.txt.

    Returns:
        The name of the signal that stopped it; None when it is done.

    Raises:
        As `finetune`.
    """
    found = Comparison((PRETRAINED, SCRATCH))
    if config.data.train_per_class is not None:
        found.drawn.add(ALL)

    train, test = open_fixed(config, processes)

    def images(seed: int) -> tuple[ImageList, ImageList]:
        count = config.data.train_per_class
        return train if count is None else draw_per_class(train, count, seed), test

    config = _resolve(config, images(config.train.seed), processes, config)
    first = images(config.train.seed)[0]
    frozen = functools.cache(lambda: _frozen_features(config, first, processes))
    signal = _compare(found, ALL, config, images, None, processes, frozen)
    if signal is None and processes.is_main:
        text = found.text()
        terminal.tell(text)
        write_text(Path(config.run.dir) / "comparison.txt", text + "\n")
    return signal


def compare_over_labels(
    config: FinetuneConfig,
    shares: Sequence[float],
    against: str | None,
    processes: Processes,
    say: Callable[[str], None] = terminal.tell,
) -> Comparison | str:
    """Fine-tune from both starts for every share and seed; return the scores.

    Every fine-tuning has a run folder below run.dir; a stopped comparison goes on where it was.

    Args:
        config: the recipe; model.weights is the first start, compare.seeds the seeds.
        shares: per cents of the training images of each class, at least one image.
        against: weights of the second start; None draws them: from scratch.
        processes: this process and the others.
        say: called with one sentence per finished share.

    Returns:
        The scores, or the name of the signal that stopped it.

    Raises:
        ConfigError, CheckpointError, DataError: as `finetune` and `check_comparison`.
    """
    check_comparison(config, shares)
    train, test = open_fixed(config, processes)
    config = _resolve(config, (train, test), processes, _share_of(config, shares[0]))
    starts = (PRETRAINED, SCRATCH if against is None else OTHER)
    found = Comparison(starts, config=config)
    found.drawn |= {share for share in shares if share < ALL}
    at_least = config.train.batch_size * config.train.accumulate * processes.world_size
    frozen = functools.cache(lambda: _frozen_features(config, train, processes))
    for share in shares:
        arm = _share_of(config, share)

        def images(seed: int, share: float = share) -> tuple[ImageList, ImageList]:
            return repeated(draw_share(train, share, seed), at_least), test

        signal = _compare(found, share, arm, images, against, processes, frozen)
        if signal is not None:
            return signal
        if processes.is_main:
            labels = found.num_labels[share]
            say(f"{share:g} % of the labels ({labels}): {found.difference(share).text()}")
    return found


def _share_of(config: FinetuneConfig, share: float) -> FinetuneConfig:
    """Return the settings of a share, whose runs have a folder of their own."""
    folder = str(Path(config.run.dir) / f"labels-{share:g}")
    return dataclasses.replace(config, run=dataclasses.replace(config.run, dir=folder))


def _resolve(
    config: FinetuneConfig,
    images: tuple[ImageList, ImageList],
    processes: Processes,
    first: FinetuneConfig,
) -> FinetuneConfig:
    """Return settings in which nothing is left to a rule: the same ones for both starts.

    What the first run of `first` has recorded is taken from there.
    """
    record = _arm_folder(first, PRETRAINED, first.train.seed)
    resolved, rules = resolve(config, *images, processes, record)
    for sentence in rules if processes.is_main else ():
        terminal.say(sentence)
    return resolved


def open_fixed(config: FinetuneConfig, processes: Processes) -> tuple[ImageList, ImageList]:
    """Return all labelled images to train on and those that score, as the first start found them.

    The folder of the comparison records them: runs that are compared must have the same.

    Raises:
        DiskError: they cannot be recorded; else as `open_or_recall`.
    """
    folder = RunFolder(config.run.dir)
    whole = dataclasses.replace(config.data, train_per_class=None)
    is_begun = bool(processes.from_main(folder.validation.exists))
    config = dataclasses.replace(config, data=whole)
    train, test, told = open_or_recall(config, None, is_begun=is_begun)
    processes.wait()

    def record() -> None:
        for sentence in told:
            terminal.say(sentence)
        if is_begun:
            return
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            for file, images in ((folder.images, train), (folder.validation, test)):
                fix_images(file, images, is_continued=False, report=terminal.say)
        except OSError as error:
            raise disk_error(error) from error

    processes.from_main(record)
    return train, test


def check_comparison(config: FinetuneConfig, shares: Sequence[float]) -> None:
    """Raise ConfigError unless the comparison can be fair and say something."""
    check_shares(shares, config.model.weights, config.train.epochs)
    if config.data.train_per_class is not None:
        raise ConfigError(
            f"data.train_per_class: got {config.data.train_per_class}, but --shares decides how "
            "many images are used; remove it, or set it to null."
        )


def check_shares(shares: Sequence[float], weights: str | None, epochs: float | None) -> None:
    """Raise ConfigError unless shares of the labels of any task can be compared.

    Args:
        shares: per cents of the labelled images.
        weights: model.weights.
        epochs: train.epochs.
    """
    if not shares or any(not 0 < share <= ALL for share in shares):
        raise ConfigError(
            f"--shares: got {list(shares)}, expected per cents of the labels above 0 and up to "
            "100, such as [1, 5, 10, 100]."
        )
    if len(set(shares)) != len(shares):
        raise ConfigError(f"--shares: got {list(shares)}, expected each share once.")
    if weights is None:
        raise ConfigError(
            "model.weights: not given; expected the folder of a pretraining run or a weights file "
            "to compare with training from scratch."
        )
    if epochs is not None:
        raise ConfigError(
            f"train.epochs: got {epochs}, but a share of the labels would then "
            "change the number of steps, too; give train.steps."
        )


def repeated(images: ImageList, at_least: int) -> ImageList:
    """Return the images so often that there are `at_least`: a step takes a full batch."""
    times = -(-at_least // len(images))
    chosen = images.select(np.tile(np.arange(len(images)), times))
    return dataclasses.replace(chosen, accounting=None)  # whose counts repeated ones would break


def _compare(
    found: Comparison,
    share: float,
    config: FinetuneConfig,
    images: Images,
    against: str | None,
    processes: Processes,
    frozen: Callable[[], FrozenFeatures | None],
) -> str | None:
    """Fine-tune from both starts with every seed; return the signal that stopped it.

    `frozen` is asked for behind the runs, so that they have the memory.
    """
    results: dict[str, dict[int, ClassificationScores]] = {start: {} for start in found.starts}
    for seed in range(config.train.seed, config.train.seed + config.compare.seeds):
        labelled, test = images(seed)
        for start in found.starts:
            arm = _arm(config, start, seed, against)
            run = finetune(arm, processes, (labelled, test), scores_frozen=False)
            if run.signal is not None:
                return run.signal
            if run.last is None:
                raise not_scored(arm.run.dir)
            results[start][seed] = run.last
            found.steps, found.num_classes = run.total_steps, len(run.classes)
            found.num_test = run.last.num_images
    found.results[share], found.num_labels[share] = results, len(set(labelled.paths))
    features = frozen()
    if features is not None:
        _score_frozen(found, share, config, images, features)
    return None


def _frozen_features(
    config: FinetuneConfig, train: ImageList, processes: Processes
) -> FrozenFeatures | None:
    """Return the features of the pretrained start and of raw pixels; None beside the main process.

    The model is made as every fine-tuning from the first start makes it.
    """
    if not processes.is_main:
        return None
    assert train.classes is not None
    arm = _arm(config, PRETRAINED, config.train.seed, None)
    model, _ = create_classifier(arm, train.classes)
    return FrozenFeatures(
        {LINEAR: model.to(processes.device), PIXELS: thumbnails},
        create_evaluation_transform(arm),
        arm,
        processes.device,
    )


def _score_frozen(
    found: Comparison,
    share: float,
    config: FinetuneConfig,
    images: Images,
    frozen: FrozenFeatures,
) -> None:
    """Note what frozen features know of the same labels; a look that fails is told."""
    table: dict[str, dict[int, float]] = {LINEAR: {}, KNN: {}, PIXELS: {}}
    num_images = 0
    for seed in range(config.train.seed, config.train.seed + config.compare.seeds):
        labelled, test = images(seed)
        num_images = len(labelled)
        try:
            scores = frozen.score(labelled, test, seed).scores
        except (DataError, RuntimeError, ValueError, MemoryError) as error:  # the runs are done
            terminal.tell(f"frozen features were not scored: {' '.join(str(error).split())}")
            return
        for name, start, method in (
            (LINEAR, LINEAR, "linear"),
            (KNN, LINEAR, "kNN"),
            (PIXELS, PIXELS, "linear"),
        ):
            if method in scores[start]:
                table[name][seed] = 100 * scores[start][method]
    found.frozen[share] = {name: values for name, values in table.items() if values}
    batch = effective_batch_of(config.train, 1, num_images)
    schedule = Schedule(config.train, config.optim, num_images, batch)
    found.advice = what_to_change(config, schedule, num_images)


def _arm(config: FinetuneConfig, start: str, seed: int, against: str | None) -> FinetuneConfig:
    """Return the settings of one fine-tuning; images are normalised as the first start's."""
    mean, std = mean_and_std(config.data, weights_metadata(config))
    optim, model, compare = config.optim, config.model, config.compare
    if start == SCRATCH:
        rate = optim.base_lr if compare.scratch_base_lr is None else compare.scratch_base_lr
        decay = compare.scratch_layer_decay
        optim = dataclasses.replace(optim, base_lr=rate, layer_decay=decay)
    if start != PRETRAINED:
        model = dataclasses.replace(model, weights=against)
    folder = _arm_folder(config, start, seed)
    return dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, dir=folder),
        data=dataclasses.replace(config.data, mean=list(mean), std=list(std)),
        train=dataclasses.replace(config.train, seed=seed),
        compare=dataclasses.replace(compare, scratch=False),
        optim=optim,
        model=model,
    )


def _arm_folder(config: FinetuneConfig, start: str, seed: int) -> str:
    return str(Path(config.run.dir) / f"{start.replace(' ', '-')}-{seed}")


def _in_words(start: str) -> str:
    return f"training {start}" if start == SCRATCH else start
