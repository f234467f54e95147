"""Segmentation from two starts: the same images, an honest sentence, and going on after a stop."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from masked_pictures import segment_arguments, write_pairs
from PIL import Image

from fcmae.__main__ import main
from fcmae.data import ImageList
from fcmae.errors import DONE
from fcmae.evaluation.segmentation import SegmentationScores
from fcmae.reports.mask_comparison import mask_comparison_report
from fcmae.settings.reading import parse
from fcmae.settings.segmentation import SegmentationConfig
from fcmae.settings.tasks import load_finetuning_settings, task_settings
from fcmae.studies.mask_comparison import MaskComparison, draw_images


def scores(right: int) -> SegmentationScores:
    """Return the scores of an image of 100 pixels of two classes, of which so many are right."""
    matrix = torch.tensor([[right // 2, 50 - right // 2], [50 - right // 2, right // 2]])
    return SegmentationScores.of_images([matrix], [1.0])


def compared(pretrained: list[int], scratch: list[int]) -> MaskComparison:
    pairs = {"pretrained": pretrained, "from scratch": scratch}
    by_start = {name: {n: scores(v) for n, v in enumerate(vs)} for name, vs in pairs.items()}
    return MaskComparison({100.0: by_start}, {100.0: 12}, ("ground", "thing"), 7)


def test_the_sentence_says_what_the_interval_allows() -> None:
    assert "pretraining helps by" in compared([90, 92, 90], [60, 62, 58]).sentence()
    assert "pretraining hurts by" in compared([60, 62, 58], [90, 92, 90]).sentence()
    noise = compared([60, 90, 70], [88, 62, 72])
    assert "makes no difference beyond noise at 12 images" in noise.sentence()
    lines = noise.text().splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["ground", "thing", "mean"]


def test_shares_of_the_images_are_nested_and_fill_a_batch() -> None:
    images = ImageList([f"{n}.png" for n in range(40)])
    few, more = (draw_images(images, share, 3, 8) for share in (5, 50))
    assert (len(set(few.paths)), len(few)) == (2, 8)
    assert len(more) == 20
    assert set(few.paths) < set(more.paths)
    assert set(draw_images(images, 50, 4, 8).paths) != set(more.paths)


def test_the_page_has_every_score_and_the_same_pictures_from_both_starts(tmp_path: Path) -> None:
    words = segment_arguments(
        tmp_path, tmp_path / "run", model__weights="mine", optim__layer_decay=0.9
    )
    _, words = task_settings(words[1:])
    config = parse(SegmentationConfig, words, prog="test")
    for start in ("pretrained", "from-scratch"):
        drawn = tmp_path / "run" / f"{start}-0" / "predictions"
        drawn.mkdir(parents=True)
        for step in (2, 7):
            Image.new("RGB", (8, 8), (step, 0, 0)).save(drawn / f"step-{step:06d}.png")
    found = compared([90, 92, 90], [60, 62, 58])
    mask_comparison_report(found, config).save(config.run.dir)
    page = (tmp_path / "run" / "report.md").read_text()
    assert found.sentence() in page
    for name in ("pretrained", "from-scratch"):
        shown = tmp_path / "run" / "report_pictures" / f"{name}.png"
        assert f"report_pictures/{name}.png" in page
        with Image.open(shown) as picture:
            assert picture.getpixel((0, 0)) == (7, 0, 0)
    assert (tmp_path / "run" / "report.html").read_text().count("data:image/png") == 2
    with (tmp_path / "run" / "report.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == (2 + 1) * 2 * 3  # classes and their mean, starts, seeds
    means = [row["iou_percent"] for row in rows if row["class"] == "mean"]
    assert float(means[0]) == pytest.approx(100 * scores(90).mean_iou, abs=1e-3)


def test_both_starts_are_trained_on_the_same_images_and_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pairs(tmp_path / "data", 10)
    assert main(segment_arguments(data, tmp_path / "first", train__steps=2)) == DONE
    words = segment_arguments(
        data, tmp_path / "run", compare__scratch="true", model__weights=tmp_path / "first",
        train__steps=1,
    )  # fmt: skip
    assert main(words) == DONE
    said = capsys.readouterr().out
    assert "After 1 steps, compared with training from scratch, pretraining" in said
    text = (tmp_path / "run" / "comparison.txt").read_text()
    assert text in said
    for seed in range(3):
        lists = [
            (tmp_path / "run" / f"{start}-{seed}" / name).read_text()
            for name in ("images.jsonl", "validation.jsonl")
            for start in ("pretrained", "from-scratch")
        ]
        assert lists[0] == lists[1]
        assert lists[2] == lists[3]
    scratch = load_finetuning_settings(tmp_path / "run/from-scratch-0/config.yaml")
    assert scratch.model.weights is None
    assert main(words) == DONE  # all runs are there: nothing is trained
    assert (tmp_path / "run" / "comparison.txt").read_text() == text


def test_compare_takes_shares_of_the_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pairs(tmp_path / "data", 10)
    assert main(segment_arguments(data, tmp_path / "first", train__steps=1)) == DONE
    words = segment_arguments(
        data, tmp_path / "run", model__weights=tmp_path / "first", train__steps=1
    )
    command = ["compare", *words[1:]]
    capsys.readouterr()
    assert main([*command, "--shares", "[25, 100]"]) == DONE
    said = capsys.readouterr().out
    assert "2 labelled images, IoU in %" in said
    assert "7 labelled images, IoU in %" in said
    assert "After 1 steps, compared with training from scratch, pretraining" in said
    assert (tmp_path / "run" / "labels-25" / "pretrained-1" / "config.yaml").is_file()
    page = (tmp_path / "run" / "report.md").read_text()
    assert next(line for line in said.splitlines() if line.startswith("After 1 steps")) in page
    assert "7 (100 %)" in page
    assert main([*command, "--shares", "[0]"]) == 2
    assert "--shares: got [0]" in capsys.readouterr().err
    assert main([*command, "--against", "other"]) == 2
    assert "from scratch only" in capsys.readouterr().err
