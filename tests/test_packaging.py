"""The wheel: complete, and of use outside the repository."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("fcmae", "sparse", "configs")
FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The wheel of a copy of the sources, since setuptools leaves a build folder in them."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / "source" / name)
    for name in FILES:
        shutil.copy(ROOT / name, folder / "source")
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('..'))"
    done = subprocess.run(
        [sys.executable, "-c", build],
        cwd=folder / "source",
        capture_output=True,
        text=True,
        check=True,
    )
    return folder / done.stdout.splitlines()[-1]


def test_the_wheel_holds_every_source_recipe_and_licence(wheel: pathlib.Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    sources = [
        file.relative_to(ROOT).as_posix()
        for package in ("fcmae", "sparse")
        for pattern in ("*.py", "*.c", "py.typed")
        for file in (ROOT / package).rglob(pattern)
    ]
    recipes = [f"fcmae/{f.relative_to(ROOT)}" for f in (ROOT / "configs").rglob("*.yaml")]
    assert {*sources, *recipes} <= held
    assert any(name.endswith("/licenses/LICENSE") for name in held)


def test_the_wheel_says_what_it_is(wheel: pathlib.Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    said = Parser().parsestr(archive.read(name).decode("utf-8"))
    version = (ROOT / "CHANGELOG.md").read_text("utf-8").partition("\n## ")[2].split()[0]
    assert said["Version"] == version
    for field in ("Summary", "License-File", "Requires-Python", "Project-URL", "Classifier"):
        assert said[field], field
    assert said["Description-Content-Type"] == "text/markdown"


def test_a_recipe_goes_by_its_name_outside_the_repository(
    wheel: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "fcmae", "pretrain", "--config", "quickstart", "--print_config"],
        cwd=tmp_path / "elsewhere",
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "path: elpv" in done.stdout
