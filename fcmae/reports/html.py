"""A document as one HTML file: styles and pictures inside, no script, no link, no network."""

import base64
import html

from fcmae.reports.document import Block, Bullets, Details, Document, Picture, Table, Text

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem; max-width: 70rem; background: #fff; color: #1c2430;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.6rem; padding-bottom: 0.25rem;
  border-bottom: 1px solid #d5dbe3; }
p, ul { max-width: 46rem; }
ul { padding-left: 1.2rem; }
.lead { color: #48536a; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr));
  gap: 1rem 1.5rem; }
figure { margin: 0; break-inside: avoid; }
figure.wide { grid-column: 1 / -1; }
figure img { display: block; width: 100%; max-width: 40rem; height: auto; }
figure.wide img { max-width: 56rem; }
figcaption { color: #48536a; font-size: 0.88rem; max-width: 40rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; margin: 0.6rem 0;
  overflow-wrap: break-word;
  font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 0.35rem 0.6rem; border-bottom: 1px solid #e3e8ef;
  vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
thead th { color: #48536a; font-weight: 600; border-bottom: 2px solid #c3ccd8; }
tr.emphasized td { background: #eef4fb; font-weight: 600; }
summary { cursor: pointer; font-weight: 600; padding: 0.3rem 0; }
@media (max-width: 44rem) {
  body { padding: 0.9rem; }
  h1 { font-size: 1.4rem; }
  thead { display: none; }
  table, tbody, tr, td { display: block; width: 100%; }
  tr { padding: 0.5rem 0; border-bottom: 2px solid #d5dbe3; }
  td { display: flex; justify-content: space-between; gap: 1rem; border: 0;
    padding: 0.12rem 0.4rem; }
  td:first-child { font-weight: 600; }
  td + td::before { content: attr(data-label); color: #48536a; text-align: left; font-weight: 400; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  h2 { break-after: avoid; }
  tr { break-inside: avoid; }
  tr.emphasized td { print-color-adjust: exact; }
}
""".strip()

_MEDIA_TYPES = {"svg": "image/svg+xml", "png": "image/png"}


def to_html(document: Document) -> str:
    """Return a complete page that needs nothing else."""
    body = [f"<h1>{escape(document.title)}</h1>", f'<p class="lead">{escape(document.lead)}</p>']
    for section in document.sections:
        if section.blocks:
            body.append(f"<section>\n<h2>{escape(section.title)}</h2>")
            body += _blocks(section.blocks)
            body.append("</section>")
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(document.title)}</title>",
            f"<style>\n{STYLE}\n</style>",
            "</head>",
            "<body>",
            *body,
            "</body>",
            "</html>",
            "",
        ]
    )


def escape(text: str) -> str:
    """Return text for HTML, with a typographic plus-minus."""
    return html.escape(text).replace(" +- ", "&nbsp;&plusmn;&nbsp;")


def _blocks(blocks: object) -> list[str]:
    """Return the elements; pictures that follow each other share a grid."""
    lines: list[str] = []
    is_in_grid = False
    for block in blocks:  # type: ignore[attr-defined]
        if isinstance(block, Picture) != is_in_grid:
            lines.append("</div>" if is_in_grid else '<div class="pictures">')
            is_in_grid = not is_in_grid
        lines.append(_block(block))
    return [*lines, "</div>"] if is_in_grid else lines


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, Bullets):
        return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in block.items) + "</ul>"
    if isinstance(block, Details):
        title = escape(block.title)
        return f"<details>\n<summary>{title}</summary>\n{_table(block.table)}\n</details>"
    if isinstance(block, Table):
        return _table(block)
    caption = escape(block.caption)
    kind = ' class="wide"' if block.is_wide else ""
    source = f"data:{_MEDIA_TYPES[block.name.rpartition('.')[2]]};base64," + base64.b64encode(
        block.data
    ).decode("ascii")
    return (
        f'<figure{kind}><img src="{source}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    lines = ["<table>", f"<thead><tr>{head}</tr></thead>", "<tbody>"]
    for number, row in enumerate(table.rows):
        cells = "".join(
            f'<td data-label="{escape(name)}">{escape(value)}</td>'
            for name, value in zip(table.header, row, strict=True)
        )
        kind = ' class="emphasized"' if number in table.emphasized else ""
        lines.append(f"<tr{kind}>{cells}</tr>")
    return "\n".join([*lines, "</tbody>", "</table>"])
