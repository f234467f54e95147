"""The report of an ablation, built from the folders of its cells."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fcmae.evaluation import PairedDifference, differences, means
from fcmae.evaluation.pictures import NORMALIZED_NOTE, PLAIN_NOTE
from fcmae.machine.cost import flop_unit
from fcmae.machine.hardware import hardware
from fcmae.reports import figures
from fcmae.reports.document import Block, Bullets, Details, Document, Picture, Section, Table, Text
from fcmae.reports.health import LOSS, curve, health_blocks
from fcmae.reports.page import to_csv
from fcmae.reports.records import LABEL_FREE, AblationRecord, Key, Record, common_settings
from fcmae.reports.verdicts import (
    decimals_of,
    failures,
    is_tuned,
    mean_of,
    name_of,
    sentences,
    unit_of,
)
from fcmae.studies.ablation.evaluation import PICTURES_FILE
from fcmae.studies.ablation.grid import RATIO
from fcmae.studies.ablation.masks import SEGMENTED
from fcmae.studies.ablation.split import count_trained_on

AXIS_RATIO = "effective mask ratio (share of patches hidden in fact)"


def ablation_document(found: AblationRecord) -> Document:
    """Return the whole report of an ablation, finished or not."""
    everything = [*found.records, *found.baselines]
    done = [record for record in found.records if record.state == "done"]
    varied = ", ".join(name for name, _ in found.default) or "nothing but the seed"
    lead = (
        f"{len(found.records)} pretraining runs: {varied}, {len(found.seeds)} seeds; "
        f"{len(done)} of them done. Scored on {len(found.split.test)} held-out images."
    )
    return Document(
        f"Ablation: {varied}",
        lead,
        [
            Section("In short", [Bullets(sentences(found))] if done else []),
            Section("Failed or not finished", _failed(everything)),
            Section("Scores", _against_setting(found, _scores_of(found))),
            Section("Every setting", _table(found, _scores_of(found), has_cost=True)),
            Section("Scores against cost", _cost(found)),
            Section("Loss", _losses(found)),
            Section("Reconstructions of held-out images", _reconstructions(found)),
            Section("Health without labels", _health(found, done)),
            Section("How to read this", [Bullets(_notes(found))]),
            Section("Settings, versions, hardware", _settings(found, everything)),
        ],
    )


def ablation_csv(found: AblationRecord) -> str:
    """Return one line per cell, the untrained ones, too."""
    measures = found.measures
    names = [name for name, _ in found.default]
    header = ["cell", "kind", "state", *names, "train.seed", "effective_mask_ratio", *measures]
    table: list[list[object]] = [[*header, "step_milliseconds", "seconds", "flops", "failure"]]
    for record in [*found.records, *found.baselines]:
        is_scratch = record.cell.is_scratch
        table.append(
            [record.cell.name, "untrained" if is_scratch else "pretrained", record.state]
            + [record.cell.settings.get(name, "") for name in names]
            + [record.cell.seed, "" if is_scratch else round(found.effective_ratio(record.key), 6)]
            + [_plain(record.measures.get(measure)) for measure in measures]
            + [_plain(record.step_milliseconds), _plain(record.seconds)]
            + [_plain(record.result.get("flops")), record.failure]
        )
    return to_csv(table)


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _failed(records: Sequence[Record]) -> list[Block]:
    lines = failures(records)
    return [Bullets(lines)] if lines else []


def _axis(found: AblationRecord) -> tuple[str, dict[Key, float | str], dict[Key, str]]:
    """Return the title of the horizontal axis, the place of each setting on it, and its series."""
    names = [name for name, _ in found.default]
    numeric = [name for name in names if all(_is_number(dict(key)[name]) for key in found.keys)]
    chosen = RATIO if RATIO in names else (numeric or names or [""])[0]
    places: dict[Key, float | str] = {}
    series: dict[Key, str] = {}
    for key in found.keys:
        value = dict(key).get(chosen, "")
        is_ratio = chosen == RATIO
        place = found.effective_ratio(key) if is_ratio else value
        places[key] = place if is_ratio or chosen in numeric else str(place)
        others = tuple(pair for pair in key if pair[0] != chosen)
        series[key] = found.title(others) if others else ""
    return AXIS_RATIO if chosen == RATIO else chosen or "setting", places, series


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _scores_of(found: AblationRecord) -> list[str]:
    return [name for name in found.measures if name not in LABEL_FREE]


def _health(found: AblationRecord, done: Sequence[Record]) -> list[Block]:
    measures = [name for name in found.measures if name in LABEL_FREE]
    blocks = [*_against_setting(found, measures), *health_blocks(_curves(found), done)]
    return [*blocks, *_table(found, measures, has_cost=False)] if measures else blocks


def _against_setting(found: AblationRecord, measures: Sequence[str]) -> list[Block]:
    """Return a figure for each measure: its means against what the grid varies."""
    x_name, places, series = _axis(found)
    blocks: list[Block] = []
    for measure in measures:
        tables: dict[str, dict[float | str, dict[int, float]]] = {}
        for key, values in found.table(measure).items():
            tables.setdefault(series[key], {})[places[key]] = values
        ordered = {
            name: dict(sorted(t.items(), key=lambda item: item[0])) if _sorts(t) else t
            for name, t in tables.items()
        }
        baselines = means(found.baseline_table(measure))
        baseline = next(iter(baselines.values())).value if len(baselines) == 1 else None
        is_score = measure not in LABEL_FREE
        y_name = f"{measure}, {unit_of(measure)}" if is_score else _short(measure)
        data = figures.draw_means(
            ordered,
            x_name=x_name,
            y_name=y_name,
            baseline=baseline,
            baseline_name="from scratch" if is_tuned(measure) else "untrained encoder",
        )
        caption = (
            f"{name_of(measure)} against {x_name}: mean over {len(found.seeds)} seeds with its "
            "95 % confidence interval, and every seed as a dot."
        )
        blocks.append(Picture(f"{_file_name(measure)}.svg", data, caption))
    return blocks


def _sorts(table: dict[float | str, Any]) -> bool:
    return all(_is_number(x) for x in table)


def _file_name(measure: str) -> str:
    return measure.replace("/", "-").replace(".", "-")


def _table(found: AblationRecord, measures: Sequence[str], *, has_cost: bool) -> list[Block]:
    """Return one row per setting, then one per untrained encoder."""
    scores = {measure: means(found.table(measure)) for measure in measures}
    gaps = {measure: differences(found.table(measure), found.default) for measure in measures}
    header = ["setting", "seeds done"]
    for measure in measures:
        header += [_short(measure), f"{_short(measure)}: less the default"]
    scale, unit = _flop_unit(found)
    header += ["ms per step", "seconds", unit] if has_cost else []
    rows = []
    for key in found.keys:
        of_key = [record for record in found.records if record.key == key]
        done = [record for record in of_key if record.state == "done"]
        row = [found.title(key), f"{len(done)} of {len(of_key)}"]
        for measure in measures:
            mean, gap = scores[measure].get(key), gaps[measure].get(key)
            row.append(mean.text(decimals_of(measure)) if mean else "-")
            row.append("default" if key == found.default else _gap_text(gap, measure))
        if has_cost:
            flops = mean_of([record.result.get("flops") for record in done])
            row += [
                _shown(mean_of([record.step_milliseconds for record in done])),
                _shown(mean_of([record.seconds for record in done])),
                _shown(None if flops is None else flops / scale, 3),
            ]
        rows.append(row)
    emphasized = frozenset({found.keys.index(found.default)})
    for key in dict.fromkeys(record.key for record in found.baselines) if has_cost else ():
        of_key = [record for record in found.baselines if record.key == key]
        done = [record for record in of_key if record.state == "done"]
        title = "untrained" + (f", {found.title(key)}" if key else "")
        row = [title, f"{len(done)} of {len(of_key)}"]
        for measure in measures:
            mean = means(found.baseline_table(measure)).get(key)
            row += [mean.text(decimals_of(measure)) if mean else "-", "-"]
        rows.append([*row, "-", "-", "-"])
    return [Table(header, rows, emphasized)]


def _gap_text(gap: PairedDifference | None, measure: str) -> str:
    if gap is None:
        return "-"
    return ", ".join(filter(None, [gap.text(decimals_of(measure)), gap.verdict()]))


def _flop_unit(found: AblationRecord) -> tuple[float, str]:
    return flop_unit(max((record.result.get("flops", 0.0) for record in found.records), default=0))


def _short(measure: str) -> str:
    return measure.rpartition("/")[2].replace("_", " ")


def _shown(value: float | None, digits: int | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}g}" if digits else f"{value:.0f}"


def _cost(found: AblationRecord) -> list[Block]:
    blocks: list[Block] = []
    scale, unit = _flop_unit(found)
    for measure in _scores_of(found):
        for kind, name in (("seconds", "seconds of training"), ("flop", f"counted {unit}")):
            points: dict[str, list[tuple[float, float]]] = {}
            for record in found.records:
                cost = record.seconds if kind == "seconds" else record.result.get("flops")
                cost = cost / scale if cost is not None and kind == "flop" else cost
                if cost is not None and measure in record.measures:
                    pair = (cost, record.measures[measure])
                    points.setdefault(found.title(record.key), []).append(pair)
            if points:
                y_name = f"{measure}, {unit_of(measure)}"
                data = figures.draw_cost(points, x_name=name, y_name=y_name)
                caption = f"{measure} against {name}; a point is a seed."
                blocks.append(Picture(f"{_file_name(measure)}-{kind}.svg", data, caption))
    return blocks


def _curves(found: AblationRecord) -> dict[str, list[Record]]:
    grouped: dict[str, list[Record]] = {}
    for record in found.records:
        if record.lines:
            grouped.setdefault(found.title(record.key), []).append(record)
    return grouped


def _losses(found: AblationRecord) -> list[Block]:
    grouped = _curves(found)
    curves = {
        name: [curve(record.lines, "loss") for record in records]
        for name, records in grouped.items()
    }
    if not curves:
        return []
    configs = [record.cell.config for record in found.records]
    is_normalized = {config.loss.normalize_targets for config in configs}
    level = (1.0, "each patch's mean") if is_normalized == {True} else None
    y_name = "training loss at hidden patches"
    data = figures.draw_lines(curves, y_name=y_name, level=level, noisy=curves)
    caption = f"Training loss of every cell; line styles are seeds. {figures.SMOOTHED}"
    if len({config.mask.ratio for config in configs}) > 1 or len(is_normalized) > 1:
        caption += (
            " Losses of different settings answer different questions: a higher mask ratio makes "
            "the task harder, not the encoder worse."
        )
    blocks: list[Block] = [Picture("loss.svg", data, caption)]
    held_out = {
        name: [curve(record.lines, LOSS) for record in records] for name, records in grouped.items()
    }
    if any(steps for seeds in held_out.values() for steps, _ in seeds):
        data = figures.draw_lines(held_out, y_name="held-out loss", level=level)
        blocks.append(
            Picture("held-out-loss.svg", data, "Loss on held-out images, at each cell's own ratio.")
        )
    return blocks


def _reconstructions(found: AblationRecord) -> list[Block]:
    """Return the same held-out images for every setting, as its first finished seed sees them."""
    blocks: list[Block] = []
    is_normalized = False
    for number, key in enumerate(found.keys):
        records = [
            record
            for record in found.records
            if record.key == key and (record.cell.folder / PICTURES_FILE).exists()
        ]
        if records:
            record = records[0]
            with np.load(record.cell.folder / PICTURES_FILE) as arrays:
                rows = [arrays[name] for name in ("original", "seen", "pasted")]
            caption = f"{found.title(key)}, seed {record.cell.seed}."
            picture = Picture(f"held-out-{number}.png", figures.image_rows(rows), caption)
            blocks.append(picture)
            is_normalized |= record.cell.config.loss.normalize_targets
    if blocks:
        note = NORMALIZED_NOTE if is_normalized else PLAIN_NOTE
        text = "Rows: the images, what the encoder sees of them, its reconstruction. "
        blocks.insert(0, Text(f"{text}{_held_out_in_words(found)} {note}"))
    return blocks


def _held_out_in_words(found: AblationRecord) -> str:
    """Say whether cells were pretrained on the images that score them."""
    test = found.split.test
    trained = count_trained_on(test, [record.cell.folder for record in found.records])
    if not trained:
        return "No cell was trained on these images."
    return (
        f"{trained} of the {len(test)} images that score the cells are among those that cells were "
        "pretrained on, without labels: name others with evaluate.path to score on new ones."
    )


def _notes(found: AblationRecord) -> list[str]:
    labels = found.ablation.evaluate.labels
    seen = (
        f"all {len(found.split.train)} training images"
        if labels is None
        else f"{labels} of {len(found.split.train)} training images, "
        f"{found.ablation.evaluate.draws} draws, the same for every cell"
    )
    jobs = found.ablation.run.jobs
    beside = "one cell ran at a time" if jobs == 1 else f"up to {jobs} cells shared the machine"
    notes = []
    if found.split.test.labels is not None and found.ablation.evaluate.methods:
        chance = 100 / len(found.split.test.classes or (1,))
        notes.append(
            "Scores are balanced accuracies of frozen features on "
            f"{len(found.split.test)} held-out images (chance {chance:.0f} %); classifiers see the "
            f"labels of {seen}."
        )
        notes.append(_held_out_in_words(found))
    notes += _about_masks(found)
    notes += [
        "Seeds are paired: a seed gives every setting the same initial weights (where the shapes "
        "are the same), order of images and crops; labels and held-out images are the same for "
        "all cells.",
        "A difference is the mean over the seeds of (setting minus default). Its interval, 95 % "
        "for all comparisons together, takes the noise from all settings at once (what is left "
        "after the effects of setting and seed) and assumes that it is the same for all of them.",
        "Intervals of means take the spread between seeds, pooled over the settings. They say "
        "nothing about other images or other lengths of training.",
        "Seconds are those of training steps alone, at the median measured rate; "
        f"{beside}. FLOP counts convolutions "
        "and matrix products of forward and backward passes.",
    ]
    return notes


def _about_masks(found: AblationRecord) -> list[str]:
    """Say on what masks were learned and scored, where they were."""
    told = [record.result["masks"] for record in found.records if record.result.get("masks")]
    if not told:
        return []
    known = max(about["known"] for about in told)
    seen = (
        "none of which a cell was pretrained on"
        if not known
        else f"{known} of which cells were pretrained on, without masks"
    )
    return [
        f"{SEGMENTED}: mean IoU of {told[0]['scored']} held-out pictures, {seen}, after the last "
        f"step of a fine-tuning to the masks of {told[0]['train']}; nothing is chosen on them."
    ]


def _settings(found: AblationRecord, records: Sequence[Record]) -> list[Block]:
    machines = {record.result["hardware"] for record in records if "hardware" in record.result}
    software = {record.result["versions"] for record in records if "versions" in record.result}
    rows = [["hardware", "; ".join(sorted(machines)) or f"{hardware()} (of this report)"]]
    rows += [["versions", "; ".join(sorted(software)) or "no cell is done"]]
    threads = {record.result["threads"] for record in records if "threads" in record.result}
    rows += [["CPU threads per cell", ", ".join(map(str, sorted(threads))) or "-"]]
    rows += [[name, str(values)] for name, values in found.ablation.grid.items()]
    shared = [[name, str(value)] for name, value in common_settings(found.records).items()]
    return [
        Table(["what", "value"], rows),
        Details("All settings that the cells share", Table(["setting", "value"], shared)),
    ]
