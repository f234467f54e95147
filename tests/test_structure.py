"""Architecture as tests: layers, sizes, names and documentation of the source files."""

from __future__ import annotations

import ast
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for package in ("fcmae", "sparse")
    for path in sorted((ROOT / package).rglob("*.py"))
}
SPARSE = {name: source for name, source in SOURCES.items() if name.startswith("sparse/")}
MAX_LINES = 400
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


def undocumented(source: str) -> list[str]:
    """Return the public modules, classes, functions and methods without a docstring."""
    missing: list[str] = []

    def visit(node: ast.Module | ast.ClassDef, prefix: str) -> None:
        for child in node.body:
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                if child.name.startswith("_"):
                    continue
                if ast.get_docstring(child) is None:
                    missing.append(prefix + child.name)
                if isinstance(child, ast.ClassDef):
                    visit(child, f"{prefix}{child.name}.")

    tree = ast.parse(source)
    if ast.get_docstring(tree) is None:
        missing.append("the module")
    visit(tree, "")
    return missing


def test_there_are_files_to_check() -> None:
    assert {"sparse/encoder.py", "sparse/native.py", "fcmae/model.py"} <= SOURCES.keys()
    assert "fcmae/model.py" not in SPARSE


def test_sparse_stands_alone_on_torch_and_timm() -> None:
    allowed = {"sparse", "torch", "timm", "MinkowskiEngine"} | sys.stdlib_module_names
    others = {name: imported_packages(source) - allowed for name, source in SPARSE.items()}
    assert {name: packages for name, packages in others.items() if packages} == {}


def test_one_file_alone_imports_minkowski_engine() -> None:
    importers = {name for name in SOURCES if "MinkowskiEngine" in imported_packages(SOURCES[name])}
    assert importers <= {"sparse/minkowski.py"}


def test_no_file_grows_beyond_what_is_read_in_one_sitting() -> None:
    lengths = {name: len(source.splitlines()) for name, source in SOURCES.items()}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_no_file_is_a_drawer_for_everything_else() -> None:
    assert {name for name in SOURCES if pathlib.Path(name).stem in DRAWERS} == set()


def test_every_public_name_is_documented() -> None:
    missing = {name: undocumented(source) for name, source in SOURCES.items()}
    assert {name: names for name, names in missing.items() if names} == {}


def test_module_docstrings_have_five_lines_or_fewer() -> None:
    docstrings = {name: ast.get_docstring(ast.parse(source)) for name, source in SOURCES.items()}
    assert {n for n, text in docstrings.items() if len((text or "").splitlines()) > 5} == set()


def test_source_is_ascii() -> None:
    assert {name for name, source in SOURCES.items() if not source.isascii()} == set()


def test_the_checks_see_what_they_should() -> None:
    assert imported_packages("def f():\n    import fcmae.model as m\n    from a.b import c") == {
        "fcmae",
        "a",
    }
    source = '"""Doc."""\nclass A:\n    """Doc."""\n    def b(self): ...\n    def _c(self): ...\n'
    assert undocumented(source) == ["A.b"]
    assert undocumented("def f(): ...") == ["the module", "f"]
