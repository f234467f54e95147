"""Kernels compiled on demand: cached, optional, and quiet where they cannot be had."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sparse.ops import compiler


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and no memory of what was loaded before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FCMAE_COMPILED", raising=False)
    compiler.forget_kernels()
    yield tmp_path / "fcmae" / "kernels"
    compiler.forget_kernels()


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler on this machine")
def test_a_library_is_built_once_for_each_dtype(cache: Path) -> None:
    assert compiler.load_kernels(torch.float32) is not None
    (library,) = cache.glob("*.so")
    built = library.stat().st_mtime_ns
    compiler.forget_kernels()
    assert compiler.load_kernels(torch.float32) is not None
    assert library.stat().st_mtime_ns == built
    assert compiler.load_kernels(torch.float64) is not None
    assert len(list(cache.glob("*.so"))) == 2


def test_other_dtypes_have_no_kernels(cache: Path) -> None:
    assert compiler.load_kernels(torch.bfloat16) is None
    assert not cache.exists()


def test_the_switch_in_the_environment_turns_kernels_off(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FCMAE_COMPILED", "0")
    assert compiler.load_kernels(torch.float32) is None
    assert not cache.exists()


def test_a_machine_without_compiler_has_no_kernels(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert compiler.load_kernels(torch.float32) is None
    assert not cache.exists()


def test_a_compiler_that_fails_leaves_no_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    assert compiler.load_kernels(torch.float32) is None
    assert list(cache.iterdir()) == []


def test_a_cache_folder_that_cannot_be_made_means_no_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compiler.load_kernels(torch.float32) is None


needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")


@needs_compiler
def test_a_compiler_may_have_arguments(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "env cc")  # as "ccache gcc" has
    assert compiler.load_kernels(torch.float32) is not None
    assert compiler.missing_kernels() is None


@needs_compiler
def test_a_truncated_library_is_built_again(cache: Path) -> None:
    assert compiler.load_kernels(torch.float32) is not None
    (library,) = cache.glob("*.so")
    content = library.read_bytes()
    library.unlink()  # the loaded one stays as it is
    library.write_bytes(content[: len(content) // 2])
    compiler.forget_kernels()
    assert compiler.load_kernels(torch.float32) is not None
    assert library.read_bytes() == content


@needs_compiler
def test_another_compiler_of_the_same_name_builds_anew(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "mycc"
    monkeypatch.setenv("CC", str(program))
    for version in ("1", "2"):
        program.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && echo {version} && exit\nexec cc "$@"\n'
        )
        program.chmod(0o755)
        compiler.forget_kernels()
        assert compiler.load_kernels(torch.float32) is not None
    assert len(list(cache.glob("*.so"))) == 2


@pytest.mark.parametrize("error", [RuntimeError("no home"), KeyError("uid 4242")])
def test_a_user_without_name_and_home_has_kernels_or_none_and_no_traceback(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise error

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    has_compiler = shutil.which("cc") is not None
    assert (compiler.load_kernels(torch.float32) is not None) == has_compiler
    (folder,) = tmp_path.glob("fcmae-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)  # anybody could put a library there
    compiler.forget_kernels()
    assert compiler.load_kernels(torch.float32) is None
    assert "is open to others" in str(compiler.missing_kernels())


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("FCMAE_COMPILED", "0", "FCMAE_COMPILED=0 switches them off"),
        ("CC", "no-such-compiler", "there is no C compiler 'no-such-compiler'"),
        ("CC", "'unclosed", "there is no C compiler"),
        ("CC", "false", "'false' failed"),
    ],
)
def test_why_there_are_no_kernels_is_known(
    name: str, value: str, why: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert compiler.load_kernels(torch.float32) is None
    assert why in str(compiler.missing_kernels())
