"""The report of a single pretraining run."""

import csv
import io
from pathlib import Path
from typing import Any

from fcmae.data.recorded import read_paths
from fcmae.errors import EXPECTED_ERRORS
from fcmae.evaluation.health.verdict import first_epoch, verdict
from fcmae.machine.cost import effective_batch, flop_unit, flops_per_image, seconds_per_image
from fcmae.machine.hardware import hardware, versions
from fcmae.pretraining.recipe import remarks
from fcmae.reports import figures
from fcmae.reports.document import Block, Bullets, Details, Document, Picture, Section, Table, Text
from fcmae.reports.health import LOSS, PANEL_FILE, curve
from fcmae.runs.folder import RunFolder
from fcmae.runs.loading import load_run_config
from fcmae.runs.metrics import read_metrics
from fcmae.settings.length import longer_command
from fcmae.settings.reading import to_plain
from fcmae.studies.ablation.grid import effective_ratio_of

# Over 22 pretrainings of four sets of images; see docs/recipes.md.
COMPARE_BY = (
    "Compare runs on the same images by a probe where there are labels. None of these measures is "
    "known to order encoders dependably: the held-out loss at one mask ratio did as kNN does on "
    "two sets of four, and RankMe on two."
)


def run_document(folder: Path | str) -> Document:
    """Return the whole report of a run, finished or not.

    Raises:
        ConfigError: no folder of a pretraining run.
    """
    config = load_run_config(folder)
    run = RunFolder(folder)
    lines = read_metrics(run.metrics)
    steps = max((int(line["step"]) for line in lines), default=0)
    ratio = effective_ratio_of(config)
    state = "finished" if run.finished.exists() else "not finished"
    lead = (
        f"{config.model.name}, {steps} steps, {state}; {ratio:.3f} of the patches hidden "
        f"(mask.ratio {config.mask.ratio:g})."
    )
    return Document(
        f"Pretraining: {run.path.resolve().name}",
        lead,
        [
            Section("In short", [Bullets(_in_short(run, config, lines, steps))] if lines else []),
            Section("Loss", _loss(config, lines)),
            Section("Health without labels", _health(run, lines, steps)),
            Section("Scores of the frozen encoder", _scores(run)),
            Section("Reconstructions", _reconstructions(run)),
            settings_section(config),
        ],
    )


def settings_section(config: Any) -> Section:
    """Return every setting of a run, a row each, and where the report was written."""
    rows = [
        [f"{section}.{name}", str(value)]
        for section, values in to_plain(config).items()
        for name, value in values.items()
    ]
    written = Text(f"This report was written on: {hardware()}; {versions()}.")
    settings = Details("All settings", Table(["setting", "value"], rows))
    return Section("Settings, versions, hardware", [written, settings])


def run_csv(folder: Path | str) -> str:
    """Return metrics.jsonl as a table: one line per line, one column per number."""
    lines = read_metrics(RunFolder(folder).metrics)
    names = list(dict.fromkeys(name for line in lines for name in line))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def _in_short(run: RunFolder, config: Any, lines: list[dict[str, Any]], steps: int) -> list[str]:
    batch = effective_batch(lines, config.train)
    flops = flops_per_image(config)
    said = []
    said += _scores_in_short(run)
    said += loss_in_words(lines, steps)
    if config.loss.normalize_targets:
        said.append("A loss of 1.0 is that of predicting each hidden patch's mean.")
    if curve(lines, LOSS)[1]:
        longer = longer_command(config)
        said.append(f"Held-out loss: {verdict(lines, config.train.steps or steps, longer)}")
    began = first_epoch(lines, has_decoder=config.model.init_decoder_from is not None)
    said += [began[0].upper() + began[1:]] if began else []
    said += _about_recipe(run, config, lines)
    said += time_in_words(lines, batch, steps)
    scale, unit = flop_unit(flops * batch * steps)
    said.append(
        f"{flops / 1e9:.2f} GFLOP per image, {flops * batch * steps / scale:.3g} {unit} in all "
        "(convolutions and matrix products, forward and backward)."
    )
    return said


def _about_recipe(run: RunFolder, config: Any, lines: list[dict[str, Any]]) -> list[str]:
    """Return what stands out in length and rate, where the folder says how many images it has."""
    passes = [line for line in lines if line.get("epoch") and line["step"]]
    try:
        num_images = len(read_paths(run.images))
        batch = round(passes[-1]["epoch"] * num_images / passes[-1]["step"])
        return [said[0].upper() + said[1:] for said in remarks(config, num_images, batch)]
    except (IndexError, *EXPECTED_ERRORS):
        return []  # of an earlier version, or damaged: the report has the rest


