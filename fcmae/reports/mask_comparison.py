"""The page about a comparison of masks from several starts over shares of the labelled pictures."""

from pathlib import Path

from fcmae.machine.hardware import hardware, versions
from fcmae.reports.comparison import (
    every_pair,
    names_of_shares,
    notes_of_starts,
    shares_plot,
)
from fcmae.reports.document import Block, Bullets, Document, Picture, Section, Table, Text
from fcmae.reports.page import to_csv
from fcmae.reports.writing import Report
from fcmae.runs.folder import RunFolder
from fcmae.settings.segmentation import SegmentationConfig
from fcmae.studies.comparison.scores import PRETRAINED, SCRATCH
from fcmae.studies.mask_comparison import IOU, MaskComparison, folder_of

MEAN = "mean"


def mask_comparison_report(found: MaskComparison, config: SegmentationConfig) -> Report:
    """Return what was found, as it is saved and shown.

    Args:
        found: the scores.
        config: of the comparison, with nothing left to a rule.
    """
    page = _of_named(found, config) if found.are_named else _of_two(found, config)
    said = tuple(found.sentences())
    return Report(Path(config.run.dir), page.title, said, _csv(found), page=page)


def _of_named(found: MaskComparison, config: SegmentationConfig) -> Document:
    """Return the page about all pairs of named starts."""
    header, *table = found.costs_table()
    said = found.sentences()
    notes = [found.notes(), *notes_of_starts(config.compare, config.optim), *_notes(found, config)]
    return Document(
        "Which start is the better one for masks?",
        f"{len(found.starts)} starts: {', '.join(found.starts)}. {said[0]}",
        [
            Section("Scores and costs", [Table(header, table)]),
            Section("What differs", [Bullets(said)]),
            every_pair(found.rows(), IOU),
            Section("Mean IoU against labelled pictures", [_plot(found, config)]),
            Section("Every class", [_classes(found)]),
            Section("The same pictures from every start", _pictures(found, config)),
            Section("How to read this", [Bullets(notes)]),
        ],
    )


def _of_two(found: MaskComparison, config: SegmentationConfig) -> Document:
    compare, optim = config.compare, config.optim
    rate = optim.base_lr if compare.scratch_base_lr is None else compare.scratch_base_lr
    notes = [
        found.notes(),
        f"{PRETRAINED}: {config.model.weights}; optim.base_lr {optim.base_lr:g}, "
        f"optim.layer_decay {optim.layer_decay:g}.",
        f"{SCRATCH}: optim.base_lr {rate:g}, optim.layer_decay {compare.scratch_layer_decay:g}; "
        "all else is the same.",
        *_notes(found, config),
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


def _notes(found: MaskComparison, config: SegmentationConfig) -> list[str]:
    """Return what was trained, and where."""
    models = ", ".join(sorted(found.models or {config.model.name}))
    return [
        f"{config.task.architecture} over {models}, {len(found.classes)} classes, "
        f"batches of {config.train.batch_size}.",
        f"{hardware()}; {versions()}.",
    ]


def _plot(found: MaskComparison, config: SegmentationConfig) -> Picture:
    return shares_plot(
        found, found.ious, config.compare.seeds, x_name="labelled pictures", y_name="mean IoU in %"
    )


def _shares(found: MaskComparison) -> Table:
    names, rows = names_of_shares(found), []
    for share in found.results:
        mean, gap = found.means(share), found.difference(share)
        text = ", ".join(filter(None, [gap.text(), gap.verdict()]))
        rows.append([names[share], mean[PRETRAINED].text(), mean[SCRATCH].text(), text])
    return Table(["pictures", PRETRAINED, SCRATCH, f"{PRETRAINED} less {SCRATCH}"], rows)


def _classes(found: MaskComparison) -> Table:
    """Return IoU of each class: a row per share and class."""
    names, rows = names_of_shares(found), []
    for share in found.results:
        for number, name in enumerate(found.classes):
            by_start = found.means(share, number)
            cells = [by_start[start].text() for start in found.starts]
            rows.append([name, names[share], *cells])
    return Table(["IoU in % of", "pictures", *found.starts], rows)


def _pictures(found: MaskComparison, config: SegmentationConfig) -> list[Block]:
    """Return what the first seed of all starts drew after its last step, of the largest share."""
    share, blocks = max(found.results), list[Block]()
    for start in found.starts:
        folder = RunFolder(folder_of(config, share, start, 0))
        drawn = sorted(folder.predictions.glob("step-*.png"))
        if drawn:
            caption = (
                f"{start}, seed {config.train.seed}, {found.num_labels[share]} pictures, after "
                f"{found.steps} steps: picture, truth, prediction and error."
            )
            file = f"{start.replace(' ', '-')}.png"
            blocks.append(Picture(file, drawn[-1].read_bytes(), caption, is_wide=True))
    return blocks or [Text("None were drawn: evaluate.num_pictures is 0.")]


def _csv(found: MaskComparison) -> str:
    """Return every single score; the mean over the classes that occur is one of them."""
    table: list[list[object]] = [
        ["share_percent", "pictures", "start", "train.seed", "class", "iou_percent"]
    ]
    classes: list[tuple[str, int | None]] = [(name, n) for n, name in enumerate(found.classes)]
    for share, count in found.num_labels.items():
        for name, number in [*classes, (MEAN, None)]:
            for start, by_seed in found.ious(share, number).items():
                for seed, iou in by_seed.items():
                    value = "" if iou != iou else f"{iou:.4f}"  # a class that does not occur
                    table.append([share, count, start, seed, name, value])
    return to_csv(table)
