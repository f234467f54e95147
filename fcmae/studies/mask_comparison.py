"""Did pretraining help, and with how many masks? The same segmentation from two starts.

Both take the same labelled images, order, crops, steps and seeds, and are scored after the last
step: nothing is chosen on the images that score them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from fcmae.data import ImageList, sample_seed
from fcmae.data.augmentation import mean_and_std
from fcmae.data.recorded import fix_images
from fcmae.errors import DataError
from fcmae.evaluation import RULE, PairedDifference, differences, means
from fcmae.evaluation.segmentation import SegmentationScores
from fcmae.finetuning.segmentation.opening import MaskedImages, open_masked
from fcmae.finetuning.segmentation.task import resolve, segment
from fcmae.finetuning.setup import weights_metadata
from fcmae.model.segmenter import import_smp
from fcmae.runs import terminal
from fcmae.runs.durable import write_text
from fcmae.runs.folder import RunFolder
from fcmae.settings.segmentation import SegmentationConfig
from fcmae.training.processes import Processes
from fcmae.training.saving import disk_error

PRETRAINED, SCRATCH = "pretrained", "from scratch"
ALL = 100.0  # per cent of the labelled images


@dataclass
class MaskComparison:
    """Scores of two starts over shares of the labelled images.

    Attributes:
        results: {share in per cent: {start: {seed: scores after the last step}}}.
        num_labels: {share: labelled training images}.
        classes: to tell apart.
        steps: of every run.
        config: the settings with nothing left to a rule; None of scores without runs.
    """

    results: dict[float, dict[str, dict[int, SegmentationScores]]] = field(default_factory=dict)
    num_labels: dict[float, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    steps: int = 0
    config: SegmentationConfig | None = None

    def ious(self, share: float, number: int | None = None) -> dict[str, dict[int, float]]:
        """Return mean IoU in per cent, or that of one class, {start: {seed: IoU}}."""
        return {
            start: {
                seed: 100 * (one.mean_iou if number is None else one.ious[number])
                for seed, one in by_seed.items()
            }
            for start, by_seed in self.results[share].items()
        }

    def difference(self, share: float) -> PairedDifference:
        """Return how much the mean IoU of the pretrained start exceeds the other, by seed."""
        return differences(self.ious(share), SCRATCH)[PRETRAINED]

    def sentence(self) -> str:
        """Say in one line where pretraining helps, and no more than that."""
        parts = [
            self.difference(share).effect("points of mean IoU", f"at {count} images")
            for share, count in self.num_labels.items()
        ]
        return (
            f"After {self.steps} steps, compared with training {SCRATCH}, pretraining "
            f"{'; '.join(parts)}."
        )

    def notes(self) -> str:
        """Say how to read the scores."""
        first = next(iter(self.results.values()))[PRETRAINED]
        scored = next(iter(first.values())).num_images
        return (
            f"Scored on {scored} held-out images after {self.steps} steps, {len(first)} seeds. "
            f"{RULE} The pairs are seeds; the images that score them are the same in all. The "
            "pretraining itself is one run: another one may differ."
        )

    def text(self) -> str:
        """Return scores, verdict and how to read them as lines of text."""
        width = max(len(name) for name in (*self.classes, PRETRAINED, SCRATCH))
        lines = []
        for share, count in self.num_labels.items():
            lines.append(f"{count} labelled images, IoU in % (mean +- 95 % interval over seeds):")
            lines.append(f"{'':<{width}}  {PRETRAINED:>15}  {SCRATCH:>15}")
            rows: list[tuple[str, int | None]] = [(n, k) for k, n in enumerate(self.classes)]
            for name, number in [*rows, ("mean", None)]:
                found = means(self.ious(share, number))
                cells = (found[start].text() for start in (PRETRAINED, SCRATCH))
                lines.append(f"{name:<{width}}  " + "  ".join(f"{cell:>15}" for cell in cells))
        return "\n".join([*lines, self.sentence(), self.notes()])


def compare_masks(
    config: SegmentationConfig, processes: Processes, shares: Sequence[float] = (ALL,)
) -> MaskComparison | str:
    """Train from model.weights and from scratch for every share and seed; return the scores.

    Every run has a folder of its own below run.dir; a stopped comparison goes on where it was.
    The text is also written to run.dir/comparison.txt.

    Args:
        config: the recipe; compare.seeds are the seeds.
        processes: this process and the others.
        shares: per cents of the labelled training images, at least one image.

    Returns:
        The scores, or the name of the signal that stopped it.

    Raises:
        As `segment`.
    """
    import_smp()
    whole = open_fixed(config, processes)
    resolved, rules = resolve(config, whole, processes, folder_of(config, shares[0], PRETRAINED, 0))
    for sentence in rules if processes.is_main else ():
        terminal.say(sentence)
    found = MaskComparison(classes=whole.survey.classes.names, config=resolved)
    at_least = resolved.train.batch_size * resolved.train.accumulate * processes.world_size
    number, total = 0, 2 * config.compare.seeds * len(shares)
    for share in shares:
        results: dict[str, dict[int, SegmentationScores]] = {PRETRAINED: {}, SCRATCH: {}}
        for place in range(config.compare.seeds):
            seed = config.train.seed + place
            train = draw_images(whole.train, share, seed, at_least)
            found.num_labels[share] = len(set(train.paths))
            for start, scores in results.items():
                arm = _arm(resolved, share, start, place)
                number += 1
                title = f"{start}, {share:g} % of the images, seed {seed}"
                with terminal.numbered(number, total, title):
                    run = segment(arm, processes, whole._replace(train=train, told=[]))
                if run.signal is not None:
                    return run.signal
                if run.last is None:
                    finished = RunFolder(arm.run.dir).finished
                    raise DataError(
                        f"{arm.run.dir}: the evaluation after its last step failed, so that there "
                        f"is nothing to compare; mend what its output names, remove {finished} "
                        "and start the same command again."
                    )
                scores[seed], found.steps = run.last, run.total_steps
        found.results[share] = results
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
            folder.path.mkdir(parents=True, exist_ok=True)
            lists = ((folder.images, images.train), (folder.validation, images.validation))
            for file, some in lists:
                fix_images(file, some, is_continued=False, report=terminal.say)
            paths = [some.paths for _, some in lists]
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
    drawn = images.select(np.tile(chosen, -(-at_least // count)))
    return dataclasses.replace(drawn, accounting=None)  # whose counts repeated ones would break


def folder_of(config: SegmentationConfig, share: float, start: str, place: int) -> str:
    """Return the run folder of a share and a start with the seed at a place, from 0."""
    folder = Path(config.run.dir)
    folder = folder if share == ALL else folder / f"labels-{share:g}"
    return str(folder / f"{start.replace(' ', '-')}-{config.train.seed + place}")


def _arm(config: SegmentationConfig, share: float, start: str, place: int) -> SegmentationConfig:
    """Return the settings of one run; images are normalised as the first start's."""
    mean, std = mean_and_std(config.data, weights_metadata(config))
    optim, model, compare = config.optim, config.model, config.compare
    if start == SCRATCH:
        rate = optim.base_lr if compare.scratch_base_lr is None else compare.scratch_base_lr
        decay = compare.scratch_layer_decay
        optim = dataclasses.replace(optim, base_lr=rate, layer_decay=decay)
        model = dataclasses.replace(model, weights=None)
    return dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, dir=folder_of(config, share, start, place)),
        data=dataclasses.replace(config.data, mean=list(mean), std=list(std)),
        train=dataclasses.replace(config.train, seed=config.train.seed + place),
        compare=dataclasses.replace(compare, scratch=False),
        optim=optim,
        model=model,
    )
