"""What is said where MinkowskiEngine is missing or broken; needs no MinkowskiEngine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from backend_contract import small_convnext

from sparse import BackendUnavailableError, SparseConvNeXt
from sparse.backends.minkowski import load_minkowski_engine

ROOT = Path(__file__).parents[3]
COMPLETE = "SparseTensor = MinkowskiConvolution = MinkowskiLinear = object\n"


@pytest.fixture(autouse=True)
def _forget_the_engine() -> Iterator[None]:
    load_minkowski_engine.cache_clear()
    yield
    load_minkowski_engine.cache_clear()


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a MinkowskiEngine of the given source first on the path."""

    def install(text: str) -> None:
        (tmp_path / "MinkowskiEngine.py").write_text(text, encoding="utf-8")
        monkeypatch.setitem(sys.modules, "MinkowskiEngine", None)  # restored, even if absent now
        del sys.modules["MinkowskiEngine"]
        monkeypatch.syspath_prepend(str(tmp_path))

    return install


def test_missing_engine_says_how_to_install_it_and_what_works_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "MinkowskiEngine", None)
    with pytest.raises(
        BackendUnavailableError,
        match=r"is not installed\. Run `fcmae install-minkowski`, or use model\.backend=native",
    ):
        SparseConvNeXt(small_convnext(), backend="minkowski")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise OSError('libopenblas.so.0: no such file')", "OSError: libopenblas.so.0: no such"),
        ("import MinkowskiEngineBackend_is_gone", "No module named 'MinkowskiEngineBackend_is_"),
        ("x = 1", "has no SparseTensor"),
        ("def broken(:", "SyntaxError"),
    ],
)
def test_broken_engine_says_what_is_broken(
    pretend: Callable[[str], None], text: str, reason: str
) -> None:
    pretend(text)
    with pytest.raises(BackendUnavailableError, match="present but broken") as caught:
        SparseConvNeXt(small_convnext(), backend="minkowski")
    assert reason in str(caught.value)
    assert "`fcmae install-minkowski`" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_engine_of_old_imports_is_loaded_and_leaves_the_environment_alone(
    pretend: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    pretend(
        "import os, warnings\n"
        "from collections import Sequence\n"
        "warnings.warn('compiled with CPU_ONLY flag')\n"
        "os.environ['OMP_NUM_THREADS'] = '16'\n" + COMPLETE
    )
    assert load_minkowski_engine().Sequence is not None
    assert "OMP_NUM_THREADS" not in os.environ


def test_importing_sparse_does_not_import_the_engine(tmp_path: Path) -> None:
    (tmp_path / "MinkowskiEngine.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", "import sparse, sparse.backends.minkowski"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