def loss_in_words(lines: list[dict[str, Any]], steps: int) -> list[str]:
    """Say what the training loss was at both ends of a run, where it was logged."""
    losses = list(zip(*curve(lines, "loss"), strict=True))
    if not losses:
        return []
    (end, last), (start, first) = mean_loss(losses[::-1]), mean_loss(losses)
    return [
        f"Training loss {end:.4f} (mean of the last {last:.0f} of {steps} steps), {start:.4f} "
        f"at the start (mean of the first {first:.0f})."
    ]


def time_in_words(lines: list[dict[str, Any]], batch: int, steps: int) -> list[str]:
    """Say how long a step took, and all of them, in how many processes, where it was logged."""
    per_image = seconds_per_image(lines)
    if per_image is None:
        return []
    counts = [int(line["processes"]) for line in lines if line.get("processes")]
    several = " or ".join(map(str, sorted(set(counts))))
    together = f" in {several} processes together" if max(counts, default=1) > 1 else ""
    return [
        f"{1000 * per_image * batch:.0f} ms per step of {batch} images{together}, "
        f"{per_image * batch * steps:.0f} s of training in all."
    ]


def _loss(config: Any, lines: list[dict[str, Any]]) -> list[Block]:
    curves = {
        name: [curve(lines, key)]
        for name, key in (("training", "loss"), ("held out", LOSS))
        if curve(lines, key)[0]
    }
    if not curves:
        return []
    level = (1.0, "each patch's mean") if config.loss.normalize_targets else None
    data = figures.draw_lines(
        curves, y_name="loss at hidden patches", level=level, noisy=["training"]
    )
    return [Picture("loss.svg", data, f"Loss over the steps. {figures.SMOOTHED}")]


def _health(run: RunFolder, lines: list[dict[str, Any]], steps: int) -> list[Block]:
    panel = run.path / PANEL_FILE
    blocks: list[Block] = []
    if panel.is_file():
        caption = (
            "Losses to beat, rank, diversity, dead and saturated channels, GRN weights, and of a "
            "run that started from weights how much its features are still as theirs. "
            f"{COMPARE_BY}"
        )
        blocks.append(Picture(PANEL_FILE, panel.read_bytes(), caption, is_wide=True))
    last = [line for line in lines if any(name.startswith("health/") for name in line)]
    if last:
        rows = [
            [name, f"{value:.4g}"]
            for name, value in sorted({k: v for line in last for k, v in line.items()}.items())
            if name.startswith("health/") and isinstance(value, (int, float))
        ]
        blocks.append(Details("The last value of every measure", Table(["measure", "value"], rows)))
    return blocks


def _scores(run: RunFolder) -> list[Block]:
    header, rows, notes = _read_scores(run)
    return [Table(header, rows), Bullets(notes)] if rows else [Bullets(notes)] if notes else []


def _scores_in_short(run: RunFolder) -> list[str]:
    """Say what the encoder's frozen features score, and what they beat."""
    (_, *methods), rows, notes = _read_scores(run)
    if not rows:
        return []
    name, *cells = rows[0]
    listed = ", ".join(f"{m} {cell} %" for m, cell in zip(methods, cells, strict=True))
    claims = [note for note in notes if any(note.startswith(f"{m}: ") for m in methods)]
    return [f"Balanced accuracy of frozen features, {name}: {listed}.", *claims]


def _read_scores(run: RunFolder) -> tuple[list[str], list[list[str]], list[str]]:
    """Return header and rows of the table in scores.txt, and the lines below it."""
    path = run.path / "scores.txt"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    first, *rest = text.strip().split("\n")
    header = ["features", *first.split()]
    rows: list[list[str]] = []
    for line in rest:
        cells = line.replace(" +- ", "+-").split("  ")
        parts = [" ".join(cell.replace("+-", " +- ").split()) for cell in cells if cell.strip()]
        if len(parts) != len(header):
            break
        rows.append(parts)
    return header, rows, rest[len(rows) :] if rows else text.splitlines()


def mean_loss(losses: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the mean over a twentieth of the run, from where the list begins, and its steps.

    A line of metrics.jsonl holds the mean over the steps since the line before.
    """
    steps = [step for step, _ in losses]
    is_backwards = steps[0] > steps[-1]
    before = [*steps[1:], 0.0] if is_backwards else [0.0, *steps[:-1]]
    total = covered = 0.0
    for (step, loss), previous in zip(losses, before, strict=True):
        total, covered = total + loss * (step - previous), covered + step - previous
        if covered >= max(steps) / 20:
            break
    return total / covered, covered


def _reconstructions(run: RunFolder) -> list[Block]:
    pictures = sorted(run.reconstructions.glob("step-*.png"))
    chosen = [pictures[0], pictures[-1]] if len(pictures) > 1 else pictures
    return [
        Picture(
            path.name,
            path.read_bytes(),
            f"Fixed images after {int(path.stem[5:])} steps: original, what the encoder sees, "
            "prediction, pasted into the original.",
            is_wide=True,
        )
        for path in chosen
    ]
