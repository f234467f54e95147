"""What the pages show of the examples are the examples."""

import ast
import contextlib
import functools
import importlib
import io
import re
import shlex
from pathlib import Path

from example_scripts import EXAMPLES

import fcmae
from fcmae.__main__ import main
from fcmae.cli import COMMANDS
from fcmae.settings.files import find_config

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


BLOCK = re.compile(r"^```[^\n]*\n(.*?)^```", re.S | re.M)
OF_SETTINGS = {"ablate", "bench", "compare", "finetune", "plan", "pretrain", "submit"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def commands_of(page: Path) -> list[list[str]]:
    """Return the words of every command of the project that a page shows."""
    found = []
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            for part in re.split(r"&&|\|\s", line):
                words = re.sub(r"^\s*\$?\s*(?:[A-Z_]+=\S+\s+)*", "", part)
                if re.match(r"(fcmae|python (pretrain|finetune)\.py)\s", words):
                    words = words.replace("python pretrain.py", "fcmae pretrain")
                    words = words.replace("python finetune.py", "fcmae finetune")
                    found.append(shlex.split(words, comments=True)[1:])
    return [words for words in found if words and not words[0].endswith("/")]


@functools.cache
def names_of(command: str) -> frozenset[str]:
    """Return the options that a command's own help names."""
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        main([command, "--help_all" if command in OF_SETTINGS else "--help"])
    if command == "finetune":  # of masks
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            main([command, "--task", "segmentation", "--help_all"])
    names = re.findall(r"--[\w.+-]+", shown.getvalue())
    names += ["--task"] * (command == "finetune")
    if command == "verify":  # of which its help says: those of fcmae pretrain
        names += names_of("pretrain")
    return frozenset(names) | {"--config", "--help", "--help_all", "--print_config"}


def test_every_command_that_a_page_shows_has_options_and_recipes_that_exist() -> None:
    seen = 0
    for page in PAGES:
        for command, *words in commands_of(page):
            assert command in COMMANDS, f"{page.name}: fcmae {command}"
            for place, word in enumerate(words):
                where = f"{page.name}: fcmae {command} ... {word}"
                name, _, value = word.partition("=")
                if name == "--config":
                    value = value or words[place + 1]
                    is_shipped = value.startswith("configs/") or not value.endswith(".yaml")
                    is_there = find_config(value).is_file() or (ROOT / value).is_file()
                    assert is_there or not is_shipped or value == "...", where
                elif name.startswith("--"):
                    inner = re.sub(r"^--(base|finetune)\.", "--", name)
                    seen += 1
                    allowed = names_of(command)
                    if inner != name:
                        allowed |= names_of("finetune" if "finetune" in name else "pretrain")
                    short = any(known.endswith(f".{name[2:]}") for known in allowed)
                    assert short or {name, inner} & allowed, where
    assert seen > 40


def test_python_on_the_pages_is_python_and_its_names_of_the_package_exist() -> None:
    seen = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"^```python\n(.*?)^```", text, re.S | re.M):
            for name in re.findall(r"\bfcmae\.([A-Za-z_]\w*)\(", block):
                assert hasattr(fcmae, name), f"{page.name}: fcmae.{name}"
                seen += 1
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fcmae"):
                    module = importlib.import_module(str(node.module))
                    for alias in node.names:
                        assert hasattr(module, alias.name), f"{page.name}: {alias.name}"
                        seen += 1
    assert seen > 5
