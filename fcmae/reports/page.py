"""What a command has found, as a value that a notebook shows as its page."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterable

from fcmae.reports.document import Document
from fcmae.reports.html import to_html

FRAME_HEIGHT_PX = 640
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?|nan|-?inf")  # 0012 is a name


class Page:
    """Something that has a page; a notebook shows it in a frame, so that its style stays inside."""

    def document(self) -> Document:
        """Return the page before it is written."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        page = html.escape(to_html(self.document()), quote=True)
        return (
            f'<iframe srcdoc="{page}" sandbox="" loading="lazy" title="report" '
            f'style="width:100%;height:{FRAME_HEIGHT_PX}px;border:1px solid #d5dbe3"></iframe>'
        )


def to_csv(rows: Iterable[Iterable[object]]) -> str:
    """Return rows, a header first, as a CSV."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def columns_of(table: str) -> dict[str, list[float | str]]:
    """Return the columns of a CSV by their names; figures as floats."""
    rows = list(csv.reader(io.StringIO(table)))
    names = rows[0] if rows else []
    return {name: [_value(row[place]) for row in rows[1:]] for place, name in enumerate(names)}


def _value(text: str) -> float | str:
    return float(text) if _NUMBER.fullmatch(text) else text
