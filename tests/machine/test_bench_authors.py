"""Steps in turns with the authors' code, which a stub of a clone stands for."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcmae.__main__ import main
from fcmae.errors import DONE, MISTAKE
from fcmae.machine.bench import authors, roofline

MODEL = """
import torch
from MinkowskiEngine import MinkowskiDepthwiseConvolution

class Model(torch.nn.Module):
    def __init__(self, img_size, mask_ratio, norm_pix_loss):
        super().__init__()
        assert (img_size, norm_pix_loss) == (64, True)
        self.layer = torch.nn.Conv2d(3, 1, 1)

    def forward(self, images, mask_ratio):
        assert mask_ratio == 0.5
        return self.layer(images).square().mean(), None, None

convnextv2_atto = Model
"""


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder laid out as the repository is, and an engine without the layer of their fork."""
    monkeypatch.setattr(roofline, "SIDE", 256)  # of products that nobody looks at
    engine = types.ModuleType("MinkowskiEngine")
    engine.MinkowskiChannelwiseConvolution = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "MinkowskiEngine", engine)
    for module in ("fcmae.machine.bench.authors", "sparse.backends.minkowski"):
        monkeypatch.setattr(f"{module}.load_minkowski_engine", lambda: engine)
    before = set(sys.modules)
    models = tmp_path / "clone" / "models"
    models.mkdir(parents=True)
    (models / "fcmae.py").write_text(MODEL, encoding="ascii")
    yield models.parent
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "models":
            del sys.modules[name]


def options(tmp_path: Path, *others: str) -> list[str]:
    sizes = ["--image_size", "64", "--batch_size", "1", "--ratios", "[0.5]", "--repeats", "1"]
    sizes += ["--models", "[convnextv2_atto]", "--backends", "[native]", "--threads", "0"]
    return ["bench", *sizes, "--memory", "false", "--output", str(tmp_path / "out"), *others]


def test_our_step_is_given_in_units_of_the_authors(
    clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = list(sys.path)
    assert main(options(tmp_path, "--against", "authors", str(clone))) == DONE
    assert sys.path == path
    shown = capsys.readouterr().out
    assert "step: 2 contenders" in shown
    assert "(authors)" in shown
    results = json.loads((tmp_path / "out/results.json").read_text())["results"]
    assert [r["subject"]["contender"] for r in results] == ["native", "authors"]
    assert [r["partner"] for r in results] == ["authors", None]
    ours, theirs = (r["times"]["rounds"][0] for r in results)
    assert results[0]["versus"] == pytest.approx(ours / theirs)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["authors", "nowhere"], "'nowhere' has no models/fcmae.py; name a clone of"),
        (["authors"], "got 'authors ', expected authors FOLDER"),
        (["others", "x"], "got 'others x', expected authors FOLDER"),
        (["authors", "CLONE", "--parts", "[forward]"], 'say --parts "[step]"'),
        (["authors", "CLONE", "--models", "[convnext_atto]"], "has no 'convnext_atto'"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str],
    message: str,
    clone: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(clone) if word == "CLONE" else word for word in words]
    assert main(options(tmp_path, "--against", *words)) == MISTAKE
    assert message in capsys.readouterr().err


def test_a_clone_that_cannot_be_imported_is_one_sentence(
    clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clone / "models/fcmae.py").write_text("import nothing_of_that_name", encoding="ascii")
    assert main(options(tmp_path, "--against", "authors", str(clone))) == MISTAKE
    assert "cannot be imported (ModuleNotFoundError" in capsys.readouterr().err
    assert authors.NAME == "authors"
