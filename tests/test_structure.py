"""Architecture as tests: layers, sizes, names and documentation of the source files."""

from __future__ import annotations

import ast
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterable

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for package in ("fcmae", "sparse")
    for path in sorted((ROOT / package).rglob("*.py"))
}
SPARSE = {name: source for name, source in SOURCES.items() if name.startswith("sparse/")}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MAX_LINES = 600
MIN_LINES = 30
DRAWERS = {"utils", "util", "helpers", "helper", "misc", "common"}  # names that say nothing


def imported_packages(source: str) -> set[str]:
    """Return the top-level names that `source` imports absolutely, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def imported_files(name: str, source: str, names: Iterable[str]) -> set[str]:
    """Return which of the modules `names` the module `name` imports, at any depth.

    Imports for type checkers alone do not count.
    """
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        inside = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            inside = list(node.orelse)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in names else node.module)
        for child in inside:
            visit(child)

    visit(ast.parse(source))
    return (found & set(names)) - {name}


def cycle_in(imports: dict[str, set[str]]) -> list[str]:
    """Return modules of which each imports the next and the last the first; [] without any."""
    done: set[str] = set()

    def follow(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return trail[trail.index(name) :]
        if name not in done:
            for other in sorted(imports[name]):
                if cycle := follow(other, [*trail, name]):
                    return cycle
            done.add(name)
        return []

    return next(filter(None, (follow(name, []) for name in sorted(imports))), [])


def module_name(path: str) -> str:
    """Return what `path` is imported as."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def documented_methods(sources: Iterable[str]) -> dict[str, set[str]]:
    """Return the documented methods of each class, by the name of the class."""
    return {
        node.name: {
            child.name
            for child in node.body
            if isinstance(child, FUNCTIONS) and ast.get_docstring(child)
        }
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
    }


def undocumented(source: str, classes: dict[str, set[str]]) -> list[str]:
    """Return the public modules, classes, functions and methods without a docstring.

    A method that overrides a documented one of a class in `classes` needs none of its own.
    """
    missing: list[str] = []

    def visit(node: ast.Module | ast.ClassDef, prefix: str, inherited: set[str]) -> None:
        for child in node.body:
            if not isinstance(child, (ast.ClassDef, *FUNCTIONS)) or child.name.startswith("_"):
                continue
            if ast.get_docstring(child) is None and child.name not in inherited:
                missing.append(prefix + child.name)
            if isinstance(child, ast.ClassDef):
                bases = [base.id for base in child.bases if isinstance(base, ast.Name)]
                methods = set().union(*(classes.get(base, set()) for base in bases))
                visit(child, f"{prefix}{child.name}.", methods)

    tree = ast.parse(source)
    if ast.get_docstring(tree) is None:
        missing.append("the module")
    visit(tree, "", set())
    return missing


def test_there_are_files_to_check() -> None:
    assert {
        "sparse/encoder.py",
        "sparse/backends/native.py",
        "fcmae/model/autoencoder.py",
    } <= SOURCES.keys()
    assert "fcmae/model/loss.py" not in SPARSE


def test_sparse_stands_alone_on_torch_and_timm() -> None:
    allowed = {"sparse", "torch", "timm", "MinkowskiEngine", "triton"} | sys.stdlib_module_names
    others = {name: imported_packages(source) - allowed for name, source in SPARSE.items()}
    assert {name: packages for name, packages in others.items() if packages} == {}


def test_one_file_alone_imports_minkowski_engine() -> None:
    importers = {name for name in SOURCES if "MinkowskiEngine" in imported_packages(SOURCES[name])}
    assert importers == {"sparse/backends/minkowski.py"}


def test_one_file_alone_imports_triton() -> None:
    importers = {name for name in SOURCES if "triton" in imported_packages(SOURCES[name])}
    assert importers == {"sparse/ops/triton_kernels.py"}


