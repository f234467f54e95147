"""Writes reports: report.html, report.md with its pictures, report.csv."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass, field
from pathlib import Path

from fcmae.errors import writing
from fcmae.reports.ablation import ablation_csv, ablation_document
from fcmae.reports.document import MOST_ROWS, Block, Bullets, Document, Section, Table
from fcmae.reports.finetuning import finetuning_document
from fcmae.reports.html import to_html
from fcmae.reports.markdown import PICTURE_FOLDER, pictures_of, to_markdown
from fcmae.reports.page import Page, columns_of
from fcmae.reports.records import read_ablation_record
from fcmae.reports.run import run_csv, run_document
from fcmae.reports.verdicts import failures, sentences
from fcmae.runs.durable import write_bytes, write_text
from fcmae.runs.loading import is_ablation, is_finetuning_run


def write_report(folder: Path | str, output: Path | str | None = None) -> list[Path]:
    """Write the report of a pretraining, a fine-tuning or an ablation, as the folder holds it.

    Args:
        folder: of the run or the ablation.
        output: where the report goes; None writes it into `folder`.

    Returns:
        The files: HTML, Markdown, CSV.

    Raises:
        ConfigError: no run and no ablation, or a folder that cannot be written.
    """
    if is_ablation(folder):
        found = ablation_report(folder)
        return found.save(output or folder)
    make = finetuning_document if is_finetuning_run(folder) else run_document
    return write_document(make(folder), run_csv(folder), Path(output or folder))


@dataclass(frozen=True)
class Report(Page):
    """What a comparison of starts or an ablation has found.

    Attributes:
        path: folder of all its runs.
        title: what it is about.
        sentences: what differs, and what cannot be told apart.
        table: a CSV, one row per score or cell.
        failures: runs that failed, with their reasons; the same call tries them again.
        stopped_by: name of the signal that stopped it, such as SIGINT of a notebook's stop button;
            None when it is done. The same call goes on from there.
        page: its page; None makes one of sentences and table.
    """

    path: Path
    title: str
    sentences: tuple[str, ...] = ()
    table: str = field(default="", repr=False)
    failures: tuple[str, ...] = ()
    stopped_by: str | None = None
    page: Document | None = field(default=None, repr=False)

    @property
    def columns(self) -> dict[str, list[float | str]]:
        """The table by its columns, figures as floats, "" where there is none."""
        return columns_of(self.table)

    def document(self) -> Document:
        """Return the page before it is written."""
        if self.page is not None:
            return self.page
        said = list(self.sentences) or ["Nothing is done yet."]
        header, *rows = csv.reader(io.StringIO(self.table or "\n"))
        scores: list[Block] = [Table(header, rows[:MOST_ROWS])] if rows else []
        sections = [Section("In short", [Bullets(said)]), Section("Scores", scores)]
        return Document(self.title, said[0], sections)

    def save(self, output: str | os.PathLike[str]) -> list[Path]:
        """Write report.html, report.md with its pictures and report.csv; return these files.

        Args:
            output: folder, made where it is missing.

        Raises:
            ConfigError: the folder cannot be written.
        """
        return write_document(self.document(), self.table, Path(output))


def ablation_report(folder: Path | str, stopped_by: str | None = None) -> Report:
    """Return what the folder of an ablation holds; raises ConfigError where it holds none."""
    found = read_ablation_record(folder)
    page = ablation_document(found)
    return Report(
        Path(folder),
        page.title,
        tuple(sentences(found)) if any(one.state == "done" for one in found.records) else (),
        ablation_csv(found),
        tuple(failures([*found.records, *found.baselines])),
        stopped_by,
        page,
    )


def write_document(document: Document, table: str, folder: Path) -> list[Path]:
    """Write a document as HTML and Markdown, and `table` as CSV; return the files.

    Raises:
        ConfigError: the folder cannot be written.
    """
    paths = [folder / f"report.{suffix}" for suffix in ("html", "md", "csv")]
    pictures = folder / PICTURE_FOLDER
    with writing(f"report: {folder}", "name another folder with --output"):
        pictures.mkdir(parents=True, exist_ok=True)
        for picture in pictures_of(document):
            write_bytes(pictures / picture.name, picture.data)
        for path, text in zip(
            paths, (to_html(document), to_markdown(document), table), strict=True
        ):
            write_text(path, text)
    return paths
