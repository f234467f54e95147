"""A document as Markdown, with its pictures as files beside it."""

from fcmae.reports.document import Block, Bullets, Details, Document, Picture, Table, Text

PICTURE_FOLDER = "report_pictures"


def to_markdown(document: Document) -> str:
    """Return the text; pictures are named as files in PICTURE_FOLDER."""
    lines = [f"# {document.title}", "", document.lead, ""]
    for section in document.sections:
        if section.blocks:
            lines += [f"## {section.title}", ""]
            for block in section.blocks:
                lines += [_block(block), ""]
    return "\n".join(lines)


def pictures_of(document: Document) -> list[Picture]:
    """Return every picture of a document."""
    return [
        block
        for section in document.sections
        for block in section.blocks
        if isinstance(block, Picture)
    ]


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return block.text
    if isinstance(block, Bullets):
        return "\n".join(f"- {item}" for item in block.items)
    if isinstance(block, Details):
        return f"**{block.title}**\n\n{_table(block.table)}"
    if isinstance(block, Table):
        return _table(block)
    return f"![{block.caption}]({PICTURE_FOLDER}/{block.name})\n\n{block.caption}"


def _table(table: Table) -> str:
    rule = ["---", *["---:"] * (len(table.header) - 1)]
    rows = [table.header, rule, *table.rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows
    )
