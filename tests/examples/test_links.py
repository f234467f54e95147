"""Every link of the pages leads somewhere; those of other sites have the shape of one."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from example_scripts import EXAMPLES

ROOT = EXAMPLES.parent
DOCS = ROOT / "docs"
SOURCES = (*(ROOT / "fcmae").rglob("*.py"), *(ROOT / "sparse").rglob("*.py"))
CODE_BLOCK = re.compile(r"^( *)(```|~~~).*?^\1\2`*$", re.S | re.M)
CODE_SPAN = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.S)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+[\"'][^)]*)?\)")  # [text](target), ![text](target)
DEFINITION = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)", re.M)  # [text]: target
HTML = re.compile(r"\b(?:href|src)=[\"']([^\"']+)")
ADDRESS = re.compile(r"<?\bhttps?:[^\s)>\]\"'`]*")
ROLE = re.compile(r"\{(doc|download|ref)\}`(?:[^`<]*<)?([^`>]+)>?`")
DIRECTIVE = re.compile(r"^ *```\{(?:literalinclude|include|image|figure)\} (\S+)", re.M)
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```", re.S | re.M)
NAMED = re.compile(  # a file of the repository, anywhere in a text
    r"(?<![\w./-])((?:\.ci|configs|docs|examples|fcmae|sparse|studies|tests)/[\w./-]*\w)"
)
CONF = (DOCS / "conf.py").read_text(encoding="utf-8")
DEEPEST_ANCHOR = int(re.findall(r"^myst_heading_anchors = (\d)", CONF, re.M)[0])


def texts() -> dict[Path, str]:
    """Return the text of every page that people read, by its file."""
    files = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *EXAMPLES.rglob("*.md")]
    found = {
        file: file.read_text(encoding="utf-8") for file in files if "generated" not in file.parts
    }
    for file in EXAMPLES.rglob("*.ipynb"):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        markdown = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        found[file] = "\n\n".join(markdown)
    return found


def anchors_of(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    anchors: set[str] = set()
    for marks, title in re.findall(r"^(#{1,6}) (.+?)#*$", CODE_BLOCK.sub("", text), re.M):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title.strip()).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in anchors:
            number += 1
        if len(marks) <= DEEPEST_ANCHOR:
            anchors.add(name)
    return anchors


def is_address(target: str) -> bool:
    """Say whether a target of another site has the shape of one; nothing is asked."""
    try:
        parts = urlsplit(target)
        parts.port  # noqa: B018  raises where it is no number
    except ValueError:
        return False
    if parts.scheme == "mailto":
        return re.fullmatch(r"[^@\s]+@[^@\s]+\.\w+", parts.path) is not None
    host = parts.hostname or ""
    is_host = re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", host) is not None
    is_paper = host != "arxiv.org" or re.fullmatch(r"/(abs|pdf)/\d{4}\.\d{4,5}(v\d+)?", parts.path)
    return parts.scheme in ("http", "https") and is_host and bool(is_paper)


def dead_links(page: Path, text: str, read: Callable[[Path], str | None]) -> list[str]:
    """Return the targets of a page that lead nowhere.

    Args:
        page: its file.
        text: its Markdown.
        read: returns the text of a file, "" of a folder, None of what does not exist.
    """
    prose = CODE_SPAN.sub("", CODE_BLOCK.sub("", text))
    targets = LINK.findall(prose) + DEFINITION.findall(prose) + HTML.findall(prose)
    dead = [address for address in ADDRESS.findall(prose) if not is_address(address.strip("<>.,;"))]
    for target in targets:
        if re.match(r"[a-z]+:", target):
            if not is_address(target):
                dead.append(target)
            continue
        name, _, anchor = unquote(target).partition("#")
        content = read((page.parent / name).resolve()) if name else text
        is_page = not name or name.endswith(".md")
        if content is None or (anchor and (not is_page or anchor not in anchors_of(content))):
            dead.append(target)
    for role, target in ROLE.findall(text):
        name = {"doc": f"{target}.md", "download": target}.get(role, "")
        if read((page.parent / name).resolve()) is None or role == "ref":
            dead.append(f"{{{role}}}`{target}`")
    dead += [
        target for target in DIRECTIVE.findall(text)
        if not read((page.parent / target).resolve())
    ]  # fmt: skip
    for entries in TOCTREE.findall(text):
        for entry in entries.split("\n"):
            if entry and not entry.startswith(":"):
                target = entry.partition("<")[2].rstrip(">") or entry
                if read((page.parent / f"{target}.md").resolve()) is None:
                    dead.append(f"toctree: {entry}")
    return dead


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str | None]:
    """Read a file of the repository, or a page that Sphinx makes of the code."""
    made = tmp_path_factory.mktemp("docs")
    sys.path.insert(0, str(DOCS))
    import generated_pages

    sys.path.remove(str(DOCS))
    generated_pages.write(made)

    def text_of(file: Path) -> str | None:
        if "generated" in file.parts:
            file = made / file.relative_to(DOCS)
        if file.is_dir():
            return ""
        is_text = file.suffix not in (".png", ".svg", ".jpg")
        return (file.read_text("utf-8") if is_text else "picture") if file.is_file() else None

    return text_of


def test_every_link_of_the_pages_leads_somewhere(read: Callable[[Path], str | None]) -> None:
    dead = {
        page.relative_to(ROOT).as_posix(): dead_links(page, text, read)
        for page, text in texts().items()
    }
    assert {page: targets for page, targets in dead.items() if targets} == {}
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/start.md"} <= dead.keys()


def test_every_page_of_the_site_is_in_its_contents_and_readme_links_it() -> None:
    pages = {str(p.relative_to(DOCS).with_suffix("")) for p in texts() if DOCS in p.parents}
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = {line for entries in TOCTREE.findall(index) for line in entries.split("\n")}
    assert pages - {"index"} <= listed
    linked = set(re.findall(r"\]\(docs/([\w/-]+)\.md", (ROOT / "README.md").read_text("utf-8")))
    assert pages - {"index", "ablation/report", "reference/run-folder"} <= linked


def test_files_of_the_repository_that_pages_and_messages_name_exist() -> None:
    named = {page: text for page, text in texts().items() if page.name != "CHANGELOG.md"}
    named |= {file: file.read_text(encoding="utf-8") for file in SOURCES}
    missing = {
        f"{page.relative_to(ROOT)}: {name}"
        for page, text in named.items()
        for name in NAMED.findall(ADDRESS.sub("", text))
        if not re.search(r"(?:^|[/_])(?:NAME|X)[_.]", name)  # which stand for any
        and "." in Path(name).name.lstrip(".")
        and not list(ROOT.glob(name))
    }
    assert missing == set()
    assert any(NAMED.search(text) for text in named.values())


@pytest.mark.parametrize(
    "text",
    [
        "[a](other.md#part-two)",
        "[a](#here)\n\n# Here",
        "![a](folder/picture.png \"its title\") [b](folder/)",
        "<img src='folder/picture.png'> [a]\n\n[a]: other.md",
        "{doc}`other` and {doc}`that one <other>` {download}`a file <folder/picture.png>`",
        "```{literalinclude} other.md\n:language: bash\n```",
        "```{toctree}\n:hidden:\n\nother\nA title <other>\n```",
        "https://example.org/a?b=1#c. <mailto:a@b.org> [p](https://arxiv.org/abs/2301.00808)",
        "`[a](nowhere.md)` ``[`](nowhere.md)``\n\n```text\n[a](nowhere.md)\n# Here\n```",
    ],
)  # fmt: skip
def test_what_leads_somewhere_passes(text: str) -> None:
    assert dead_links(Path("/pages/page.md"), text, made_up) == []


@pytest.mark.parametrize(
    "text",
    [
        "[a](nowhere.md)",
        "[a](../other.md)",
        "[a](other.md#part-three)",
        "[a](other.md#not-a-heading)",
        "[a](#nowhere)",
        "[a](folder/picture.png#part)",
        "![a](nowhere.png)",
        "<a href='nowhere.html'>",
        "[a]: nowhere.md",
        "{doc}`nowhere`",
        "{doc}`that one <nowhere>`",
        "{ref}`a label that no page gives`",
        "```{literalinclude} nowhere.py\n```",
        "```{toctree}\n\nnowhere\n```",
        "[a](http//example.org)",
        "[a](https://example)",
        "[a](htps://example.org)",
        "https:/example.org",
        "[a](https://arxiv.org/abs/230100808)",
        "[a](mailto:nobody)",
    ],
)
def test_what_leads_nowhere_is_found(text: str) -> None:
    assert dead_links(Path("/pages/page.md"), text, made_up)


def made_up(file: Path) -> str | None:
    """Return the text of a file of pages that are made up."""
    return {
        "/pages/other.md": "# Part one\n## Part `two`\n```text\n# Not a heading\n```",
        "/pages/folder": "",
        "/pages/folder/picture.png": "picture",
    }.get(str(file))
