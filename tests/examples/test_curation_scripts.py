"""The scripts that plant copies and odd pictures, and say how many were found."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from example_scripts import run_script
from PIL import Image
from tiny_run import make_run


def photographs(folder: Path, count: int, blob_px: int) -> Path:
    """Write pictures of soft blobs of one size, each of its own."""
    folder.mkdir()
    rng = np.random.default_rng(blob_px)
    for number in range(count):
        grid = rng.integers(0, 200, (120 // blob_px, 120 // blob_px), dtype=np.uint8)
        Image.fromarray(grid).resize((120, 120), Image.Resampling.BICUBIC).save(
            folder / f"{number}.png"
        )
    return folder


def test_planted_copies_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run")
    own = photographs(tmp_path / "own", 30, 12)
    odd = photographs(tmp_path / "other", 4, 60)
    arguments = [str(tmp_path / "run"), str(own), "--odd", str(odd), "--output"]
    more = ["--copies", "9", "--num_odd", "2", "--", "--workers", "0", "--threshold", "0.2"]
    run_script(monkeypatch, "planted_copies.py", *arguments, str(tmp_path / "out"), *more)
    told = capsys.readouterr().out
    found = re.findall(r"copies, (crop|bright|jpeg): (\d) of 3 ", told)
    assert [kind for kind, _ in found] == ["crop", "bright", "jpeg"]
    assert sum(int(count) for _, count in found) >= 6
    assert re.search(r"near duplicates in all: \d+, of which \d of \d+ ", told)
    assert re.search(r"odd: \d of 2 \(\d+ %\) of the planted ones", told)
    names = {file.name for file in (tmp_path / "out" / "images").iterdir()}
    assert len(names) == 30 + 9 + 2
    run_script(monkeypatch, "planted_copies.py", *arguments, str(tmp_path / "again"), *more)
    assert {file.name for file in (tmp_path / "again" / "images").iterdir()} == names


def test_features_alone_have_near_duplicates_and_outliers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 8)).astype(np.float32)
    features[7] = features[3] + 1e-3
    names = [f"{number}.png" for number in range(40)]
    np.savez(tmp_path / "features.npz", features=features, files=np.array(names))
    run_script(monkeypatch, "curate_features.py", tmp_path / "features.npz", "--threshold", 0.99)
    told = capsys.readouterr().out
    assert "near duplicates: 3.png, 7.png\n" in told
    assert "40 features: 1 near duplicates" in told


@pytest.mark.parametrize(
    "made", [3000, pytest.param(60_000, marks=pytest.mark.slow)], ids=["exactly", "in cells"]
)
def test_made_copies_and_outliers_are_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], made: int
) -> None:
    """The same command with 1,000,000 of width 320 is in docs/curation.md, with its figures."""
    # Of 128 numbers, two features of one heap have a cosine of 0.9 by chance now and then.
    run_script(monkeypatch, "curate_features.py", "--made", made, "--width", 320)
    told = capsys.readouterr().out
    copies, of_copies, others, odd, of_odd = (
        int(number.replace(",", ""))
        for number in re.findall(
            r"found ([\d,]+) of ([\d,]+) copies \(([\d,]+) other pairs\) and ([\d,]+) of ([\d,]+)",
            told,
        )[0]
    )
    assert copies >= 0.98 * of_copies
    assert others <= 0.1 * of_copies
    assert odd >= 0.9 * of_odd
