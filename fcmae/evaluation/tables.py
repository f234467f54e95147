"""Tables of results as files that others open: CSV, Parquet; one row per image."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fcmae.errors import BackendUnavailableError
from fcmae.runs.durable import write_atomically, write_text

Columns = Mapping[str, Sequence[Any]]


def write_csv(path: Path, columns: Columns) -> None:
    """Write columns of equal length with their names in the first row; None is an empty cell.

    The folder of `path` is created. Numbers have the digits that tell float32 values apart.

    Raises:
        OSError: it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow(f"{cell:.9g}" if isinstance(cell, float) else cell for cell in row)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())


def write_parquet(path: Path, columns: Columns) -> None:
    """Write columns of equal length; None is a missing value. The folder of `path` is created.

    Raises:
        BackendUnavailableError: pyarrow is not installed.
        OSError: it cannot be written.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise BackendUnavailableError(
            "parquet: pyarrow is not installed; run pip install pyarrow, or write csv or npz."
        ) from error
    table = pyarrow.table({name: _plain(column) for name, column in columns.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda partial: pyarrow.parquet.write_table(table, partial))


def _plain(column: Sequence[Any]) -> list[Any]:
    """Return values that Parquet holds: names of files that are no UTF-8 are shown escaped."""
    return [
        value.encode(errors="surrogateescape").decode(errors="backslashreplace")
        if isinstance(value, str)
        else value
        for value in column
    ]
