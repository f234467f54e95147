"""Writes reports: report.html, report.md with its pictures, report.csv."""

from pathlib import Path

from fcmae.errors import ConfigError
from fcmae.reports.ablation import ablation_csv, ablation_document
from fcmae.reports.document import Document
from fcmae.reports.finetuning import finetuning_document
from fcmae.reports.html import to_html
from fcmae.reports.markdown import PICTURE_FOLDER, pictures_of, to_markdown
from fcmae.reports.records import read_ablation_record
from fcmae.reports.run import run_csv, run_document
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
        return write_ablation_report(folder, output)
    make = finetuning_document if is_finetuning_run(folder) else run_document
    return write_document(make(folder), run_csv(folder), Path(output or folder))


def write_ablation_report(folder: Path | str, output: Path | str | None = None) -> list[Path]:
    """Write the report of an ablation; see `write_report`."""
    found = read_ablation_record(folder)
    return write_document(ablation_document(found), ablation_csv(found), Path(output or folder))


def write_document(document: Document, table: str, folder: Path) -> list[Path]:
    """Write a document as HTML and Markdown, and `table` as CSV; return the files.

    Raises:
        ConfigError: the folder cannot be written.
    """
    paths = [folder / f"report.{suffix}" for suffix in ("html", "md", "csv")]
    pictures = folder / PICTURE_FOLDER
    try:
        pictures.mkdir(parents=True, exist_ok=True)
        for picture in pictures_of(document):
            write_bytes(pictures / picture.name, picture.data)
        for path, text in zip(
            paths, (to_html(document), to_markdown(document), table), strict=True
        ):
            write_text(path, text)
    except OSError as error:
        raise ConfigError(
            f"report: {folder} cannot be written ({error.strerror}); name another folder with "
            "--output."
        ) from error
    return paths
