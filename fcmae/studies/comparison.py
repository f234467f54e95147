"""Did pretraining help? The same fine-tuning from pretrained weights and from scratch, over seeds.

Both are scored after their last step: nothing is chosen on the images that score them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fcmae.data.augmentation import mean_and_std
from fcmae.evaluation import Scores, sentence, table
from fcmae.evaluation.classification import ClassificationScores
from fcmae.finetuning.setup import weights_metadata
from fcmae.finetuning.task import FinetuneResult, finetune
from fcmae.runs.durable import write_text
from fcmae.settings.finetune import FinetuneConfig
from fcmae.training.processes import Processes

PRETRAINED, SCRATCH = "pretrained", "from scratch"


def compare_with_scratch(config: FinetuneConfig, processes: Processes) -> str | None:
    """Fine-tune from model.weights and from scratch for compare.seeds seeds, print both.

    Each seed gives both the same labelled images, order and augmentation. Every run has a folder
    of its own below run.dir, and a stopped comparison goes on where it was. The report is also
    written to run.dir/comparison.txt.

    Returns:
        The name of the signal that stopped it; None when it is done.

    Raises:
        As `finetune`.
    """
    results: dict[str, list[FinetuneResult]] = {PRETRAINED: [], SCRATCH: []}
    seeds = range(config.train.seed, config.train.seed + config.compare.seeds)
    for seed in seeds:
        for name in results:
            result = finetune(single_run(config, name, seed), processes)
            if result.signal is not None:
                return result.signal
            results[name].append(result)
    if processes.is_main:
        text = report(results)
        print(text)
        write_text(Path(config.run.dir) / "comparison.txt", text + "\n")
    return None


def single_run(config: FinetuneConfig, name: str, seed: int) -> FinetuneConfig:
    """Return the settings of one of the compared runs."""
    mean, std = mean_and_std(config.data, weights_metadata(config))
    optim, model, compare = config.optim, config.model, config.compare
    if name == SCRATCH:
        base_lr = compare.scratch_base_lr
        optim = dataclasses.replace(
            optim,
            base_lr=optim.base_lr if base_lr is None else base_lr,
            layer_decay=compare.scratch_layer_decay,
        )
        model = dataclasses.replace(model, weights=None)
    folder = Path(config.run.dir) / f"{name.replace(' ', '-')}-{seed}"
    return dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, dir=str(folder)),
        data=dataclasses.replace(config.data, mean=list(mean), std=list(std)),
        train=dataclasses.replace(config.train, seed=seed),
        compare=dataclasses.replace(compare, scratch=False),
        optim=optim,
        model=model,
    )


def report(results: dict[str, list[FinetuneResult]]) -> str:
    """Return table and verdict of finished runs, {name: one result per seed}."""
    first = results[PRETRAINED][0]
    last = {name: [_last(result) for result in runs] for name, runs in results.items()}
    scores = Scores(
        {
            "fine-tuned": {
                name: tuple(100 * item.balanced_accuracy for item in items)
                for name, items in last.items()
            }
        },
        num_labels=first.num_train,
        num_test=last[PRETRAINED][0].num_images,
        num_classes=len(first.classes),
    )
    accuracies = ", ".join(
        f"{name} {100 * sum(item.accuracy for item in items) / len(items):.1f} %"
        for name, items in last.items()
    )
    return "\n".join(
        [
            table(scores),
            f"Accuracy over all images: {accuracies}.",
            sentence(scores, "fine-tuned", PRETRAINED, SCRATCH),
            "A difference is the mean over the seeds, each with its own labelled images, with its "
            "95 % confidence interval; the test images and the pretraining are the same in all.",
        ]
    )


def _last(result: FinetuneResult) -> ClassificationScores:
    assert result.last is not None  # finished runs have it
    return result.last
