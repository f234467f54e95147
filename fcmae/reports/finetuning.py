"""The report of a single fine-tuning."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcmae.machine.cost import effective_batch
from fcmae.reports import figures
from fcmae.reports.document import Block, Bullets, Details, Document, Picture, Section, Table
from fcmae.reports.health import curve
from fcmae.reports.run import loss_in_words, settings_section, time_in_words
from fcmae.runs.folder import RunFolder
from fcmae.runs.metrics import read_metrics
from fcmae.settings.tasks import load_finetuning_settings


@dataclass(frozen=True)
class Measures:
    """What a task is scored by, by its names in metrics.jsonl.

    Attributes:
        best: name and title of the measure by which weights are the best.
        other: those of another one.
        word: of all of them, for titles.
        per_class: how the names of one value per class begin.
    """

    best: tuple[str, str]
    other: tuple[str, str]
    word: str
    per_class: str


MEASURES = {
    "classification": Measures(
        ("val_balanced_accuracy", "balanced accuracy"),
        ("val_accuracy", "accuracy"),
        "Accuracy",
        "val_accuracy/",
    ),
    "segmentation": Measures(
        ("val_mean_iou", "mean IoU"),
        ("val_pixel_accuracy", "pixel accuracy"),
        "IoU",
        "val_iou/",
    ),
}
Lines = list[dict[str, Any]]


def finetuning_document(folder: Path | str) -> Document:
    """Return the whole report of a fine-tuning, finished or not.

    Raises:
        ConfigError: settings that cannot be read.
    """
    run = RunFolder(folder)
    config = load_finetuning_settings(run.config)
    measures = MEASURES[config.task.kind]
    lines = read_metrics(run.metrics)
    steps = max((int(line["step"]) for line in lines), default=0)
    state = "finished" if run.finished.exists() else "not finished"
    lead = (
        f"{config.model.name}, {steps} steps, {state}; started from "
        f"{config.model.weights or 'scratch'}."
    )
    return Document(
        f"Fine-tuning: {run.path.resolve().name}",
        lead,
        [
            Section(
                "In short", [Bullets(_in_short(config, measures, lines, steps))] if lines else []
            ),
            Section(f"{measures.word} on the validation images", _scores(run, measures, lines)),
            Section("Loss", _loss(lines)),
            settings_section(config),
        ],
    )


def _in_short(config: Any, measures: Measures, lines: Lines, steps: int) -> list[str]:
    said = []
    best_name, other_name = measures.best[0], measures.other[0]

    def values(line: dict[str, Any]) -> str:
        return ", ".join(
            f"{title} {100 * line[name]:.1f} %" for name, title in (measures.best, measures.other)
        )

    scored = [line for line in lines if line.get(best_name) is not None and other_name in line]
    if scored:
        best = max(scored, key=lambda line: line[best_name])
        last = scored[-1]
        said.append(
            f"Best of the {len(scored)} evaluations, chosen on these same validation images: "
            f"{values(best)}, after step {best['step']}."
        )
        said.append(f"Last evaluation, after step {last['step']}: {values(last)}.")
    said += loss_in_words(lines, steps)
    return said + time_in_words(lines, effective_batch(lines, config.train), steps)


def _scores(run: RunFolder, measures: Measures, lines: Lines) -> list[Block]:
    names = {title: name for name, title in (measures.best, measures.other)}
    curves = {
        title: [(steps, [100 * value for value in values])]
        for title, (steps, values) in ((t, curve(lines, name)) for t, name in names.items())
        if steps
    }
    blocks: list[Block] = []
    word = measures.word
    if curves:
        data = figures.draw_lines(curves, y_name=f"{word} in %")
        blocks.append(Picture("accuracy.svg", data, f"{word} over the steps."))
    pictures = sorted(run.predictions.glob("step-*.png"))
    if pictures:
        caption = "Validation images, truth, prediction and error at the last evaluation."
        blocks.append(Picture("predictions.png", pictures[-1].read_bytes(), caption))
    confusion = run.path / "confusion_matrix.png"
    if confusion.is_file():
        caption = "Confusion matrix of the best evaluation: rows are true classes."
        blocks.append(Picture(confusion.name, confusion.read_bytes(), caption))
    scored = [line for line in lines if any(name.startswith(measures.per_class) for name in line)]
    if scored:
        rows = [
            [
                name.removeprefix(measures.per_class),
                "no images" if value is None else f"{100 * value:.1f} %",
            ]
            for name, value in scored[-1].items()
            if name.startswith(measures.per_class)
        ]
        title = f"{word} of each class after step {scored[-1]['step']}"
        blocks.append(Details(title, Table(["class", word], rows)))
    return blocks


def _loss(lines: Lines) -> list[Block]:
    curves = {
        name: [curve(lines, key)]
        for name, key in (("training", "loss"), ("validation", "val_loss"))
        if curve(lines, key)[0]
    }
    if not curves:
        return []
    data = figures.draw_lines(curves, y_name="cross entropy", noisy=["training"])
    caption = (
        "Loss over the steps; that of training is of augmented images and smoothed labels. "
        f"{figures.SMOOTHED}"
    )
    return [Picture("loss.svg", data, caption)]
