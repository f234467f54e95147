"""What the pages show of the examples are the examples."""

import re
from pathlib import Path

from example_scripts import EXAMPLES

ROOT = EXAMPLES.parent


def test_pages_show_scripts_from_their_files() -> None:
    named = set()
    for page in (ROOT / "docs").glob("*.md"):
        for target in re.findall(r"literalinclude\} (\S+)", page.read_text(encoding="utf-8")):
            file = (page.parent / target).resolve()
            assert file.is_file(), f"{page.name}: {target}"
            named.add(file)
    scripts = set(EXAMPLES.glob("*.py")) - {EXAMPLES / "own_reader.py"}
    assert scripts <= named


def test_readme_shows_lines_of_a_script() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "timm" in block]
    scripts = [path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")]
    shown = [block for block in blocks if "fcmae" not in block]
    assert shown
    assert [block for block in shown if not any(block in script for script in scripts)] == []


def test_names_of_examples_in_the_pages_exist() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for name in re.findall(r"examples/(\w+\.py)", Path(page).read_text(encoding="utf-8")):
            assert (EXAMPLES / name).is_file(), f"{page}: {name}"
