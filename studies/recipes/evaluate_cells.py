"""Draws the plots of the recipe study, and ranks label-free measures by the probes.

Command: `python studies/recipes/evaluate_cells.py docs/recipes/cells.csv docs/recipes`. It writes
pretraining-rate.svg and finetuning-rate.svg, and prints for each label-free measure Spearman's
correlation with the linear probe and kNN over the pretrainings of a set, and over all of them.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import numpy as np
from matplotlib import pyplot as plt

# Measure -> whether more of it should mean better features.
MEASURES = {
    "health/loss_at_0.6": False,
    "loss": False,
    "health/rank_me": True,
    "health/diversity_stage_3": True,
    "health/diversity_stage_2": True,
    "health/diversity_stage_1": True,
}
SCORES = ("pretrained/linear", "pretrained/kNN")
FEWEST = 3  # runs of a set for a correlation


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of the cells that ended well."""
    with path.open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["status"] == "0"]


def peak(row: dict[str, str]) -> float:
    """Return the absolute peak rate of a cell."""
    return float(row["optim.base_lr"]) * int(row["train.batch_size"]) / 256


def ranks(values: list[float]) -> np.ndarray:
    """Return the ranks of values, ties sharing their mean."""
    found = np.array(values)
    order = (found[:, None] > found).sum(axis=1) + (found[:, None] >= found).sum(axis=1)
    return order / 2.0


def spearman(first: list[float], second: list[float]) -> float:
    """Return Spearman's rank correlation."""
    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def correlate(rows: list[dict[str, str]]) -> None:
    """Print the correlations: per set, and of ranks within sets over all sets."""
    by_set: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        if row["kind"] == "pretrain":
            by_set[row["set"]].append(row)
    by_set = {name: found for name, found in by_set.items() if len(found) >= FEWEST}
    print("measure, score:", *(f"{name} ({len(found)})" for name, found in by_set.items()), "mean")
    for measure, more_is_better in MEASURES.items():
        for score in SCORES:
            found = []
            for of_set in by_set.values():
                sign = 1 if more_is_better else -1
                values = [sign * float(row[measure]) for row in of_set]
                found.append(spearman(values, [float(row[score]) for row in of_set]))
            told = " ".join(f"{value:+.2f}" for value in found)
            print(f"{measure}, {score}: {told} mean {np.mean(found):+.2f}")


def draw(rows: list[dict[str, str]], kind: str, score: str, scale: float, path: Path) -> None:
    """Draw a score against the peak rate, a line for all cells that differ in the rate alone."""
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        parts = row["name"].split("-")
        special = kind == "pretrain" and len(row["name"].split("-crop")) > 1
        if row["kind"] != kind or special or not row[score]:
            continue
        title = f"{row['set']}, {row['train.steps']} steps of {row['train.batch_size']}"
        if kind == "finetune":
            labels = f"{row['data.train_per_class'] or 'all'} labels per class"
            strong = ", strong augmentation" if "ra" in parts else ""
            title += f", {labels}, layer decay {row['optim.layer_decay']}{strong}"
        lines[title].append((peak(row), scale * float(row[score])))
    figure, axes = plt.subplots(figsize=(7.5, 5.5), layout="constrained")
    for title, points in lines.items():
        rates, values = zip(*sorted(points), strict=True)
        axes.semilogx(rates, values, "o-", label=title)
    axes.set_xlabel("peak learning rate (absolute)")
    axes.set_ylabel("balanced accuracy, %")
    figure.legend(fontsize=8, loc="outside lower left")
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Draw and print."""
    rows, out = read(Path(sys.argv[1])), Path(sys.argv[2])
    draw(rows, "pretrain", "pretrained/linear", 1.0, out / "pretraining-rate.svg")
    draw(rows, "finetune", "val_balanced_accuracy", 100.0, out / "finetuning-rate.svg")
    correlate(rows)


if __name__ == "__main__":
    main()
