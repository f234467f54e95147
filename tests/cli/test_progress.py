"""Exports and searches for near duplicates say how far they are, where they take their time."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from speck import SPECK
from tiny_graph import write_tiny_graph
from tiny_run import make_run

from fcmae.__main__ import main
from fcmae.data.perceptual_hash import Fingerprint, near_duplicates
from fcmae.errors import DONE
from fcmae.evaluation import neighbours
from fcmae.runs import plain_lines


@pytest.fixture(autouse=True)
def everything_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first thing that is done be told, as after two seconds."""
    monkeypatch.setattr(plain_lines, "FIRST_SECONDS", 0.0)


@pytest.mark.parametrize("to", ["timm", "timm-folder", "huggingface", "authors-fcmae"])
def test_an_export_tells_when_it_has_read_and_goes_on_to_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    if to == "huggingface":
        pytest.importorskip("transformers")
    make_run(tmp_path / "run", name=SPECK)
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run"), "--to", to]) == DONE
    said = capsys.readouterr().err
    assert re.search(rf"^fcmae: {to}: 1 of 2 steps \(50 %\) in .+, about", said, re.M), said


def test_an_export_to_onnx_tells_of_tracing_checking_and_comparing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    write_tiny_graph(tmp_path / "graph.onnx")
    said = capsys.readouterr().err
    assert re.search(r"^fcmae: ONNX: 1 of 5 steps \(20 %\) in .+, about", said, re.M), said
    assert re.search(r"^fcmae: ONNX: 5 of 5 steps \(100 %\) in .+\.$", said, re.M), said


def test_the_search_for_near_duplicates_tells_how_far_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rng = np.random.default_rng(0)
    prints = [Fingerprint(int(rng.integers(8)) << 40, number << 30) for number in range(40)]
    assert near_duplicates(prints)
    assert re.match(r"fcmae: near duplicates: 1 of \d+ buckets", capsys.readouterr().err)


def test_clustering_many_features_tells_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(neighbours, "EXACT_BELOW", 100)
    monkeypatch.setattr(neighbours, "ADDED", 1000)
    features = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))
    found = neighbours.nearest_neighbours(neighbours.centred(features), 3)
    assert not found.is_exact
    said = capsys.readouterr().err
    assert re.search(r"^fcmae: clustering: 1 of 4 steps \(25 %\)", said, re.M), said
