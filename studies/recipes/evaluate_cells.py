"""Draws the plots of the recipe study, ranks label-free measures, and says how far rules fall back.

Command: `python studies/recipes/evaluate_cells.py docs/recipes/cells.csv docs/recipes`. It writes
pretraining-rate.svg and finetuning-rate.svg, and prints for each label-free measure Spearman's
correlation with the linear probe and kNN over the pretrainings of a set, and over all of them (for
the measures of docs/recipes/label_free.csv, which label_free.py made, over those that it has); for
cells that differ in rate and seed alone the scores by rate and the regret of the rule: how much the
best rate found exceeds the rate nearest to the rule's, paired by seed; and for cells that are named
v-CHANGE-... how much they differ from the one that they change. The best is chosen on the scores
that tell how good it is, so that noise alone makes a regret.
"""

from __future__ import annotations

import csv
import math
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import numpy as np
from matplotlib import pyplot as plt
from scipy.stats import spearmanr

from fcmae.evaluation import differences, means
from fcmae.finetuning.recipe import usual_peak
from fcmae.pretraining.recipe import peak_rate

# Measure -> whether more of it should mean better features.
MEASURES = {
    "health/loss_at_0.6": False,
    "loss": False,
    "health/rank_me": True,
    "health/diversity_stage_3": True,
    "health/diversity_stage_2": True,
    "health/diversity_stage_1": True,
}
VIEWS = {"lidar": True, "alpha_req": False, "rank_me": True}  # of label_free.py
SCORES = ("pretrained/linear", "pretrained/kNN")
CHANGED = "v-"  # begins the names of cells that change one thing of another one
FEWEST = 3  # runs of a set for a correlation
USUAL_PX = "96"  # of run_cells.py
SIDE_PX = {"digits": 32, "mnist": 28, "emoji": 64}  # of pictures that are enlarged to it


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of the cells that ended well."""
    with path.open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["status"] == "0"]


def peak(row: dict[str, str]) -> float:
    """Return the absolute peak rate of a cell."""
    return float(row["optim.base_lr"]) * int(row["train.batch_size"]) / 256


def what(row: dict[str, str]) -> str:
    """Say all in which cells differ that is neither rate nor seed."""
    told = f"{row['set']}, {row['train.steps']} steps of {row['train.batch_size']}"
    if row["kind"] == "pretrain":
        return told
    told += f", {row['data.train_per_class'] or 'all'} labels per class"
    told += f", layer decay {row['optim.layer_decay'] or 'by rule'}"
    start = row.get("model.head_start")
    told += f", starts as {start}" if start not in (None, "", "random") else ""
    return told + (", strong augmentation" if "ra" in row["name"].split("-") else "")


def by_rate(
    rows: list[dict[str, str]], kind: str, score: str, scale: float
) -> dict[str, dict[float, dict[int, float]]]:
    """Return {what: {peak rate: {seed: score}}}."""
    found: dict[str, dict[float, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row["kind"] == kind and row.get(score) and not row["name"].startswith(CHANGED):
            seed = int(row["train.seed"] or 0)
            rate = float(f"{peak(row):.2g}")
            told = what(row) + (", wsd" if row.get("optim.schedule") == "wsd" else "")
            told += f", {row['data.image_size']} px" if row["data.image_size"] != USUAL_PX else ""
            found[told][rate][seed] = scale * float(row[score])
    return found


def tell_regrets(rows: list[dict[str, str]]) -> None:
    """Print a row of Markdown for each grid of several seeds."""
    kinds = (("pretrain", "pretrained/linear", 1.0), ("finetune", "val_balanced_accuracy", 100.0))
    for kind, score, scale in kinds:
        for told, table in by_rate(rows, kind, score, scale).items():
            seeds = set.intersection(*(set(of) for of in table.values()))
            if len(table) < 2 or len(seeds) < 2:
                continue
            of_all = {rate: {seed: of[seed] for seed in seeds} for rate, of in table.items()}
            batch = int(told.split(", ")[1].split()[3])
            enlarged = int(USUAL_PX) / SIDE_PX.get(told.split(",")[0], int(USUAL_PX))
            usual = peak_rate(batch, enlarged) if kind == "pretrain" else usual_peak(batch)
            mine = min(of_all, key=lambda rate: abs(math.log(rate / usual)))
            average = {rate: float(np.mean(list(of.values()))) for rate, of in of_all.items()}
            best = max(average, key=lambda rate: average[rate])
            listed = ", ".join(f"{m.text()} at {rate:g}" for rate, m in means(of_all).items())
            regret = "0" if best == mine else differences(of_all, mine)[best].text()
            print(f"| {kind}: {told} | {len(seeds)} | {listed} | {mine:g} | {best:g} | {regret} |")


def tell_changes(rows: list[dict[str, str]]) -> None:
    """Print a row of Markdown for each change: the differences from the unchanged, set by set."""

    def place(row: dict[str, str]) -> tuple[object, ...]:
        seed = int(row["train.seed"] or 0)
        return row["kind"], what(row).split(", layer decay")[0], f"{peak(row):.2g}", seed

    plain = {place(row): row for row in rows if not row["name"].startswith(CHANGED)}
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if not row["name"].startswith(CHANGED):
            continue
        score, scale = "pretrained/linear", 1.0
        if row["kind"] == "finetune":
            score, scale = "val_balanced_accuracy", 100.0
        base = plain[place(row)]
        change = row["name"].split("-")[1]
        difference = scale * (float(row[score]) - float(base[score]))
        found[f"{row['kind']}: {change}"][row["set"]].append(difference)
    for change, by_set in found.items():
        of_sets = {name: float(np.mean(of)) for name, of in by_set.items()}
        listed = ", ".join(f"{name} {mean:+.1f}" for name, mean in of_sets.items())
        listed += f", {max(map(len, by_set.values()))} seeds each"
        print(f"| {change} | {listed} | {np.mean(list(of_sets.values())):+.1f} |")


def correlate(rows: list[dict[str, str]], measures: dict[str, bool]) -> None:
    """Print the correlations: per set, and of ranks within sets over all sets."""
    by_set: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        by_set[row["set"]].append(row)
    by_set = {name: found for name, found in by_set.items() if len(found) >= FEWEST}
    print("measure, score:", *(f"{name} ({len(found)})" for name, found in by_set.items()), "mean")
    for measure, more_is_better in measures.items():
        for score in SCORES:
            found = []
            for of_set in by_set.values():
                sign = 1 if more_is_better else -1
                values = [sign * float(row[measure]) for row in of_set]
                found.append(spearmanr(values, [float(row[score]) for row in of_set]).statistic)
            told = " ".join(f"{value:+.2f}" for value in found)
            print(f"{measure}, {score}: {told} mean {np.mean(found):+.2f}")


def draw(rows: list[dict[str, str]], kind: str, score: str, scale: float, path: Path) -> None:
    """Draw a score against the peak rate, a line for all cells that differ in rate and seed alone.

    Of several seeds the mean is drawn, with the lowest and the highest. One rate is no line.
    """
    figure, axes = plt.subplots(figsize=(7.5, 6.5), layout="constrained")
    tables = by_rate(rows, kind, score, scale).items()
    lines = {title: table for title, table in tables if len(table) > 1}
    axes.set_prop_cycle(color=plt.get_cmap("tab20").colors)
    for title, table in lines.items():
        rates = sorted(table)
        scores = [list(table[rate].values()) for rate in rates]
        middle = [float(np.mean(of)) for of in scores]
        low = [m - min(of) for m, of in zip(middle, scores, strict=True)]
        high = [max(of) - m for m, of in zip(middle, scores, strict=True)]
        axes.errorbar(rates, middle, yerr=[low, high], fmt="o-", capsize=2, label=title)
    axes.set_xscale("log")
    axes.set_xlabel("peak learning rate (absolute)")
    axes.set_ylabel("balanced accuracy, %")
    figure.legend(fontsize=7, loc="outside lower left")
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Draw and print."""
    rows, out = read(Path(sys.argv[1])), Path(sys.argv[2])
    draw(rows, "pretrain", "pretrained/linear", 1.0, out / "pretraining-rate.svg")
    draw(rows, "finetune", "val_balanced_accuracy", 100.0, out / "finetuning-rate.svg")
    correlate([row for row in rows if row["kind"] == "pretrain"], MEASURES)
    views = out / "label_free.csv"
    if views.exists():
        with views.open(encoding="utf-8") as file:
            correlate(list(csv.DictReader(file)), MEASURES | VIEWS)
    tell_regrets(rows)
    tell_changes(rows)


if __name__ == "__main__":
    main()
