"""Kernels compiled on demand: cached, optional, and quiet where they cannot be had."""

from __future__ import annotations

import shutil
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
    compiler.load_kernels.cache_clear()
    yield tmp_path / "fcmae" / "kernels"
    compiler.load_kernels.cache_clear()


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler on this machine")
def test_a_library_is_built_once_for_each_dtype(cache: Path) -> None:
    assert compiler.load_kernels(torch.float32) is not None
    (library,) = cache.iterdir()
    built = library.stat().st_mtime_ns
    compiler.load_kernels.cache_clear()
    assert compiler.load_kernels(torch.float32) is not None
    assert library.stat().st_mtime_ns == built
    assert compiler.load_kernels(torch.float64) is not None
    assert len(list(cache.iterdir())) == 2


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
