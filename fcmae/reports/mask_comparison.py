"""The page about a comparison of masks from two starts over shares of the labelled pictures."""

import csv
import io
from pathlib import Path

from fcmae.evaluation import means
from fcmae.machine.hardware import hardware, versions
from fcmae.reports import figures
from fcmae.reports.document import Block, Bullets, Document, Picture, Section, Table, Text
from fcmae.reports.writing import Report
from fcmae.runs.folder import RunFolder
from fcmae.settings.segmentation import SegmentationConfig
from fcmae.studies.mask_comparison import PRETRAINED, SCRATCH, MaskComparison, folder_of

MEAN = "mean"


def mask_comparison_report(found: MaskComparison, config: SegmentationConfig) -> Report:
    """Return what was found, as it is saved and shown.

    Args:
        found: the scores.
        config: of the comparison, with nothing left to a rule.
    """
    page = _document(found, config)
    return Report(Path(config.run.dir), page.title, (found.sentence(),), _csv(found), page=page)


def _document(found: MaskComparison, config: SegmentationConfig) -> Document:
    compare, optim = config.compare, config.optim
    rate = optim.base_lr if compare.scratch_base_lr is None else compare.scratch_base_lr
    notes = [
        found.notes(),
        f"{PRETRAINED}: {config.model.weights}; optim.base_lr {optim.base_lr:g}, "
        f"optim.layer_decay {optim.layer_decay:g}.",
        f"{SCRATCH}: optim.base_lr {rate:g}, optim.layer_decay {compare.scratch_layer_decay:g}; "
        "all else is the same.",
        f"{config.task.architecture} over {config.model.name}, {len(found.classes)} classes, "
        f"batches of {config.train.batch_size}.",
        f"{hardware()}; {versions()}.",
    ]
    return Document(
        "Did pretraining help the masks?",
        found.sentence(),
        [
            Section("Mean IoU against labelled pictures", [_plot(found, config)]),
            Section("Every share", [_shares(found)]),
            Section("Every class", [_classes(found)]),
            Section("The same pictures from both starts", _pictures(found, config)),
            Section("How to read this", [Bullets(notes)]),
        ],
    )


def _names(found: MaskComparison) -> dict[float, str]:
    return {share: f"{count} ({share:g} %)" for share, count in found.num_labels.items()}


def _plot(found: MaskComparison, config: SegmentationConfig) -> Picture:
    names = _names(found)
    tables: dict[str, dict[float | str, dict[int, float]]] = {
        start: {names[share]: found.ious(share)[start] for share in found.results}
        for start in (PRETRAINED, SCRATCH)
    }
    by_share = {names[share]: means(found.ious(share)) for share in found.results}
    plot = figures.draw_means(
        tables,
        x_name="labelled pictures",
        y_name="mean IoU in %",
        intervals={
            start: {name: of_starts[start] for name, of_starts in by_share.items()}
            for start in tables
        },
    )
    caption = (
        f"Mean over {config.compare.seeds} seeds with its 95 % confidence interval, and every "
        "seed as a dot."
    )
    return Picture("labels.svg", plot, caption)


def _shares(found: MaskComparison) -> Table:
    names, rows = _names(found), []
    for share in found.results:
        mean, gap = means(found.ious(share)), found.difference(share)
        text = ", ".join(filter(None, [gap.text(), gap.verdict()]))
        rows.append([names[share], mean[PRETRAINED].text(), mean[SCRATCH].text(), text])
    return Table(["pictures", PRETRAINED, SCRATCH, f"{PRETRAINED} less {SCRATCH}"], rows)


def _classes(found: MaskComparison) -> Table:
    """Return IoU of each class: a row per share and class."""
    names, rows = _names(found), []
    for share in found.results:
        for number, name in enumerate(found.classes):
            by_start = means(found.ious(share, number))
            cells = [by_start[start].text() for start in (PRETRAINED, SCRATCH)]
            rows.append([name, names[share], *cells])
    return Table(["IoU in % of", "pictures", PRETRAINED, SCRATCH], rows)


def _pictures(found: MaskComparison, config: SegmentationConfig) -> list[Block]:
    """Return what the first seed of both starts drew after its last step, of the largest share."""
    share, blocks = max(found.results), list[Block]()
    for start, file in ((PRETRAINED, "pretrained.png"), (SCRATCH, "from-scratch.png")):
        folder = RunFolder(folder_of(config, share, start, 0))
        drawn = sorted(folder.predictions.glob("step-*.png"))
        if drawn:
            caption = (
                f"{start}, seed {config.train.seed}, {found.num_labels[share]} pictures, after "
                f"{found.steps} steps: picture, truth, prediction and error."
            )
            blocks.append(Picture(file, drawn[-1].read_bytes(), caption, is_wide=True))
    return blocks or [Text("None were drawn: evaluate.num_pictures is 0.")]


def _csv(found: MaskComparison) -> str:
    """Return every single score; the mean over the classes that occur is one of them."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["share_percent", "pictures", "start", "train.seed", "class", "iou_percent"])
    classes: list[tuple[str, int | None]] = [(name, n) for n, name in enumerate(found.classes)]
    for share, count in found.num_labels.items():
        for name, number in [*classes, (MEAN, None)]:
            for start, by_seed in found.ious(share, number).items():
                for seed, iou in by_seed.items():
                    value = "" if iou != iou else f"{iou:.4f}"  # a class that does not occur
                    writer.writerow([share, count, start, seed, name, value])
    return stream.getvalue()
