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
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if "generated" not in page.parts),
]


FENCED = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```", re.S | re.M)
EXAMPLE_NAMES = sorted(path.name for path in EXAMPLES.glob("*.*"))
NO_SNIPPETS = ("text", "{toctree}", "{eval-rst}")  # what a command printed, and the site's own
INDENTED = re.compile(
    r"(?<=\n\n) {4,}(?![-*\d ])\S[^\n]*"
)  # code without a fence, after a blank line
# It makes an environment, installs, and runs README's second.
RUN_BY_CI = ("python3 -m venv", ". venv/", "pip install", "python -m pytest")


def commands_in(text: str) -> list[str]:
    """Return the lines of a script or block, joined where they go on, without installing."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    parts = [" ".join(part.split()) for line in lines for part in line.split("&&")]
    return [part for part in parts if part and not part.startswith(("#", *RUN_BY_CI))]


def untested(text: str, scripts: list[str], tests: str, *, is_site: bool) -> list[str]:
    """Return the snippets of a page that no test runs and that do not say so.

    Args:
        text: the page.
        scripts: what the files of examples/ hold.
        tests: what the tests of examples/ hold: a file that they name is run.
        is_site: the page can include files; else its snippets are parts of them.
    """
    not_run = {name for name in EXAMPLE_NAMES if "not run" in (EXAMPLES / name).read_text("utf-8")}
    known = {command for script in scripts for command in commands_in(script)}
    found = []
    for _, kind, block in FENCED.findall(text):
        if kind.startswith(NO_SNIPPETS) or "not run" in block.partition("\n")[0]:
            continue
        if kind.startswith("{literalinclude}"):
            name = Path(kind.partition("} ")[2]).name
            is_run = name in tests or name in not_run
        elif kind == "python":
            is_run = not is_site and any(block in script for script in scripts)
        else:
            commands = commands_in(block)
            is_run = all(command in known for command in commands) and not (is_site and commands)
        if not is_run:
            found.append(f"{kind}: {block.partition(chr(10))[0]}")
    found += [f"not fenced: {line.strip()}" for line in INDENTED.findall(FENCED.sub("", text))]
    found += re.findall(r"^ *(?:~~~|:::|<pre|<code).*", FENCED.sub("", text), re.M)
    return found


def test_every_snippet_is_of_a_file_that_is_run_or_says_that_it_is_not() -> None:
    scripts = [file.read_text(encoding="utf-8") for file in EXAMPLES.glob("*.*")]
    tests = "".join(
        file.read_text(encoding="utf-8")
        for file in Path(__file__).parent.glob("test_*.py")
        if file != Path(__file__)
    )
    found = {
        str(page.relative_to(ROOT)): untested(
            page.read_text(encoding="utf-8"), scripts, tests, is_site="docs" in page.parts
        )
        for page in PAGES
    }
    assert {page: snippets for page, snippets in found.items() if snippets} == {}
    assert len(PAGES) > 20


def test_the_search_for_untested_snippets_finds_them() -> None:
    scripts = ["# [a]\nfcmae inspect x \\\n    --write y\n", "import fcmae\nfcmae.load(1)\n"]
    page = (
        "```bash\npip install fcmae && fcmae inspect x --write y\n```\n"
        "```python\nfcmae.load(1)\n```\n```text\nsaid\n```\n"
    )
    assert untested(page, scripts, "", is_site=False) == []
    assert len(untested(page, scripts, "", is_site=True)) == 2
    assert untested("```bash\nfcmae inspect z\n```\n", scripts, "", is_site=False)
    assert untested("```python\nfcmae.load(2)\n```\n", scripts, "", is_site=False)
    assert untested("```\nfcmae inspect z\n```\n", scripts, "", is_site=True)
    assert (
        untested("```bash\n# not run: long\nfcmae inspect z\n```\n", scripts, "", is_site=True)
        == []
    )
    for hidden in (
        "Say\n\n    fcmae inspect z\n",
        "~~~bash\nfcmae inspect z\n~~~\n",
        "<pre>z</pre>",
    ):
        assert untested(hidden, scripts, "", is_site=True)
    included = "```{literalinclude} ../examples/a.sh\n:language: bash\n```\n"
    assert untested(included, scripts, "run(a.sh)", is_site=True) == []
    assert untested(included, scripts, "", is_site=True)


def test_pages_show_scripts_from_their_files() -> None:
    named = set()
    for page in (ROOT / "docs").glob("**/*.md"):
        for target in re.findall(r"literalinclude\} (\S+)", page.read_text(encoding="utf-8")):
            file = (page.parent / target).resolve()
            assert file.is_file(), f"{page.name}: {target}"
            named.add(file)
    assert set(EXAMPLES.glob("*.py")) - {EXAMPLES / "own_reader.py"} <= named  # which has a link


def test_names_of_examples_in_the_pages_exist() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for name in re.findall(r"examples/(\w+\.py)", Path(page).read_text(encoding="utf-8")):
            assert (EXAMPLES / name).is_file(), f"{page}: {name}"


OF_SETTINGS = {"ablate", "bench", "compare", "finetune", "plan", "pretrain", "submit"}


def commands_of(page: Path) -> list[list[str]]:
    """Return the words of every command of the project that a page shows."""
    text = page.read_text(encoding="utf-8")
    found = []
    blocks = [block for _, _, block in FENCED.findall(text)]
    spans = re.findall(
        r"`(fcmae [a-z][^`]+|python (?:pretrain|finetune)\.py [^`]+)`", FENCED.sub("", text)
    )
    for block in [*blocks, *spans]:
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
                    assert is_there or not is_shipped or value in ("...", "FILE"), where
                elif name.startswith("--"):
                    inner = re.sub(r"^--(base|finetune)\.", "--", name)
                    seen += 1
                    allowed = names_of(command)
                    if inner != name:
                        allowed |= names_of("finetune" if "finetune" in name else "pretrain")
                    if command == "submit":  # which takes those of what it submits
                        allowed |= names_of(words[0])
                    short = any(known.endswith(f".{name[2:]}") for known in allowed)
                    assert short or {name, inner} & allowed, where
    assert seen > 40


def test_readme_is_one_screen_before_its_table_of_all_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first, _, rest = text.partition("\n## Commands\n")
    assert first.count("\n") <= 45
    assert len(re.findall(r"^<img .*width=", first, re.M)) == 1
    assert len(FENCED.findall(first)) == 2
    three = re.findall(r"^- \*\*(.*?)(?=^- |\n\n)", first, re.S | re.M)
    assert [len(re.findall(r"\]\(docs/", point)) > 0 for point in three] == [True] * 3
    named = set(
        re.findall(r"`(?:fcmae )?([\w-]+)`", "".join(re.findall(r"^\| `[^|]*\|", rest, re.M)))
    )
    assert named == COMMANDS.keys()


def test_the_layout_in_readme_is_a_picture_of_the_rooms_that_exist() -> None:
    _, _, layout = (ROOT / "README.md").read_text("utf-8").partition("\n## Layout of the code\n")
    (picture,) = re.findall(r"```text\n(.*?)```", layout, re.S)
    assert 10 <= picture.count("\n") <= 15
    rooms = {
        folder.name for folder in (ROOT / "fcmae").iterdir() if (folder / "__init__.py").is_file()
    }
    assert rooms <= set(re.findall(r"(\w+)/ ", picture))


def test_python_on_the_pages_is_python_and_its_names_of_the_package_exist() -> None:
    seen = 0
    for page in [*PAGES, *EXAMPLES.glob("*.py")]:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
        for block in [text] if page.suffix == ".py" else blocks:
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
