"""The same fine-tuning and the same probes from several starts: did pretraining help?

All take the same labelled images, order, augmentation, steps and seeds, and are scored after the
last step: nothing is chosen on the images that score them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcmae.data import ImageList
from fcmae.data.recorded import fix_images
from fcmae.data.splits import draw_per_class, draw_share
from fcmae.errors import ConfigError, DataError
from fcmae.evaluation import means, thumbnails
from fcmae.evaluation.classification import ClassificationScores
from fcmae.finetuning.frozen import FrozenFeatures, what_to_change
from fcmae.finetuning.opening import open_or_recall
from fcmae.finetuning.scored import Finetuned
from fcmae.finetuning.setup import create_classifier, create_evaluation_transform
from fcmae.finetuning.task import finetune, not_scored, resolve
from fcmae.runs import terminal
from fcmae.runs.durable import write_text
from fcmae.runs.folder import RunFolder
from fcmae.settings.finetune import FinetuneConfig
from fcmae.settings.segmentation import SegmentationConfig
from fcmae.studies.comparison.arms import (
    Arms,
    Settings,
    arm_folder,
    arms_of,
    by_first,
    pretraining_seconds,
    seconds_of,
    settings_of,
)
from fcmae.studies.comparison.pairs import PROBES, text_of
from fcmae.studies.comparison.scores import KNN, LINEAR, PIXELS, Compared, Comparison
from fcmae.training.processes import Processes
from fcmae.training.saving import disk_error
from fcmae.training.schedule import Schedule, effective_batch_of

ALL = 100.0  # per cent of the labels

# The labelled images of a seed, and those that score them.
Images = Callable[[int], tuple[ImageList, ImageList]]
# Features of every start, by its name; asked for behind the runs.
Frozen = Callable[[], dict[str, FrozenFeatures]]


def compare_with_scratch(config: FinetuneConfig, processes: Processes) -> str | None:
    """Fine-tune from model.weights and from scratch for compare.seeds seeds, print both.

    Where compare.starts names others, from those.

    Every run has a folder of its own below run.dir, and a stopped comparison goes on where it
    was. The text is also written to run.dir/comparison.txt.

    Returns:
        The name of the signal that stopped it; None when it is done.

    Raises:
        As `finetune`.
    """
    arms = arms_of(config)
    found = Comparison(arms.names, are_named=arms.are_named)
    if config.data.train_per_class is not None:
        found.drawn.add(ALL)

    train, test = open_fixed(config, processes)

    def images(seed: int) -> tuple[ImageList, ImageList]:
        count = config.data.train_per_class
        return train if count is None else draw_per_class(train, count, seed), test

    config = _resolve(config, arms, images(config.train.seed), processes, config)
    first = images(config.train.seed)[0]
    frozen = functools.cache(lambda: _frozen_features(config, arms, first, processes))
    runs = RunCount(config.compare.seeds * len(arms.all))
    signal = _compare(found, ALL, config, arms, images, processes, frozen, runs)
    if signal is None and processes.is_main:
        text = text_of(found)
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
    """Fine-tune from all starts for every share and seed; return the scores.

    Every fine-tuning has a run folder below run.dir; a stopped comparison goes on where it was.

    Args:
        config: the recipe; model.weights is the first start, or compare.starts names all;
            compare.seeds the seeds.
        shares: per cents of the training images of each class, at least one image.
        against: weights of the second start, beside model.weights; None: from scratch.
        processes: this process and the others.
        say: called with one sentence per finished share.

    Returns:
        The scores, or the name of the signal that stopped it.

    Raises:
        ConfigError, CheckpointError, DataError: as `finetune` and `check_comparison`.
    """
    check_comparison(config, shares)
    arms = arms_of(config, against)
    train, test = open_fixed(config, processes)
    config = _resolve(config, arms, (train, test), processes, share_of(config, shares[0]))
    found = Comparison(arms.names, config=config, are_named=arms.are_named)
    found.drawn |= {share for share in shares if share < ALL}
    at_least = config.train.batch_size * config.train.accumulate * processes.world_size
    frozen = functools.cache(lambda: _frozen_features(config, arms, train, processes))
    runs = RunCount(len(shares) * config.compare.seeds * len(arms.all))
    for share in shares:
        of_share = share_of(config, share)

        def images(seed: int, share: float = share) -> tuple[ImageList, ImageList]:
            return repeated(draw_share(train, share, seed), at_least), test

        signal = _compare(found, share, of_share, arms, images, processes, frozen, runs)
        if signal is not None:
            return signal
        if processes.is_main:
            labels = found.num_labels[share]
            said = ", ".join(
                f"{name} {mean.text()}" for name, mean in means(found.accuracies(share)).items()
            )
            said = said if arms.are_named else found.difference(share).text()
            say(f"{share:g} % of the labels ({labels}): {said}")
    return found


def share_of(config: Settings, share: float) -> Settings:
    """Return the settings of a share, whose runs have a folder of their own."""
    folder = str(Path(config.run.dir) / f"labels-{share:g}")
    return dataclasses.replace(config, run=dataclasses.replace(config.run, dir=folder))


def _resolve(
    config: FinetuneConfig,
    arms: Arms,
    images: tuple[ImageList, ImageList],
    processes: Processes,
    first: FinetuneConfig,
) -> FinetuneConfig:
    """Return settings in which nothing is left to a rule: the same ones for all starts.

    What the first run of `first` has recorded is taken from there.
    """
    config = by_first(config, arms)
    record = arm_folder(first, arms.first_trained, first.train.seed)
    resolved, rules = resolve(config, *images, processes, record, arms.weights)
    for sentence in rules if processes.is_main else ():
        terminal.say(sentence)
    rate = resolved.compare.scratch_base_lr
    if rules and rate != config.compare.scratch_base_lr and rate is not None and processes.is_main:
        terminal.say(
            f"auto: compare.scratch_base_lr {rate:.3g}: from scratch there is no probe to keep."
        )
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
            record_lists(folder, train, test)
        except OSError as error:
            raise disk_error(error) from error

    processes.from_main(record)
    return train, test


def record_lists(folder: RunFolder, train: ImageList, test: ImageList) -> None:
    """Record the images of a comparison in its folder; raises OSError."""
    folder.path.mkdir(parents=True, exist_ok=True)
    for file, images in ((folder.images, train), (folder.validation, test)):
        fix_images(file, images, is_continued=False, report=terminal.say)


def check_comparison(config: FinetuneConfig, shares: Sequence[float]) -> None:
    """Raise ConfigError unless the comparison can be fair and say something."""
    has_start = config.model.weights is not None or config.compare.starts is not None
    check_shares(shares, has_start, config.train.epochs)
    if config.data.train_per_class is not None:
        raise ConfigError(
            f"data.train_per_class: got {config.data.train_per_class}, but --shares decides how "
            "many images are used; remove it, or set it to null."
        )


def check_shares(shares: Sequence[float], has_start: bool, epochs: float | None) -> None:
    """Raise ConfigError unless shares of the labels of any task can be compared.

    Args:
        shares: per cents of the labelled images.
        has_start: whether weights to begin with are named.
        epochs: train.epochs.
    """
    if not shares or any(not 0 < share <= ALL for share in shares):
        raise ConfigError(
            f"--shares: got {list(shares)}, expected per cents of the labels above 0 and up to "
            "100, such as [1, 5, 10, 100]."
        )
    if len(set(shares)) != len(shares):
        raise ConfigError(f"--shares: got {list(shares)}, expected each share once.")
    if not has_start:
        raise ConfigError(
            "model.weights: not given; expected the folder of a pretraining run or a weights file "
            "to compare with training from scratch, or several starts in compare.starts."
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
    arms: Arms,
    images: Images,
    processes: Processes,
    frozen: Frozen,
    runs: RunCount,
) -> str | None:
    """Fine-tune from all starts with every seed; return the signal that stopped it.

    `frozen` is asked for behind the runs, so that they have the memory.
    """

    def train(settings: FinetuneConfig, seed: int) -> Finetuned[ClassificationScores]:
        labelled, test = images(seed)
        run = finetune(settings, processes, (labelled, test), scores_frozen=False)
        found.num_labels[share], found.num_classes = len(set(labelled.paths)), len(run.classes)
        found.num_test = 0 if run.last is None else run.last.num_images
        return run

    signal = run_all(found, share, config, arms, runs, "labels", train)
    if signal is not None:
        return signal
    if processes.is_main:
        _score_frozen(found, share, config, arms, images, frozen())
    return None


def run_all(
    found: Compared,
    share: float,
    config: Settings,
    arms: Arms,
    runs: RunCount,
    unit: str,
    train: Callable[[Settings, int], Finetuned[Any]],
) -> str | None:
    """Fine-tune from all starts with every seed, and note scores and costs.

    Args:
        found: what they are noted in, once all are done.
        share: of the labels, per cent.
        config: of the share, with nothing left to a rule.
        arms: the starts.
        runs: counts them.
        unit: what has the labels.
        train: (settings, seed) -> how the fine-tuning ended.

    Returns:
        The name of the signal that stopped it, or None.

    Raises:
        DataError: the evaluation after a last step failed; else as `train`.
    """
    results: dict[str, dict[int, Any]] = {name: {} for name in arms.names}
    seconds: dict[str, dict[int, float]] = {name: {} for name in arms.names}
    for seed in seeds_of(config):
        for arm in arms.all:
            settings = settings_of(config, arms, arm, seed)
            with runs.next(f"{arm.name}, {share:g} % of the {unit}, seed {seed}"):
                run = train(settings, seed)
            if run.signal is not None:
                return run.signal
            if run.last is None:
                raise not_scored(settings.run.dir)
            results[arm.name][seed], found.steps = run.last, run.total_steps
            taken = seconds_of(settings.run.dir)
            if taken is not None:
                seconds[arm.name][seed] = taken
    found.results[share], found.seconds[share] = results, seconds
    if arms.are_named:
        found.pretraining_seconds = {arm.name: pretraining_seconds(arm.weights) for arm in arms.all}
    return None


class RunCount:
    """Numbers the runs of a comparison, for who waits for it."""

    def __init__(self, total: int) -> None:
        self._numbers, self._total = iter(range(1, total + 1)), total

    def next(self, title: str) -> contextlib.AbstractContextManager[None]:
        """Say that the next run begins; entered around it."""
        return terminal.numbered(next(self._numbers), self._total, title)


def seeds_of(config: FinetuneConfig | SegmentationConfig) -> range:
    """Return the seeds of a comparison."""
    return range(config.train.seed, config.train.seed + config.compare.seeds)


def _frozen_features(
    config: FinetuneConfig, arms: Arms, train: ImageList, processes: Processes
) -> dict[str, FrozenFeatures]:
    """Return the features of each start that is probed, with those of raw pixels in the first.

    All named starts are, else the pretrained one. Each model is made as every fine-tuning from its
    start makes it.
    """
    assert train.classes is not None
    found: dict[str, FrozenFeatures] = {}
    for arm in arms.all if arms.are_named else arms.all[:1]:
        settings = settings_of(config, arms, arm, config.train.seed)
        model, _ = create_classifier(settings, train.classes)
        pixels = {} if found else {PIXELS: thumbnails}
        found[arm.name] = FrozenFeatures(
            {LINEAR: model.to(processes.device), **pixels},
            create_evaluation_transform(settings),
            settings,
            processes.device,
        )
    return found


def _score_frozen(
    found: Comparison,
    share: float,
    config: FinetuneConfig,
    arms: Arms,
    images: Images,
    features: dict[str, FrozenFeatures],
) -> None:
    """Note what frozen features know of the same labels; a look that fails is told."""
    table: dict[str, dict[int, float]] = {LINEAR: {}, KNN: {}, PIXELS: {}}
    probes: dict[str, dict[str, dict[int, float]]] = {
        name: {start: {} for start in features} for name in PROBES.values()
    }
    num_images = 0
    for seed in seeds_of(config):
        labelled, test = images(seed)
        num_images = len(labelled)
        for start, described in features.items():
            try:
                scores = described.score(labelled, test, seed).scores
            except (DataError, RuntimeError, ValueError, MemoryError) as error:  # the runs are done
                terminal.tell(f"frozen features were not scored: {' '.join(str(error).split())}")
                return
            for method, share_right in scores[LINEAR].items():
                probes[PROBES[method]][start][seed] = 100 * share_right
            if start == arms.names[0]:
                for method, name in (("linear", LINEAR), ("kNN", KNN)):
                    if method in scores[LINEAR]:
                        table[name][seed] = 100 * scores[LINEAR][method]
                if "linear" in scores[PIXELS]:
                    table[PIXELS][seed] = 100 * scores[PIXELS]["linear"]
    found.frozen[share] = {name: values for name, values in table.items() if values}
    if arms.are_named:
        found.probes[share] = {name: of for name, of in probes.items() if all(of.values())}
    batch = effective_batch_of(config.train, 1, num_images)
    schedule = Schedule(config.train, config.optim, num_images, batch)
    found.advice = what_to_change(config, schedule, num_images)
