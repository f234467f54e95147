"""`fcmae inspect` as a user runs it: the page, the configuration, and that a run takes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures_on_disk import write_pictures

from fcmae.__main__ import main
from fcmae.errors import DONE, MISTAKE
from fcmae.runs.metrics import read_metrics


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


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path, 2, side=20)
    assert main(["inspect", str(tmp_path / "gone")]) == MISTAKE
    assert "PATHS: " in capsys.readouterr().err
    assert main(["inspect", str(tmp_path), "--pixels", "0"]) == MISTAKE
    assert "--pixels: got 0, expected 1 or more" in capsys.readouterr().err
    where = ["--output", "/proc/no/page.html", "--workers", "0"]
    assert main(["inspect", str(tmp_path), *where]) == MISTAKE
    assert "--output: '/proc/no/page.html' cannot be written" in capsys.readouterr().err
