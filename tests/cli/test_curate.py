"""`fcmae curate` as a user runs it: page, table, and lists that the next run takes."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from tiny_run import make_pictures, make_run

from fcmae.__main__ import main
from fcmae.data import open_images
from fcmae.errors import DONE, MISTAKE


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    make_run(folder)
    return folder


def curate(run: Path, images: Path, output: Path, *more: str) -> int:
    return main(["curate", str(run), str(images), "--output", str(output), "--workers", "0", *more])


def test_page_table_and_lists_are_written_and_taken_back(run: Path, tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "pictures", per_class=12)
    shutil.copy(pictures / "dark" / "3.png", pictures / "dark" / "copy.png")
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    output = tmp_path / "out"
    assert curate(run, pictures, output, "--label_first", "5") == DONE
    rows = list(csv.DictReader((output / "curation.csv").read_text().splitlines()))
    assert len(rows) == 25
    assert [row["duplicate_of"] for row in rows if row["duplicate_of"]] == [
        str(pictures / "dark" / "3.png")
    ]
    assert sorted(row["label_rank"] for row in rows if row["label_rank"]) == list("12345")
    assert all(float(row["reconstruction_loss"]) > 0 for row in rows)  # the run has a decoder
    worst = (output / "worst_reconstructions.txt").read_text().splitlines()
    assert {row["file"] for row in rows if row["is_worst"] == "1"} == set(worst)
    page = (output / "curation.html").read_text()
    assert "1 exact copies" in page
    assert "broken.png" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    left = open_images(str(pictures), exclude=str(output / "near_duplicates.txt"))
    assert str(pictures / "dark" / "copy.png") not in left.paths
    assert len(open_images(str(output / "label_first.txt"))) == 5
    again = tmp_path / "again"
    words = ["pretrain", "--run.dir", str(again), "--data.path", str(pictures), "--data.workers",
             "0", "--data.image_size", "64", "--data.in_chans", "1", "--model.name",
             "convnextv2_atto", "--model.decoder_dim", "8", "--train.steps", "1",
             "--train.batch_size", "4", "--log.tensorboard", "false", "--evaluate.draws", "0",
             "--data.exclude", str(output / "near_duplicates.txt"),
             "--data.max_skipped_share", "0.5"]  # fmt: skip
    assert main(words) == DONE
    trained_on = (again / "images.jsonl").read_text()
    assert "dark/3.png" in trained_on
    assert "copy.png" not in trained_on


def test_weights_without_a_decoder_have_no_losses_and_features_alone_may_decide(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = make_pictures(tmp_path / "pictures", per_class=4)
    weights = tmp_path / "encoder.safetensors"
    assert main(["export", str(run), "--output", str(weights)]) == DONE
    output = tmp_path / "out"
    assert curate(weights, pictures, output, "--threshold", "0.001", "--correlation", "0") == DONE
    rows = list(csv.DictReader((output / "curation.csv").read_text().splitlines()))
    assert {row["reconstruction_loss"] for row in rows} == {""}
    assert "These weights have no decoder" in (output / "curation.html").read_text()
    assert (output / "worst_reconstructions.txt").read_text() == ""
    assert "and of the pixels" not in capsys.readouterr().out
    copies = (output / "near_duplicates.txt").read_text().splitlines()
    assert len(copies) == sum(row["duplicate_of"] != "" for row in rows)
    assert copies  # different noise of one brightness, which only the pixels tell apart


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--threshold", "0"], "--threshold: got 0, expected more than 0 up to 1"),
        (["--label_first", "-1"], "--label_first: got -1, expected 0 or more"),
        (["--correlation", "1.5"], "--correlation: got 1.5, expected 0 to 1"),
        (["--output", "/proc/nowhere"], "cannot be made"),
    ],
)
def test_mistakes_are_one_sentence(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], expected: str
) -> None:
    pictures = make_pictures(tmp_path / "pictures")
    assert curate(run, pictures, tmp_path / "out", *more) == MISTAKE
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert expected in told
