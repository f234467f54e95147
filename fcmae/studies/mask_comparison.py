"""Did pretraining help, and with how many masks? The same segmentation from several starts.

All take the same labelled images, order, crops, steps and seeds, and are scored after the last
step: nothing is chosen on the images that score them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from fcmae.data import ImageList, sample_seed
from fcmae.errors import CheckpointError, ConfigError
from fcmae.evaluation import RULE, Mean, PairedDifference, differences
from fcmae.evaluation.segmentation import SegmentationScores
from fcmae.finetuning.scored import Finetuned
from fcmae.finetuning.segmentation.opening import MaskedImages, open_masked
from fcmae.finetuning.segmentation.setup import check_weights
from fcmae.finetuning.segmentation.task import resolve, segment
from fcmae.finetuning.setup import variant_of
from fcmae.model.segmenter import import_smp
from fcmae.runs import terminal
from fcmae.runs.durable import write_text
from fcmae.runs.folder import RunFolder
from fcmae.settings.segmentation import SegmentationConfig
from fcmae.studies.comparison.arms import (
    Arm,
    Arms,
    arm_folder,
    arms_of,
    by_first,
    settings_of,
)
from fcmae.studies.comparison.pairs import (
    COSTS,
    PAIRED,
    Row,
    costs_table,
    lines_of,
    sentences_of,
)
from fcmae.studies.comparison.running import (
    ALL,
    RunCount,
    record_lists,
    repeated,
    run_all,
    share_of,
)
from fcmae.studies.comparison.scores import PRETRAINED, SCRATCH, Compared, means_of
from fcmae.training.processes import Processes
from fcmae.training.saving import disk_error

IOU = "mean IoU"
NARROWEST = 15  # column of scores, in characters


@dataclass
class MaskComparison(Compared):
    """Scores of segmenters from several starts.

    Attributes:
        classes: to tell apart.
        models: timm names of the encoders that were trained.
    """

    classes: tuple[str, ...] = ()
    models: set[str] = field(default_factory=set)

    def ious(self, share: float, number: int | None = None) -> dict[str, dict[int, float]]:
        """Return mean IoU in per cent, or that of one class, {start: {seed: IoU}}."""
        return {
            start: {
                seed: 100 * (one.mean_iou if number is None else one.ious[number])
                for seed, one in by_seed.items()
            }
            for start, by_seed in self.results[share].items()
        }

    def means(self, share: float, number: int | None = None) -> dict[str, Mean]:
        """Return the mean of `ious` of each start with its interval; see `means_of`."""
        return means_of(self.ious(share, number), are_named=self.are_named)

    def rows(self) -> list[Row]:
        """Return the scores that are compared pair by pair."""
        return [Row(s, IOU, self.ious(s), n, "images") for s, n in self.num_labels.items()]

    def difference(self, share: float) -> PairedDifference:
        """Return how much the mean IoU of the pretrained start exceeds the other, by seed."""
        return differences(self.ious(share), SCRATCH)[PRETRAINED]

    def sentence(self) -> str:
        """Say in one line where pretraining helps, of two starts, and no more than that."""
        parts = [
            self.difference(share).effect("points of mean IoU", f"at {count} images")
            for share, count in self.num_labels.items()
        ]
        return (
            f"After {self.steps} steps, compared with training {SCRATCH}, pretraining "
            f"{'; '.join(parts)}."
        )

    def sentences(self) -> list[str]:
        """Say what differs: of two starts in one line, of named ones a sentence for each pair."""
        return sentences_of(self.rows()) if self.are_named else [self.sentence()]

    def notes(self) -> str:
        """Say how to read the scores."""
        first = next(iter(self.results.values()))[self.starts[0]]
        scored = next(iter(first.values())).num_images
        rule = f"{RULE} The pairs are seeds; the images that score them are the same in all."
        return (
            f"Scored on {scored} held-out images after {self.steps} steps, {len(first)} seeds. "
            f"{f'{PAIRED} {COSTS}' if self.are_named else rule} The "
            "pretraining itself is one run: another one may differ."
        )

    def costs_table(self) -> list[list[str]]:
        """Return a header, and for each named start its scores and what it costs."""
        return costs_table(self, self.rows())

    def text(self) -> str:
        """Return scores, verdict and how to read them as lines of text."""
        width = max(len(name) for name in (*self.classes, *self.starts))
        column = max(NARROWEST, *map(len, self.starts))
        lines = []
        if self.are_named:
            said = "Mean IoU in %, mean with its 95 % confidence interval over the seeds."
            lines = [*lines_of(self.costs_table()), said]
        for share, count in self.num_labels.items():
            lines.append(f"{count} labelled images, IoU in % (mean +- 95 % interval over seeds):")
            lines.append("  ".join([" " * width, *(name.rjust(column) for name in self.starts)]))
            rows: list[tuple[str, int | None]] = [(n, k) for k, n in enumerate(self.classes)]
            for name, number in [*rows, ("mean", None)]:
                found = self.means(share, number)
                cells = (found[start].text() for start in self.starts)
                lines.append(f"{name:<{width}}  " + "  ".join(cell.rjust(column) for cell in cells))
        return "\n".join([*lines, *self.sentences(), self.notes()])


def compare_masks(
    config: SegmentationConfig, processes: Processes, shares: Sequence[float] = (ALL,)
) -> MaskComparison | str:
    """Train from model.weights and from scratch for every share and seed; return the scores.

    Where compare.starts names others, from those: their weights are looked at before any training.

    Every run has a folder of its own below run.dir; a stopped comparison goes on where it was.
    The text is also written to run.dir/comparison.txt.

    Args:
        config: the recipe; compare.seeds are the seeds, compare.starts may name all starts.
        processes: this process and the others.
        shares: per cents of the labelled training images, at least one image.

    Returns:
        The scores, or the name of the signal that stopped it.

    Raises:
        As `segment`; of weights of a named start with its name.
    """
    import_smp()
    arms = arms_of(config)
    config = by_first(config, arms)
    if arms.are_named:
        processes.from_main(lambda: check_starts(config, arms))
    whole = open_fixed(config, processes)
    record = folder_of(config, shares[0], arms.first_trained.name, 0)
    resolved, rules = resolve(config, whole, processes, record, arms.weights)
    for sentence in rules if processes.is_main else ():
        terminal.say(sentence)
    found = MaskComparison(
        classes=whole.survey.classes.names,
        config=resolved,
        starts=arms.names,
        are_named=arms.are_named,
    )
    at_least = resolved.train.batch_size * resolved.train.accumulate * processes.world_size
    runs = RunCount(len(arms.all) * config.compare.seeds * len(shares))
    for share in shares:

        def train(
            settings: SegmentationConfig, seed: int, share: float = share
        ) -> Finetuned[SegmentationScores]:
            drawn = draw_images(whole.train, share, seed, at_least)
            found.num_labels[share] = len(set(drawn.paths))
            found.models.add(settings.model.name)
            return segment(settings, processes, whole._replace(train=drawn, told=[]))

        of_share = _in_share(resolved, share)
        signal = run_all(found, share, of_share, arms, runs, "images", train)
        if signal is not None:
            return signal
    if processes.is_main:
        text = found.text()
        terminal.tell(text)
        write_text(Path(config.run.dir) / "comparison.txt", text + "\n")
    return found


def open_fixed(config: SegmentationConfig, processes: Processes) -> MaskedImages:
    """Return all images with masks, as the first start found them: its folder records them.

    Raises:
        DiskError: they cannot be recorded; else as `open_masked`.
    """
    folder = RunFolder(config.run.dir)

    def fix() -> MaskedImages:
        is_begun = folder.masks.exists()
        images = open_masked(config, is_begun=is_begun)
        for sentence in images.told:
            terminal.say(sentence)
        if is_begun:
            return images
        try:
            record_lists(folder, images.train, images.validation)
            paths = [images.train.paths, images.validation.paths]
            images.survey.write(folder.masks, paths)  # last: its being there says begun
        except OSError as error:
            raise disk_error(error) from error
        return images

    found: MaskedImages = processes.from_main(fix)
    return found


def draw_images(images: ImageList, share: float, seed: int, at_least: int) -> ImageList:
    """Return `share` per cent of the images, one at least, so often that there are `at_least`.

    A smaller share's images are among a larger one's of the same seed.
    """
    rng = torch.Generator().manual_seed(sample_seed(seed, "masks"))
    count = max(1, round(len(images) * share / 100))
    chosen = np.sort(torch.randperm(len(images), generator=rng)[:count].numpy())
    return repeated(images.select(chosen), at_least)


def folder_of(config: SegmentationConfig, share: float, start: str, place: int) -> str:
    """Return the run folder of a share and a start with the seed at a place, from 0."""
    return arm_folder(_in_share(config, share), Arm(start, None), config.train.seed + place)


def _in_share(config: SegmentationConfig, share: float) -> SegmentationConfig:
    """Return the settings of a share, whose runs have a folder of their own unless it is all."""
    return config if share == ALL else share_of(config, share)


def check_starts(config: SegmentationConfig, arms: Arms) -> None:
    """Raise unless the weights of every start fit its network.

    Args:
        config: of `by_first`, as given.
        arms: all starts.

    Raises:
        ConfigError, CheckpointError: as `check_weights`, with the name of the start.
    """
    first = arms.first_trained
    with _named(first):
        model = dataclasses.replace(config.model, name=variant_of(config, 1))
        config = dataclasses.replace(config, model=model)
        check_weights(config)
    for arm in arms.all:
        if arm.weights is None or arm is first:
            continue
        with _named(arm):
            check_weights(settings_of(config, arms, arm, config.train.seed))


@contextlib.contextmanager
def _named(arm: Arm) -> Iterator[None]:
    """Name the start in what is wrong with its weights."""
    try:
        yield
    except (CheckpointError, ConfigError) as error:
        raise type(error)(f"compare.starts, {arm.name}: {error}") from error