def test_an_import_upwards_breaks_the_contracts(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("importlinter", reason="the extra dev is not installed")
    for package in ("fcmae", "sparse"):
        shutil.copytree(ROOT / package, tmp_path / package)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"

    def lint() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, "--no-cache"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert lint().returncode == 0
    with (tmp_path / "fcmae/model/patches.py").open("a") as file:
        file.write("\nfrom fcmae.data import order\n")
    broken = lint()
    assert broken.returncode == 1
    assert "fcmae.model is not allowed to import fcmae.data" in broken.stdout


def test_one_file_alone_draws_bars_whose_lock_is_no_other_process_s() -> None:
    importers = {name for name in SOURCES if "tqdm" in imported_packages(SOURCES[name])}
    assert importers == {"fcmae/runs/terminal.py"}


def test_no_import_leads_back_to_the_file_it_came_from() -> None:
    names = {module_name(path): source for path, source in SOURCES.items()}
    imports = {name: imported_files(name, source, names) for name, source in names.items()}
    assert sum(map(len, imports.values())) > 500
    assert cycle_in(imports) == []


def test_no_file_grows_beyond_what_is_read_in_one_sitting() -> None:
    lengths = {name: len(source.splitlines()) for name, source in SOURCES.items()}
    long = {name: lines for name, lines in lengths.items() if lines > MAX_LINES}
    assert long == {}, f"more than {MAX_LINES} lines: is it two ideas?"


def test_no_file_is_too_short_to_hold_an_idea() -> None:
    lengths = {name: len(source.splitlines()) for name, source in SOURCES.items()}
    short = {name for name, lines in lengths.items() if lines < MIN_LINES}
    assert {name for name in short if not name.endswith("__init__.py")} == set()


def test_the_first_sight_of_the_package_is_its_rooms() -> None:
    inside = [path for path in (ROOT / "fcmae").iterdir() if path.name != "__pycache__"]
    # py.typed is an empty marker that type checkers look for there.
    assert sum(path.is_file() for path in inside if path.name != "py.typed") <= 5
    assert sum(path.is_dir() for path in inside) <= 15


def test_tests_lie_where_their_subjects_lie() -> None:
    files = [path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")]
    rooms = {path.parent for path in files} - {pathlib.Path(".")}
    assert len(rooms) > 15
    packages = (ROOT / "fcmae", ROOT)  # tests/sparse are the tests of sparse/
    lost = {room for room in rooms if not any((package / room).is_dir() for package in packages)}
    assert lost == set()


def test_no_file_is_a_drawer_for_everything_else() -> None:
    assert {name for name in SOURCES if pathlib.Path(name).stem in DRAWERS} == set()


def test_every_public_name_is_documented() -> None:
    classes = documented_methods(SOURCES.values())
    missing = {name: undocumented(source, classes) for name, source in SOURCES.items()}
    assert {name: names for name, names in missing.items() if names} == {}


def test_module_docstrings_have_five_lines_or_fewer() -> None:
    docstrings = {name: ast.get_docstring(ast.parse(source)) for name, source in SOURCES.items()}
    assert {n for n, text in docstrings.items() if len((text or "").splitlines()) > 5} == set()


def test_source_is_ascii() -> None:
    assert {name for name, source in SOURCES.items() if not source.isascii()} == set()


def test_the_search_for_cycles_finds_them() -> None:
    sources = {
        "a": "def f():\n    from b import c",
        "b": "",
        "b.c": "import d.e",
        "d.e": "from a import f",
    }
    imports = {name: imported_files(name, source, sources) for name, source in sources.items()}
    assert imports == {"a": {"b.c"}, "b": set(), "b.c": {"d.e"}, "d.e": {"a"}}
    assert cycle_in(imports) == ["a", "b.c", "d.e"]
    sources["d.e"] = "if TYPE_CHECKING:\n    from a import f\nelse:\n    import b"
    imports["d.e"] = imported_files("d.e", sources["d.e"], sources)
    assert imports["d.e"] == {"b"}
    assert cycle_in(imports) == []


def test_the_checks_see_what_they_should() -> None:
    assert imported_packages("def f():\n    import fcmae.model as m\n    from a.b import c") == {
        "fcmae",
        "a",
    }
    source = '"""Doc."""\nclass A:\n  """Doc."""\n  def b(self): """Doc."""\n  def c(self): ...\n'
    source += (
        'class B(A):\n  """Doc."""\n  def b(self): ...\n  def c(self): ...\n  def _d(self): ...'
    )
    assert undocumented(source, documented_methods([source])) == ["A.c", "B.c"]
    assert undocumented("def f(): ...", {}) == ["the module", "f"]


# Who writes without durable, and why that is right.
OWN_WRITERS = {
    "fcmae/data/cache.py": "appends pixels, and an index that counts them afterwards",
    "fcmae/evaluation/given_images.py": "pictures in memory, in a folder that is removed",
    "fcmae/machine/bench/starting.py": "pictures to start on, in a folder that is removed",
    "fcmae/machine/memory.py": "asks the kernel, by a file of /proc",
    "fcmae/runs/checkpoints.py": "a folder of two files, with a checksum",
    "fcmae/runs/durable.py": "what the others go through",
    "fcmae/runs/events.py": "appends TensorBoard's events",
    "fcmae/runs/metrics.py": "appends lines, and repairs what a full disk cut",
    "fcmae/runs/folder.py": "the lock",
    "fcmae/studies/ablation/runner.py": "what a cell's process prints",
}
WRITERS = {"write_text", "write_bytes", "save_file", "savefig", "save", "savez", "savez_compressed"}
GIVEN = {"partial", "stream", "file"}  # by durable, in memory, or an open `partial`
RESULTS = {"found", "report"}  # of commands, whose `save` goes through durable


def opens_for_writing(source: str) -> list[int]:
    """Return the lines that write to another place than the one that durable gave."""

    def root(node: ast.expr) -> str:
        while isinstance(node, (ast.Attribute, ast.Call, ast.BinOp)):
            node = node.left if isinstance(node, ast.BinOp) else node
            node = node.func if isinstance(node, ast.Call) else node
            node = node.value if isinstance(node, ast.Attribute) else node
        return node.id if isinstance(node, ast.Name) else ""

    lines: list[int] = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else root(node.func)
        if name == "save" and isinstance(node.func, ast.Attribute) and root(node.func) in RESULTS:
            continue
        if name in WRITERS and root(node.func) != "self":  # checkpoints and logs, by their owners
            names = {root(argument) for argument in node.args}
            if isinstance(node.func, ast.Attribute):
                names.add(root(node.func))
            # write_text of durable is a plain function whose first argument is the place itself.
            is_durable = isinstance(node.func, ast.Name) and name in ("write_text", "write_bytes")
            if not is_durable and not names & GIVEN:
                lines.append(node.lineno)
        elif name == "open":
            words = [a.value for a in node.args if isinstance(a, ast.Constant)]
            writes = any(isinstance(w, str) and set(w) & set("wax+") and len(w) < 4 for w in words)
            if writes and root(node.func) not in GIVEN:
                lines.append(node.lineno)
    return lines


def test_files_leave_a_run_through_durable() -> None:
    found = {
        name: lines
        for name, source in SOURCES.items()
        if name.startswith("fcmae/") and not name.startswith("fcmae/minkowski_install/")
        if (lines := opens_for_writing(source)) and name not in OWN_WRITERS
    }
    assert found == {}
    assert opens_for_writing("with path.open('wb') as f: torch.save(state, path)") == [1, 1]
    assert opens_for_writing("path.write_text('a'); save_file(a, b)") == [1, 1]
    assert opens_for_writing("found.save(a); report.save(b)") == []
    assert opens_for_writing("found.savez(a); torch.save(found, path)") == [1, 1]
    assert opens_for_writing("with partial.open('wb') as file: np.savez(file)") == []
