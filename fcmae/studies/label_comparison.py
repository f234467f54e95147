"""Did pretraining help, and with how many labels? Fine-tuning from two starts, over label shares.

Both starts take the same recipe, number of steps, labelled images and seeds, and are scored after
the last step: nothing is chosen on the images that score them.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fcmae.data import ImageList, sample_seed
from fcmae.errors import ConfigError
from fcmae.evaluation.statistics import PairedDifference, differences, means
from fcmae.finetuning.data import open_labelled
from fcmae.finetuning.task import Finetuning
from fcmae.machine.hardware import hardware, versions
from fcmae.reports import figures
from fcmae.reports.document import Bullets, Document, Picture, Section, Table
from fcmae.reports.writing import write_document
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


def draw_share(images: ImageList, share: float, seed: int) -> ImageList:
    """Return `share` per cent of each class's images, one at least, in their old order.

    A smaller share's images are among a larger one's.
    """
    assert images.labels is not None
    assert images.classes is not None
    chosen: list[int] = []
    for label, name in enumerate(images.classes):
        members = [index for index, other in enumerate(images.labels) if other == label]
        rng = torch.Generator().manual_seed(sample_seed(seed, "labels", name))
        count = max(1, round(len(members) * share / 100))
        order = torch.randperm(len(members), generator=rng)[:count].tolist()
        chosen += [members[place] for place in order]
    return images.select(sorted(chosen))


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


def write_comparison(
    found: LabelComparison, config: FinetuneConfig, against: str | None
) -> list[Path]:
    """Write report.html, report.md and report.csv into run.dir; return them."""
    first, second = found.starts
    names = {share: f"{count} ({share:g} %)" for share, count in found.num_labels.items()}
    tables: dict[str, dict[float | str, dict[int, float]]] = {
        start: {names[share]: found.scores[share][start] for share in found.scores}
        for start in found.starts
    }
    plot = figures.draw_means(
        tables, x_name="labelled training images", y_name="balanced accuracy in %"
    )
    seeds = config.compare.seeds
    caption = f"Mean over {seeds} seeds with its 95 % confidence interval, and every seed as a dot."
    rows = []
    for share, scores in found.scores.items():
        mean, gap = means(scores), found.difference(share)
        verdict = "beyond noise" if gap.exceeds_noise else "within noise"
        text = f"{gap.text()}, {verdict}"
        rows.append([names[share], mean[first].text(), mean[second].text(), text])
    starts = [f"{first}: {config.model.weights}"]
    starts += [f"{second}: {against}"] if against is not None else []
    compare, optim = config.compare, config.optim
    if against is None:
        rate = compare.scratch_base_lr or optim.base_lr
        starts.append(
            f"{second}: optim.base_lr {rate:g}, optim.layer_decay {compare.scratch_layer_decay:g} "
            f"(pretrained: {optim.base_lr:g} and {optim.layer_decay:g}); all else is the same."
        )
    document = Document(
        "Did pretraining help?",
        found.sentence(),
        [
            Section("Accuracy against labels", [Picture("labels.svg", plot, caption)]),
            Section(
                "Every share",
                [Table(["labels", first, second, f"{first} less {second}"], rows)],
            ),
            Section(
                "How to read this",
                [
                    Bullets(
                        [
                            f"Balanced accuracy on {found.num_test} held-out images after "
                            f"{found.steps} steps; each seed has its own labelled images, order "
                            "and crops, the same for both starts.",
                            "A difference is the mean over the seeds with its 95 % confidence "
                            "interval (paired, Student's t). The pretraining itself is one run: "
                            "another one may differ.",
                            *starts,
                            f"{hardware()}; {versions()}.",
                        ]
                    )
                ],
            ),
        ],
    )
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["share_percent", "labels", "start", "train.seed", "balanced_accuracy_percent"])
    for share, scores in found.scores.items():
        for start, values in scores.items():
            for seed, value in values.items():
                writer.writerow([share, found.num_labels[share], start, seed, f"{value:.4f}"])
    return write_document(document, stream.getvalue(), Path(config.run.dir))
