"""The page about a comparison of two starts over shares of the labels."""

import csv
import io
from pathlib import Path

from fcmae.evaluation import means
from fcmae.machine.hardware import hardware, versions
from fcmae.reports import figures
from fcmae.reports.document import Bullets, Document, Picture, Section, Table
from fcmae.reports.writing import write_document
from fcmae.settings.finetune import FinetuneConfig
from fcmae.studies.comparison import Comparison


def write_comparison(found: Comparison, config: FinetuneConfig, against: str | None) -> list[Path]:
    """Write report.html, report.md and report.csv into run.dir; return them."""
    first, second = found.starts
    names = {share: f"{count} ({share:g} %)" for share, count in found.num_labels.items()}
    scores = {share: found.accuracies(share) for share in found.results}
    tables: dict[str, dict[float | str, dict[int, float]]] = {
        start: {names[share]: scores[share][start] for share in scores} for start in found.starts
    }
    plot = figures.draw_means(
        tables, x_name="labelled training images", y_name="balanced accuracy in %"
    )
    seeds = config.compare.seeds
    caption = f"Mean over {seeds} seeds with its 95 % confidence interval, and every seed as a dot."
    rows = []
    for share, values in scores.items():
        mean, gap = means(values), found.difference(share)
        text = f"{gap.text()}, {gap.verdict()}"
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
    header = ["labels", first, second, f"{first} less {second}"]
    beside = [found.worth(share) for share in scores]
    beside += [said for share in scores for said in found.behind_frozen(share)]
    notes = Bullets([*found.notes(), *starts, f"{hardware()}; {versions()}."])
    document = Document(
        "Did pretraining help?",
        found.sentence(),
        [
            Section("Accuracy against labels", [Picture("labels.svg", plot, caption)]),
            Section("Every share", [Table(header, rows)]),
            Section("Beside frozen features", [Bullets(beside)]),
            Section("How to read this", [notes]),
        ],
    )
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["share_percent", "labels", "start", "train.seed", "balanced_accuracy_percent"])
    for share, by_start in scores.items():
        for start, of_start in by_start.items():
            for seed, value in of_start.items():
                writer.writerow([share, found.num_labels[share], start, seed, f"{value:.4f}"])
        for what, of_frozen in found.frozen.get(share, {}).items():
            for seed, value in of_frozen.items():
                writer.writerow([share, found.num_labels[share], what, seed, f"{value:.4f}"])
    return write_document(document, stream.getvalue(), Path(config.run.dir))
