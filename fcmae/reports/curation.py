"""The page of `fcmae curate`, and its table: copies, odd pictures, what to label first."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fcmae.errors import writing
from fcmae.evaluation.copies import Pairs
from fcmae.reports import figures
from fcmae.reports.document import Block, Bullets, Document, Picture, Section, Table, Text, listed
from fcmae.reports.html import to_html
from fcmae.reports.page import Page, to_csv
from fcmae.runs.durable import write_text

SHEET_COLUMNS, SHEET_ROWS = 8, 6
GROUPS_SHOWN, PAIRS_SHOWN = 12, 12

# Files beside the page, the property of Curation that each lists, and how to take it.
LISTS = {
    "near_duplicates.txt": ("near_duplicates", "all of a group but one; data.exclude takes it"),
    "odd.txt": ("odd_pictures", "the oddest first; look before data.exclude takes it"),
    "label_first.txt": ("label_first", "in the order of labelling; data.path takes it"),
    "worst_reconstructions.txt": (
        "worst_reconstructions",
        "the worst first; look before data.exclude takes it",
    ),
}


@dataclass(frozen=True)
class Curation(Page):
    """What was found in a folder; a notebook shows its page.

    Attributes:
        title: the paths.
        source: the encoder.
        paths: of the N pictures.
        threshold: cosine from which two pictures are candidates for near duplicates.
        correlation: of the pixels, from which candidates are near duplicates; 0: all of them are.
        num_candidates: pairs that were looked at.
        groups: of near duplicates, as indices; the first of each is kept.
        num_exact: files that are byte for byte copies of others.
        scores: oddness [N].
        odd: indices of the odd ones, the oddest first.
        losses: of their reconstruction [N], NaN where there is none; None without a decoder.
        worst: indices of those reconstructed worst, the worst first.
        order: indices to label, the first first.
        near_threshold: pairs around the threshold.
        positions: of the map, [N, 2].
        is_exact: whether every pair was compared.
        skipped: (path, reason) of files that could not be decoded.
        thumbnail: gives a picture as uint8 [H, W, 3], all of one size; None where it cannot.
    """

    title: str
    source: str
    paths: Sequence[str]
    threshold: float
    correlation: float
    num_candidates: int
    groups: Sequence[Sequence[int]]
    num_exact: int
    scores: np.ndarray
    odd: np.ndarray
    losses: np.ndarray | None
    worst: np.ndarray
    order: Sequence[int]
    near_threshold: Pairs
    positions: np.ndarray
    is_exact: bool
    skipped: Sequence[tuple[str, str]]
    thumbnail: Callable[[str], np.ndarray | None] = field(repr=False)

    @property
    def copies(self) -> list[int]:
        """The near duplicates that can go: all of a group but the first."""
        return sorted(index for group in self.groups for index in group[1:])

    @property
    def near_duplicates(self) -> list[str]:
        """Paths of the near duplicates that can go, all of a group but the first."""
        return [self.paths[index] for index in self.copies]

    @property
    def odd_pictures(self) -> list[str]:
        """Paths of the odd pictures, the oddest first."""
        return [self.paths[index] for index in self.odd]

    @property
    def worst_reconstructions(self) -> list[str]:
        """Paths of the pictures that are reconstructed worst, the worst first."""
        return [self.paths[index] for index in self.worst]

    @property
    def label_first(self) -> list[str]:
        """Paths of the pictures to label, the first first."""
        return [self.paths[index] for index in self.order]

    @property
    def sentences(self) -> list[str]:
        """What was found, in a few sentences."""
        looks = f", and of the pixels {self.correlation:g}" if self.correlation else ""
        said = [
            f"{len(self.paths):,} pictures; {len(self.copies):,} of them are near duplicates of "
            f"another one ({self.num_exact:,} exact copies among them), in {len(self.groups):,} "
            f"groups: of {self.num_candidates:,} pairs whose features have a cosine of "
            f"{self.threshold:g} or more{looks}.",
            f"{len(self.odd):,} pictures are odd: far from their nearest ones.",
        ]
        if self.losses is not None:
            said.append(
                f"{len(self.worst):,} pictures are reconstructed far worse than the others when "
                "parts of them are hidden."
            )
        said.append(
            f"{len(self.order):,} pictures to label first, so that every other is near one of them."
        )
        if not self.is_exact:
            said.append("So many pictures are compared within clusters; a few pairs may be missed.")
        if self.skipped:
            said.append(f"{len(self.skipped):,} files could not be decoded.")
        return said

    def document(self) -> Document:
        """Return the page before it is written."""
        files = [
            f"{name}: {len(getattr(self, attribute)):,} files, {what}."
            for name, (attribute, what) in LISTS.items()
        ]
        in_short = [*self.sentences, *files, "curation.csv: every picture."]
        return Document(
            f"Curation: {self.title}",
            f"Features of {self.source}.",
            [
                Section("In short", [Bullets(in_short)]),
                Section("Map", _map(self)),
                Section("Near duplicates", _duplicates(self)),
                Section("Is the threshold right?", _pairs(self)),
                Section("Odd pictures", _odd(self)),
                Section("Worst reconstructions", _worst(self)),
                Section("Label first", _first(self)),
                Section("Files that could not be decoded", _skipped(self)),
            ],
        )

    def save(self, output: str | os.PathLike[str] = "curation") -> list[Path]:
        """Write the lists, named as LISTS, curation.csv and curation.html.

        Args:
            output: folder, made where it is missing.

        Returns:
            The files.

        Raises:
            ConfigError: the folder cannot be written.
        """
        folder = Path(output)
        texts = {
            name: "".join(f"{Path(path).absolute()}\n" for path in getattr(self, attribute))
            for name, (attribute, _) in LISTS.items()
        }
        texts |= {"curation.csv": curation_csv(self), "curation.html": to_html(self.document())}
        with writing(f"--output: {os.fspath(output)!r}", "name another one"):
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in texts.items():
                write_text(folder / name, text)
        return [folder / name for name in texts]


def curation_csv(found: Curation) -> str:
    """Return a table with one row per picture.

    Columns: file; group (of near duplicates, from 1) and duplicate_of (the one that is kept);
    oddness and is_odd; reconstruction_loss (empty where there is none) and is_worst; label_rank
    (from 1); x and y of the map.
    """
    group_of = {index: n for n, group in enumerate(found.groups, 1) for index in group}
    kept = {index: group[0] for group in found.groups for index in group[1:]}
    odd, worst = set(found.odd.tolist()), set(found.worst.tolist())
    rank = {index: n for n, index in enumerate(found.order, 1)}
    table: list[list[object]] = [
        [
            *("file", "group", "duplicate_of", "oddness", "is_odd"),
            *("reconstruction_loss", "is_worst", "label_rank", "x", "y"),
        ]
    ]
    for index, path in enumerate(found.paths):
        copy_of = found.paths[kept[index]] if index in kept else ""
        x, y = found.positions[index]
        loss = np.nan if found.losses is None else found.losses[index]
        table.append(
            [
                *(path, group_of.get(index, ""), copy_of, f"{found.scores[index]:.5f}"),
                *(int(index in odd), "" if np.isnan(loss) else f"{loss:.5f}"),
                *(int(index in worst), rank.get(index, ""), f"{x:.4f}", f"{y:.4f}"),
            ]
        )
    return to_csv(table)


def _map(found: Curation) -> list[Block]:
    copies, odd = found.copies, found.odd
    kinds = {
        "pictures": np.arange(len(found.paths)),
        "near duplicates": np.asarray(copies, dtype=int),
        "odd": np.asarray(odd, dtype=int),
        "reconstructed worst": np.asarray(found.worst, dtype=int),
        "label first": np.asarray(found.order, dtype=int),
    }
    points = {name: found.positions[which] for name, which in kinds.items() if len(which)}
    caption = "Every picture as a point: the two directions in which features differ most (PCA)."
    return [Picture("map.svg", figures.draw_points(points), caption, is_wide=True)]


def _duplicates(found: Curation) -> list[Block]:
    if not found.groups:
        return [Text("None.")]
    shown = sorted(found.groups, key=len, reverse=True)[:GROUPS_SHOWN]
    rows = [[found.paths[index] for index in group[:SHEET_COLUMNS]] for group in shown]
    table = [
        [found.paths[group[0]], ", ".join(found.paths[index] for index in group[1:9])]
        for group in found.groups
    ]
    caption = "The largest groups, a row each; the first picture of each is the one that is kept."
    return [
        *_sheet("near_duplicates.png", rows, found.thumbnail, caption),
        *listed(" groups.", ["kept", "near duplicates of it"], table),
    ]


def _pairs(found: Curation) -> list[Block]:
    shown = found.near_threshold
    if not len(shown.places):
        return [Text("No pair of pictures is alike enough to be looked at.")]
    named = [[found.paths[a], found.paths[b]] for a, b in shown.places]
    if found.correlation:
        said = (
            "Pairs around the threshold of their pixels' correlation, the most similar first. "
            "Where pairs below it are still duplicates, lower --correlation; where pairs above it "
            "are not, raise it. Where copies are not even among the candidates, lower --threshold."
        )
    else:
        said = (
            "Pairs around the threshold of their features' cosine, the most similar first. Where "
            "pairs below it are still duplicates, lower --threshold; where pairs above it are not, "
            "raise it, or let the pixels decide by --correlation."
        )
    table = [
        [*pair, f"{cosine:.3f}", "-" if np.isnan(correlation) else f"{correlation:.3f}"]
        for pair, cosine, correlation in zip(named, shown.cosine, shown.correlation, strict=True)
    ]
    return [
        Text(said),
        *_sheet(
            "pairs.png",
            named[:PAIRS_SHOWN],
            found.thumbnail,
            "A pair in each row, in the order of the table.",
        ),
        Table(["picture", "other one", "cosine", "correlation"], table),
    ]


def _odd(found: Curation) -> list[Block]:
    caption = "Distance of every picture from its nearest ones."
    blocks = _histogram("oddness.svg", found.scores, "oddness", caption)
    return [
        *blocks,
        *_highest(found, "odd", "oddness", found.odd, found.scores),
    ]


def _worst(found: Curation) -> list[Block]:
    if found.losses is None:
        return [Text("These weights have no decoder; name the folder of a pretraining run.")]
    known = found.losses[np.isfinite(found.losses)]
    caption = (
        "Loss of every picture's hidden patches, mean over several masks: of what surprises the "
        "model most, and of noise, which nobody can predict."
    )
    blocks = _histogram("losses.svg", known, "reconstruction loss", caption)
    return [
        *blocks,
        *_highest(found, "worst", "loss", found.worst, found.losses),
    ]


def _histogram(name: str, values: np.ndarray, x_name: str, caption: str) -> list[Block]:
    if not len(values):
        return []
    drawn = figures.draw_histogram({"": np.maximum(values, 1e-6)}, x_name=x_name, y_name="pictures")
    return [Picture(name, drawn, caption)]


def _highest(
    found: Curation, name: str, value: str, which: np.ndarray, values: np.ndarray
) -> list[Block]:
    """Return a contact sheet and a table of pictures that stand out, the most outlying first."""
    if not len(which):
        return [Text("None stands out.")]
    paths = [found.paths[index] for index in which]
    rows = [[found.paths[index], f"{values[index]:.3f}"] for index in which]
    caption = "The most outlying first, row by row."
    return [
        *_sheet(f"{name}.png", _in_rows(paths), found.thumbnail, caption),
        *listed(" pictures.", ["file", value], rows),
    ]


def _first(found: Curation) -> list[Block]:
    paths = [found.paths[index] for index in found.order]
    caption = "To label first, row by row: the most typical picture, then always the farthest."
    rows = [[str(number), path] for number, path in enumerate(paths, 1)]
    return [
        *_sheet("label_first.png", _in_rows(paths), found.thumbnail, caption),
        *listed(" pictures.", ["rank", "file"], rows),
    ]


def _skipped(found: Curation) -> list[Block]:
    return listed(" files.", ["file", "reason"], [list(row) for row in found.skipped])


def _in_rows(paths: Sequence[str]) -> list[list[str]]:
    shown = list(paths[: SHEET_COLUMNS * SHEET_ROWS])
    return [shown[at : at + SHEET_COLUMNS] for at in range(0, len(shown), SHEET_COLUMNS)]


def _sheet(
    name: str,
    rows: Sequence[Sequence[str]],
    thumbnail: Callable[[str], np.ndarray | None],
    caption: str,
) -> list[Block]:
    """Return a picture of rows of files; those that cannot be read any more are left out."""
    cells = [[cell for path in row if (cell := thumbnail(path)) is not None] for row in rows]
    cells = [row for row in cells if row]
    if not cells:
        return []
    columns = max(map(len, cells))
    white = np.full_like(cells[0][0], 255)
    stacked = [np.stack([*row, *[white] * (columns - len(row))]) for row in cells]
    return [Picture(name, figures.image_rows(stacked), caption, is_wide=True)]
