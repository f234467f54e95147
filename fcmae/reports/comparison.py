"""The page about a comparison of starts over shares of the labels."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fcmae.machine.hardware import hardware, versions
from fcmae.reports import figures
from fcmae.reports.document import Bullets, Document, Picture, Section, Table
from fcmae.reports.page import to_csv
from fcmae.reports.writing import Report
from fcmae.settings.finetune import CompareConfig, FinetuneConfig, FinetuneOptimConfig
from fcmae.studies.comparison import pairs
from fcmae.studies.comparison.scores import Comparison
from fcmae.studies.mask_comparison import MaskComparison


def comparison_report(found: Comparison, config: FinetuneConfig, against: str | None) -> Report:
    """Return what was found, as it is saved and shown.

    Args:
        found: scores of all starts.
        config: its settings, with nothing left to a rule.
        against: weights of the second of two starts; None: from scratch.
    """
    document = _of_named(found, config) if found.are_named else _of_two(found, config, against)
    said = pairs.sentences(found) if found.are_named else [found.sentence()]
    return Report(Path(config.run.dir), document.title, tuple(said), _csv(found), page=document)


def shares_plot(
    found: Comparison | MaskComparison,
    scores: Callable[[float], Mapping[str, Mapping[int, float]]],
    seeds: int,
    *,
    x_name: str,
    y_name: str,
) -> Picture:
    """Return the scores of all starts over the shares, with the intervals of the table beside.

    Args:
        found: means and shares.
        scores: of a share, {start: {seed: score}}.
        seeds: how many.
        x_name, y_name: of the axes.
    """
    names = names_of_shares(found)
    plot = figures.draw_means(
        {start: {names[share]: scores(share)[start] for share in names} for start in found.starts},
        x_name=x_name,
        y_name=y_name,
        intervals={
            start: {names[share]: found.means(share)[start] for share in names}
            for start in found.starts
        },
    )
    caption = f"Mean over {seeds} seeds with its 95 % confidence interval, and every seed as a dot."
    return Picture("labels.svg", plot, caption)


def _labels_plot(found: Comparison, config: FinetuneConfig) -> Picture:
    return shares_plot(
        found,
        found.accuracies,
        config.compare.seeds,
        x_name="labelled training images",
        y_name="balanced accuracy in %",
    )


def names_of_shares(found: Comparison | MaskComparison) -> dict[float, str]:
    """Return how each share is called: labelled images, and per cent of them all."""
    return {share: f"{found.num_labels[share]} ({share:g} %)" for share in found.results}


def _of_named(found: Comparison, config: FinetuneConfig) -> Document:
    """Return the page about all pairs of named starts."""
    said, rows = pairs.sentences(found), list(pairs.rows_of(found))
    header, *table = pairs.costs_table(found, rows)
    return Document(
        "Which start is the better one?",
        f"{len(found.starts)} starts: {', '.join(found.starts)}. {said[0]}",
        [
            Section("Scores and costs", [Table(header, table)]),
            Section("What differs", [Bullets(said)]),
            every_pair(rows),
            Section("Accuracy against labels", [_labels_plot(found, config)]),
            Section(
                "How to read this",
                [
                    Bullets(
                        [
                            *pairs.notes_of(found),
                            *notes_of_starts(config.compare, config.optim),
                            f"{hardware()}; {versions()}.",
                        ]
                    )
                ],
            ),
        ],
    )


def every_pair(rows: Sequence[pairs.Row], score: str = "balanced accuracy") -> Section:
    """Return a figure and a table of all pairs of named starts.

    Args:
        rows: their scores.
        score: what has the points.
    """
    gaps, table = {}, []
    for row in rows:
        for (first, second), gap in row.pairs.items():
            gaps[f"{second} less {first}: {row.kind}, {row.amount}"] = gap
            table.append([row.kind, str(row.labelled), f"{second} less {first}", gap.text(),
                          gap.verdict() or "no spread to tell by"])  # fmt: skip
    caption = (
        "Every pair's difference with its interval, for all pairs of that score together; "
        "those that leave out 0 are filled."
    )
    figure = figures.draw_differences(gaps, score)
    return Section(
        "Every pair",
        [
            Picture("pairs.svg", figure, caption, is_wide=True),
            Table(["score", rows[0].unit, "pair", "difference", "verdict"], table),
        ],
    )


def notes_of_starts(compare: CompareConfig, optim: FinetuneOptimConfig) -> list[str]:
    """Return what each named start is, and how those from scratch are trained."""
    starts = [f"{name}: {source or 'drawn'}." for name, source in (compare.starts or {}).items()]
    if None in (compare.starts or {}).values():
        starts.append(_scratch_note("From scratch", "others", compare, optim))
    return starts


def _scratch_note(
    name: str, others: str, compare: CompareConfig, optim: FinetuneOptimConfig
) -> str:
    rate = compare.scratch_base_lr or optim.base_lr
    return (
        f"{name}: optim.base_lr {rate:g}, optim.layer_decay {compare.scratch_layer_decay:g} "
        f"({others}: {optim.base_lr:g} and {optim.layer_decay:g}); all else is the same."
    )


def _of_two(found: Comparison, config: FinetuneConfig, against: str | None) -> Document:
    """Return the page about the pretrained start and what it is compared with."""
    first, second = found.starts
    names = names_of_shares(found)
    rows = []
    for share in found.results:
        mean, gap = found.means(share), found.difference(share)
        text = f"{gap.text()}, {gap.verdict()}"
        rows.append([names[share], mean[first].text(), mean[second].text(), text])
    starts = [f"{first}: {config.model.weights}"]
    scratch = _scratch_note(second, "pretrained", config.compare, config.optim)
    starts.append(scratch if against is None else f"{second}: {against}")
    header = ["labels", first, second, f"{first} less {second}"]
    beside = [found.worth(share) for share in found.results]
    beside += [said for share in found.results for said in found.behind_frozen(share)]
    notes = Bullets([*found.notes(), *starts, f"{hardware()}; {versions()}."])
    return Document(
        "Did pretraining help?",
        found.sentence(),
        [
            Section("Accuracy against labels", [_labels_plot(found, config)]),
            Section("Every share", [Table(header, rows)]),
            Section("Beside frozen features", [Bullets(beside)]),
            Section("How to read this", [notes]),
        ],
    )


def _csv(found: Comparison) -> str:
    """Return every single score; of named starts with what it is a score of."""
    kind = ["score"] if found.are_named else []
    table: list[list[object]] = [
        ["share_percent", "labels", "start", "train.seed", "balanced_accuracy_percent", *kind]
    ]
    for share in found.results:
        labels = found.num_labels[share]
        rows = [
            (start, seed, value, pairs.TUNED)
            for start, of_start in found.accuracies(share).items()
            for seed, value in of_start.items()
        ]
        rows += [
            (what, seed, value, what)
            for what, of_frozen in ({} if found.are_named else found.frozen.get(share, {})).items()
            for seed, value in of_frozen.items()
        ]
        rows += [
            (start, seed, value, what)
            for what, of_starts in found.probes.get(share, {}).items()
            for start, of_start in of_starts.items()
            for seed, value in of_start.items()
        ]
        for start, seed, value, what in rows:
            said = [what] if found.are_named else []
            table.append([share, labels, start, seed, f"{value:.4f}", *said])
    return to_csv(table)
