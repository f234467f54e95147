"""All pairs of named starts: the table, what differs beyond noise, and what each of them costs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from fcmae.evaluation import PairedDifference, means, pairwise
from fcmae.studies.comparison.scores import Compared, Comparison

TUNED = "fine-tuned"
PROBES = {"linear": "linear probe", "kNN": "kNN"}  # method -> how tables name it
RULE_OF_PAIRS = (
    "The difference of two starts is the mean of their paired differences over the seeds, with a "
    "confidence interval (Student's t of the pair's own differences) that holds for all pairs of a "
    "row of the table together (Bonferroni) with 95 %, of three and more starts 96 %: scores are "
    "bounded, for which the t of few seeds is a little narrow. A difference counts when its "
    "interval leaves out 0, and is noise otherwise."
)
PAIRED = f"{RULE_OF_PAIRS} The pairs are seeds; the images that score them are the same in all."
COSTS = (
    "Seconds are those of training steps at their median rate on this machine; of published "
    "weights and of files only what was trained here counts."
)
COST_COLUMNS = ("s of pretraining", "s of a fine-tuning")
UNMEASURED = "-"


class Row(NamedTuple):
    """One kind of score with one number of labels.

    Attributes:
        share: of the labels, per cent.
        kind: of score: TUNED, a value of PROBES, or that of another task.
        scores: {start: {seed: score in per cent}}.
        labelled: training images with labels.
        unit: what they are called.
    """

    share: float
    kind: str
    scores: Mapping[str, Mapping[int, float]]
    labelled: int
    unit: str = "labels"

    @property
    def amount(self) -> str:
        """How many labelled images, in words."""
        return f"{self.labelled} {self.unit}"

    @property
    def pairs(self) -> dict[tuple[str, str], PairedDifference]:
        """How much the later of each two starts exceeds the earlier."""
        return pairwise(self.scores)


def rows_of(found: Comparison) -> Iterator[Row]:
    """Yield every kind of score, by share of the labels."""
    for share in found.results:
        count = found.num_labels[share]
        yield Row(share, TUNED, found.accuracies(share), count)
        for kind, scores in found.probes.get(share, {}).items():
            yield Row(share, kind, scores, count)


def sentences(found: Comparison) -> list[str]:
    """Say what differs beyond noise, and which starts have not learned."""
    return [*sentences_of(rows_of(found)), *found.not_learned()]


def sentences_of(rows: Iterable[Row]) -> list[str]:
    """Say what differs beyond noise, a sentence for each pair, and of which pairs nothing does."""
    said = []
    for row in rows:
        kind = row.kind if row.kind == PROBES["kNN"] else row.kind[0].upper() + row.kind[1:]
        where = f"{kind} with {row.amount}"
        alike = []
        for (first, second), gap in row.pairs.items():
            if gap.exceeds_noise:
                better, worse = (second, first) if gap.value > 0 else (first, second)
                said.append(f"{where}: {better} beats {worse} by {gap.amount()} points.")
            else:
                alike.append(f"{second} less {first} {gap.text()}")
        if alike:
            said.append(f"{where}: no difference beyond noise ({', '.join(alike)}).")
    return said


def notes_of(found: Comparison) -> list[str]:
    """Return what one must know to read the figures."""
    first, _, last = found.notes()
    return [
        first,
        PAIRED,
        "Probes of starts that are not drawn by the seed differ between seeds in their labelled "
        "images only; where these are the same, nothing can be said of them.",
        COSTS,
        last,
    ]


def costs_table(found: Compared, rows: Sequence[Row]) -> list[list[str]]:
    """Return a header, and a row for each start: means of scores with their intervals, and costs.

    Args:
        found: starts and what they cost.
        rows: the scores; each mean has its own interval.
    """
    table = [["start", *(f"{row.kind}, {row.amount}" for row in rows), *COST_COLUMNS]]
    for start in found.starts:
        own = [means({start: row.scores.get(start, {})}) for row in rows]  # not pooled
        cells = [mean[start].text() if start in mean else UNMEASURED for mean in own]
        table.append([start, *cells, *costs_of(found, start)])
    return table


def costs_of(found: Compared, start: str) -> tuple[str, str]:
    """Return seconds of pretraining and of the median fine-tuning, or that nobody knows."""
    tuning = [s for of_share in found.seconds.values() for s in of_share.get(start, {}).values()]
    before = found.pretraining_seconds.get(start)
    return (
        UNMEASURED if before is None else f"{before:.0f}",
        f"{statistics.median(tuning):.0f}" if tuning else UNMEASURED,
    )


def text_of(found: Comparison) -> str:
    """Return scores, verdicts and how to read them as lines of text."""
    if not found.are_named:
        return found.text()
    lines = lines_of(costs_table(found, list(rows_of(found))))
    lines.append(
        f"Balanced accuracy in % ({found.num_classes} classes, chance "
        f"{100 / found.num_classes:.0f}), mean with its 95 % confidence interval over the seeds."
    )
    return "\n".join([*lines, *sentences(found), *notes_of(found)])


def lines_of(table: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of text with the columns of a table, the first one to the left."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table
    ]
