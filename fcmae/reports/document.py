"""A report before it is written: titles, sentences, tables and pictures, whatever the format."""

from collections.abc import Sequence
from dataclasses import dataclass, field

MOST_ROWS = 200  # of a table on a page; files beside it have all
MOST_UNFOLDED = 12


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows of texts under a header.

    Attributes:
        header: names of the columns; the first column names the row.
        rows: as long as the header each.
        emphasized: numbers of the rows that stand out.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    emphasized: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Picture:
    """An image file with what it shows.

    Attributes:
        name: file name with suffix, .svg or .png.
        data: its bytes.
        caption: what it shows, in a sentence; also its text for those who do not see it.
        is_wide: needs the whole width of a page.
    """

    name: str
    data: bytes = field(repr=False)
    caption: str
    is_wide: bool = False


@dataclass(frozen=True)
class Details:
    """Something long that is folded up at first.

    Attributes:
        title: what it is.
        table: the content.
    """

    title: str
    table: Table


Block = Text | Bullets | Table | Picture | Details


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes:
        title: what it is about.
        lead: one sentence below the title.
        sections: in order; those without blocks are not written.
    """

    title: str
    lead: str
    sections: Sequence[Section]


def listed(text: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Block]:
    """Return a sentence of the number of rows and `text`, and a table, folded up where it is long.

    Nothing without rows.
    """
    if not rows:
        return []
    table = Table(header, rows[:MOST_ROWS])
    more = f" The first {MOST_ROWS} are listed." if len(rows) > MOST_ROWS else ""
    is_short = len(rows) <= MOST_UNFOLDED
    block: Block = table if is_short else Details(f"All {len(table.rows)}", table)
    return [Text(f"{len(rows):,}{text}{more}"), block]
