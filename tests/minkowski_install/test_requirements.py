"""What the installer of MinkowskiEngine changes in its sources, and asks of the machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fcmae.__main__ import main
from fcmae.minkowski_install import machine
from fcmae.minkowski_install.child import InstallError, MissingToolsError
from fcmae.minkowski_install.edits import EDITS, Edit, apply_edits, hash_of_edits
from fcmae.minkowski_install.machine import Target

TARGET = Target("2.0.0+cpu", "cpython-310-linux-x86_64")


# edits


def write_anchors(folder: Path) -> None:
    """Write files that hold the anchors of all edits, as the real sources do."""
    for edit in EDITS:
        path = folder / edit.file
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"before\n{edit.old}\nafter\n")


def test_edits_replace_their_anchors_and_nothing_else(tmp_path: Path) -> None:
    write_anchors(tmp_path)
    before = {edit.file: (tmp_path / edit.file).read_text(encoding="utf-8") for edit in EDITS}
    apply_edits(tmp_path)
    for file, text in before.items():
        for edit in EDITS:
            if edit.file == file:
                text = text.replace(edit.old, edit.new)
        assert (tmp_path / file).read_text(encoding="utf-8") == text


@pytest.mark.parametrize("times", [0, 2])
def test_an_edit_whose_anchor_is_not_there_once_is_refused(tmp_path: Path, times: int) -> None:
    (tmp_path / "a.py").write_text("import x\n" * times, encoding="utf-8")
    edit = Edit("a.py", "import x\n", "import y\n", "a test")
    with pytest.raises(InstallError, match=rf"a.py: 'import x' stands there {times} times"):
        apply_edits(tmp_path, (edit,))


def test_an_edit_of_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match=r"setup.py: .*0 times.*not the sources of Minkowski"):
        apply_edits(tmp_path)


def test_hash_of_edits_follows_the_changes_and_not_the_reasons() -> None:
    edit = Edit("a.py", "x", "y", "because")
    assert hash_of_edits((edit,)) == hash_of_edits((replace(edit, reason="another"),))
    for change in ({"file": "b.py"}, {"old": "z"}, {"new": "z"}):
        assert hash_of_edits((edit,)) != hash_of_edits((replace(edit, **change),))


# machine


def program(folder: Path, name: str, body: str = "exit 0") -> Path:
    """Write an executable shell script."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose only programs are those in the folder returned."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("CONDA_PREFIX", str(tmp_path / "conda"))
    find = importlib.util.find_spec  # uv's environments have no pip
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: find("pytest" if name == "pip" else name)
    )
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path


def test_missing_tools_are_all_named_with_their_packages(bare: Path) -> None:
    with pytest.raises(MissingToolsError) as caught:
        machine.find_tools(TARGET)
    message = str(caught.value)
    assert "a C++ compiler (Debian: g++; conda: gxx)" in message
    assert "`apt-get install g++" in message
    assert "`conda install -c conda-forge gxx" in message
    assert "model.backend=native" in message


def test_missing_blas_headers_are_named_with_their_packages(bare: Path) -> None:
    program(bare, "g++", "exit 1")
    program(bare, "ninja")
    with pytest.raises(MissingToolsError, match=r"cblas.h\) \(Debian: libopenblas-dev; conda: op"):
        machine.find_tools(TARGET)


def test_the_cuda_compiler_is_asked_for_only_where_cuda_is_the_target(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(bare, "g++")
    program(bare, "ninja")
    cuda = replace(TARGET, cuda="CUDA 13.0 for 8.0")
    monkeypatch.setenv("CUDA_HOME", str(bare / "cuda"))
    machine.find_tools(TARGET)
    with pytest.raises(MissingToolsError, match=r"nvcc\) \(Debian: nvidia-cuda-toolkit; conda: cu"):
        machine.find_tools(cuda)
    (bare / "cuda" / "bin").mkdir(parents=True)
    program(bare / "cuda" / "bin", "nvcc")
    machine.find_tools(cuda)


def test_the_cuda_toolkit_is_that_of_the_nvcc_on_the_path(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    (bare / "bin").mkdir()
    program(bare / "bin", "nvcc")
    assert machine.find_cuda_home(str(bare / "bin")) == bare


def test_the_compiler_is_asked_where_blas_is(bare: Path) -> None:
    conda = bare / "conda"
    compiler = program(bare, "g++", f'case "$*" in *-I{conda}/include*) exit 0;; esac; exit 1')
    program(bare, "ninja")
    (conda / "include").mkdir(parents=True)
    (conda / "include" / "cblas.h").touch()
    tools = machine.find_tools(TARGET)
    assert tools.compiler == str(compiler)
    assert (tools.include, tools.library) == (conda / "include", conda / "lib")


def test_cxx_names_the_compiler(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("g++", "my-compiler", "ninja"):
        program(bare, name)
    monkeypatch.setenv("CXX", "my-compiler")
    assert machine.find_tools(TARGET).compiler == str(bare / "my-compiler")


def test_target_is_cuda_only_where_a_gpu_is_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert machine.find_target("auto").cuda == ""
    with pytest.raises(MissingToolsError, match=r"sees no GPU here.*TORCH_CUDA_ARCH_LIST"):
        machine.find_target("cuda")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    assert machine.find_target("cuda").cuda == "CUDA 13.0 for 9.0"
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: (8 + i, 0))
    assert machine.find_target("cpu").cuda == ""
    assert machine.find_target("auto").cuda == "CUDA 13.0 for 8.0;9.0"


def test_cuda_with_a_torch_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(MissingToolsError, match=r"--device cuda: .*without CUDA.*--device cpu"):
        machine.find_target("cuda")


@pytest.mark.parametrize(
    ("version", "has_wheel", "has_ninja", "expected"),
    [
        ("77.0.3", False, True, ()),
        ("70.0.0", False, True, ("wheel",)),
        ("65.5.1", True, False, ("ninja",)),
        (None, False, False, ("setuptools>=70.1", "ninja")),
    ],
)
def test_python_packages_that_the_build_lacks_are_named(
    bare: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: str | None,
    has_wheel: bool,
    has_ninja: bool,
    expected: tuple[str, ...],
) -> None:
    def version_of(name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", version_of)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: has_wheel or None)
    if has_ninja:
        program(bare, "ninja")
    assert machine.missing_packages(str(bare)) == expected


def test_missing_tools_are_exit_status_2(
    tmp_path: Path, bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["install-minkowski", "--cache", str(tmp_path), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fcmae: error: MinkowskiEngine cannot be built here, missing: ")
    assert error.count("\n") == 1
