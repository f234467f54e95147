"""`fcmae inspect` as a user runs it: the page, the configuration, and that a run takes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from format_cases import CASES
from pictures_on_disk import write_pictures

from fcmae.__main__ import main
from fcmae.errors import DONE, MISTAKE
from fcmae.runs.metrics import read_metrics
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.reading import load


def test_the_page_says_what_is_there_and_the_configuration_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed in (("left", 1), ("right", 2)):
        write_pictures(tmp_path / "set" / name, 12, seed=seed)
    (tmp_path / "set" / "notes.txt").touch()
    (tmp_path / "set" / "left" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    first = tmp_path / "set" / "left" / "picture-000.png"
    (tmp_path / "set" / "right" / "copy.png").write_bytes(first.read_bytes())
    monkeypatch.chdir(tmp_path)
    arguments = ["--write", "my.yaml", "--output", "page.html", "--workers", "0"]
    assert main(["inspect", "set", *arguments]) == DONE
    said = capsys.readouterr().out
    assert "27 files: 25 used, 1 skipped with a reason, 1 no images (1 .txt)." in said
    assert "1 files are exact copies of others." in said
    assert "next: fcmae pretrain --config my.yaml" in said
    page = (tmp_path / "page.html").read_text()
    for text in (
        "Contact sheet",
        "broken.png",
        "copy.png",
        "left",
        "image/png;base64,",
        "0 is black",
    ):
        assert text in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("https://www.w3.org", "")
    short = ["--train.epochs", "null", "--train.steps", "2", "--train.device", "cpu"]
    small = ["--model.decoder_dim", "8", "--evaluate.labels", "4", "--data.workers", "0"]
    assert main(["pretrain", "--config", "my.yaml", *short, *small]) == DONE
    assert read_metrics(tmp_path / "runs" / "my" / "metrics.jsonl")[-1]["step"] == 2


def test_a_folder_of_rubbish_is_accounted_for_and_its_configuration_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures of every kind that is known, and files that are none, without a suffix."""
    monkeypatch.chdir(tmp_path)
    Path("set").mkdir()
    for number, case in enumerate(CASES):
        Path("set", f"file {number}").write_bytes(case.make())
    rubbish = {
        "empty": b"",
        "noise": bytes(range(256)) * 9,
        "notes.txt": b"of somebody",
        "table.csv": b"a,b\n1,2\n",
        "page.html": b"<html></html>",
        "cut.png": CASES[0].make()[:60],
        "cut.tif": b"II*\0 more",
        "cut.jpg": b"\xff\xd8\xff\xe0 more",
        "no array.npy": b"\x93NUMPY\x01\x00",
        "archive.tar": b"",
        ".hidden.png": b"\x89PNG\r\n\x1a\n",
    }
    for name, content in rubbish.items():
        Path("set", name).write_bytes(content)
    Path("set", "dangling.png").symlink_to("nowhere.png")
    kinds = {(case.format, case.depth) for case in CASES}
    assert len(kinds) + len(rubbish) >= 30
    arguments = ["--write", "my.yaml", "--output", "page.html", "--workers", "0"]
    assert main(["inspect", "set", *arguments]) == DONE
    said = " ".join(capsys.readouterr().out.split())
    found = re.match(
        r"([\d,]+) files: ([\d,]+) used, ([\d,]+) skipped with a reason, ([\d,]+) no images", said
    )
    assert found is not None, said
    files, *parts = (int(number.replace(",", "")) for number in found.groups())
    assert files == len(CASES) + len(rubbish) + 1
    assert sum(parts) == files
    page = Path("page.html").read_text(encoding="utf-8")
    for name in ("cut.png", "cut.tif", "cut.jpg", "no array.npy", "dangling.png"):
        assert name in page
    assert load(PretrainConfig, Path("my.yaml")).data.path == str(tmp_path / "set")


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path, 2, side=20)
    assert main(["inspect", str(tmp_path / "gone")]) == MISTAKE
    assert "PATHS: " in capsys.readouterr().err
    assert main(["inspect", str(tmp_path), "--pixels", "0"]) == MISTAKE
    assert "--pixels: got 0, expected 1 or more" in capsys.readouterr().err
    where = ["--output", "/proc/no/page.html", "--workers", "0"]
    assert main(["inspect", str(tmp_path), *where]) == MISTAKE
    assert "--output: '/proc/no/page.html' cannot be written" in capsys.readouterr().err
