"""Did pretraining help, and with how many labels? Fine-tuning from two starts, over label shares.

Both starts take the same recipe, number of steps, labelled images and seeds, and are scored after
the last step: nothing is chosen on the images that score them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fcmae.data import ImageList
from fcmae.data.splits import draw_share, open_labelled
from fcmae.errors import ConfigError
from fcmae.evaluation.statistics import PairedDifference, differences
from fcmae.finetuning.task import Finetuning
from fcmae.settings.finetune import FinetuneConfig
from fcmae.studies.comparison import PRETRAINED, SCRATCH, single_run
from fcmae.training.processes import Processes

OTHER = "other weights"


@dataclass(frozen=True)
class LabelComparison:
    """Balanced accuracies in per cent of two starts over shares of the labels.

    Attributes:
        scores: {share in per cent: {start: {seed: accuracy}}}.
        num_labels: {share: labelled training images}.
        num_test: images that all are scored on.
        steps: of every fine-tuning.
        starts: the pretrained one and what it is compared with.
    """

    scores: dict[float, dict[str, dict[int, float]]]
    num_labels: dict[float, int]
    num_test: int
    steps: int
    starts: tuple[str, str]

    def difference(self, share: float) -> PairedDifference:
        """Return how much the first start exceeds the second, paired by seed."""
        first, second = self.starts
        return differences(self.scores[share], second)[first]

    def sentence(self) -> str:
        """Say in one sentence where pretraining helps, and no more than that."""
        parts = []
        for share, count in self.num_labels.items():
            gap = self.difference(share)
            if gap.exceeds_noise:
                verb = "helps" if gap.value > 0 else "hurts"
                parts.append(f"{verb} by {gap.text().lstrip('+-')} points at {count} labels")
            else:
                parts.append(f"makes no difference beyond noise at {count} labels ({gap.text()})")
        second = "training from scratch" if self.starts[1] == SCRATCH else self.starts[1]
        return f"Compared with {second}, pretraining " + "; ".join(parts) + "."


def check_comparison(config: FinetuneConfig, shares: Sequence[float]) -> None:
    """Raise ConfigError unless the comparison can be fair and say something."""
    if not shares or any(not 0 < share <= 100 for share in shares):
        raise ConfigError(
            f"--shares: got {list(shares)}, expected per cents of the labels above 0 and up to "
            "100, such as [1, 5, 10, 100]."
        )
    if len(set(shares)) != len(shares):
        raise ConfigError(f"--shares: got {list(shares)}, expected each share once.")
    if config.model.weights is None:
        raise ConfigError(
            "model.weights: not given; expected the folder of a pretraining run or a weights file "
            "to compare with training from scratch."
        )
    if config.train.steps is None:
        raise ConfigError(
            f"train.epochs: got {config.train.epochs}, but a share of the labels would then "
            "change the number of steps, too; give train.steps."
        )
    if config.data.train_per_class is not None:
        raise ConfigError(
            f"data.train_per_class: got {config.data.train_per_class}, but --shares decides how "
            "many images are used; remove it, or set it to null."
        )


def compare_over_labels(
    config: FinetuneConfig,
    shares: Sequence[float],
    against: str | None,
    processes: Processes,
    say: Callable[[str], None] = print,
) -> LabelComparison | str:
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
    starts = (PRETRAINED, SCRATCH if against is None else OTHER)
    train, test = open_labelled(config.data, config.train.seed)
    assert config.train.steps is not None  # check_comparison
    found = LabelComparison({}, {}, len(test), config.train.steps, starts)
    at_least = config.train.batch_size * config.train.accumulate * processes.world_size
    for share in shares:
        scores: dict[str, dict[int, float]] = {start: {} for start in starts}
        for seed in range(config.train.seed, config.train.seed + config.compare.seeds):
            labelled = draw_share(train, share, seed)
            for start in starts:
                arm = _arm(config, start, share, seed, against)
                run = Finetuning(arm, processes, repeated(labelled, at_least), test)
                signal = run.run()
                if signal is not None:
                    return signal
                assert run.last is not None  # finished runs have it
                scores[start][seed] = 100 * run.last.balanced_accuracy
        found.scores[share] = scores
        found.num_labels[share] = len(labelled)
        if processes.is_main:
            say(f"{share:g} % of the labels ({len(labelled)}): {found.difference(share).text()}")
    return found


def repeated(images: ImageList, at_least: int) -> ImageList:
    """Return the images so often that there are `at_least`: a step takes a full batch."""
    times = -(-at_least // len(images))
    return images.select([index for _ in range(times) for index in range(len(images))])


def _arm(
    config: FinetuneConfig, start: str, share: float, seed: int, against: str | None
) -> FinetuneConfig:
    """Return the settings of one fine-tuning."""
    folder = str(Path(config.run.dir) / f"labels-{share:g}")
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, dir=folder))
    if start != OTHER:
        return single_run(config, start, seed)
    arm = single_run(config, PRETRAINED, seed)  # normalised as the first start's images are
    return dataclasses.replace(
        arm,
        run=dataclasses.replace(arm.run, dir=f"{folder}/{OTHER.replace(' ', '-')}-{seed}"),
        model=dataclasses.replace(arm.model, weights=against),
    )
