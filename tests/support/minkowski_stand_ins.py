"""Stand-ins for what the installer of MinkowskiEngine needs network, compiler and pip for."""

from __future__ import annotations

import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from fcmae.minkowski_install import installation
from fcmae.minkowski_install.machine import Tools


def tarball(path: Path, files: dict[str, str]) -> Path:
    """Write a .tar.gz of `files`."""
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def write_wheel(path: Path) -> Path:
    """Write a small zip file under the name of a wheel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("module.py", "x = 1\n" * 500)
    return path


def use(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Take the stand-ins; return the list in which they record their order."""
    done: list[str] = []

    def build(folder: Path, *_: object) -> Path:
        done.append("build")
        return write_wheel(folder / "dist" / "me-0.5.4.whl")

    def fetch(folder: Path) -> Path:
        done.append("fetch")
        return tarball(folder / "me.tar.gz", {"me/setup.py": ""})

    def run_module(name: str) -> subprocess.CompletedProcess[str]:
        done.append(name)
        return subprocess.CompletedProcess([], 0, "7x7: passed\n", "")

    monkeypatch.setattr(installation, "find_tools", lambda _: Tools("/bin/g++"))
    monkeypatch.setattr(installation, "fetch_source", fetch)
    monkeypatch.setattr(installation, "apply_edits", lambda _: done.append("edit"))
    monkeypatch.setattr(installation, "build_wheel", build)
    monkeypatch.setattr(installation, "install_wheel", lambda w: done.append(f"install {w.name}"))
    monkeypatch.setattr(installation, "run_module", run_module)
    return done
