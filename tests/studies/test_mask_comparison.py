"""Segmentation from two starts: the same images, an honest sentence, and going on after a stop."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from example_scripts import INFO
from masked_pictures import segment_arguments, write_pairs
from PIL import Image
from speck import SPECK
from tiny_run import make_run

from fcmae.__main__ import main
from fcmae.data import ImageList
from fcmae.errors import DONE, INTERRUPTED, MISTAKE
from fcmae.evaluation.segmentation import SegmentationScores
from fcmae.reports.mask_comparison import mask_comparison_report
from fcmae.settings.reading import parse
from fcmae.settings.segmentation import SegmentationConfig
from fcmae.settings.tasks import load_finetuning_settings, task_settings
from fcmae.studies.mask_comparison import MaskComparison, draw_images
from fcmae.training.loop import TrainingLoop
from fcmae.weights.export import export

pytestmark = pytest.mark.usefixtures("undrawn")


def scores(right: int) -> SegmentationScores:
    """Return the scores of an image of 100 pixels of two classes, of which so many are right."""
    matrix = torch.tensor([[right // 2, 50 - right // 2], [50 - right // 2, right // 2]])
    return SegmentationScores.of_images([matrix], [1.0])


def compared(pretrained: list[int], scratch: list[int]) -> MaskComparison:
    pairs = {"pretrained": pretrained, "from scratch": scratch}
    by_start = {name: {n: scores(v) for n, v in enumerate(vs)} for name, vs in pairs.items()}
    return MaskComparison(
        results={100.0: by_start}, num_labels={100.0: 12}, classes=("ground", "thing"), steps=7
    )


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
    settled = {"optim__layer_decay": 0.9, "compare__scratch_base_lr": "null"}
    words = segment_arguments(tmp_path, tmp_path / "run", model__weights="mine", **settled)
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


def named(**right: list[int]) -> MaskComparison:
    """Named starts of which these pixels of a hundred are right, a seed each."""
    by_start = {name: {n: scores(v) for n, v in enumerate(vs)} for name, vs in right.items()}
    found = MaskComparison(
        results={100.0: by_start}, num_labels={100.0: 12}, classes=("ground", "thing"), steps=7
    )
    found.starts, found.are_named = tuple(right), True
    found.pretraining_seconds = {"scratch": 0.0, "public": None, "own": 300.4}
    found.seconds = {100.0: {"scratch": {0: 20.0, 1: 21.0, 2: 90.0}, "public": {}, "own": {}}}
    return found


def test_each_pair_of_named_starts_beyond_noise_has_its_sentence_and_costs_stand_beside() -> None:
    found = named(scratch=[60, 62, 58], public=[90, 94, 88], own=[90, 92, 90])
    said = found.sentences()
    assert [sentence.split(" by ")[0] for sentence in said[:2]] == [
        "Mean IoU with 12 images: public beats scratch",
        "Mean IoU with 12 images: own beats scratch",
    ]
    assert said[2].startswith("Mean IoU with 12 images: no difference beyond noise (own less pub")
    assert len(said) == 3
    lines = found.text().splitlines()
    assert lines[0].split("  ")[-2:] == ["s of pretraining", "s of a fine-tuning"]
    assert [line.split()[-2:] for line in lines[1:4]] == [["0", "21"], ["-", "-"], ["300", "-"]]
    assert lines[6].split() == ["scratch", "public", "own"]
    assert [line.split()[0] for line in lines[7:10]] == ["ground", "thing", "mean"]
    assert "pairs of a row of the table together (Bonferroni)" in lines[-1]


def test_a_start_alone_has_the_interval_of_its_own_seeds() -> None:
    found = named(scratch=[60, 60, 60], own=[40, 90, 60])
    assert "+- 0.0" in found.means(100.0)["scratch"].text()
    assert found.means(100.0)["own"].half_width != found.means(100.0)["scratch"].half_width


def write_encoder(file: Path, **changes: object) -> str:
    """Export a small encoder of grey pictures into a file that says what it is; return its name."""
    info = dataclasses.replace(INFO, **{"model_name": SPECK, "in_chans": 1, **changes})
    export(info.create_model(), "timm", file, info)
    return str(file)


def start_words(tmp_path: Path, starts: dict[str, str | None], **changes: object) -> list[str]:
    """Return the words of a comparison of masks from named starts, behind the command's name."""
    data = write_pairs(tmp_path / "data", 6)
    settings = {"train__steps": 1, "log__every_steps": 1, "data__in_chans": 1, **changes}
    words = segment_arguments(data, tmp_path / "run", **settings)
    return [*words[1:], "--compare.starts", json.dumps(starts)]


def test_three_named_starts_give_three_columns_every_pair_and_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = write_encoder(tmp_path / "one.safetensors")
    other = write_encoder(tmp_path / "two.safetensors", mean=(0.4,))
    starts = {"scratch": None, "own": own, "own again": other}
    words = start_words(tmp_path, starts, model__name="auto", train__steps=2)
    named_words = ["compare", *words[:-2], "--starts", words[-1], "--shares", "[100]"]
    assert main(named_words) == DONE
    shown = capsys.readouterr().out
    folders = {path.parent.name for path in (tmp_path / "run").glob("*/config.yaml")}
    assert folders == {f"{n}-{s}" for n in ("scratch", "own", "own-again") for s in range(3)}
    settings = {
        name: load_finetuning_settings(tmp_path / "run" / f"{name}-0" / "config.yaml")
        for name in ("scratch", "own", "own-again")
    }
    assert [one.model.weights for one in settings.values()] == list(starts.values())
    assert {one.model.name for one in settings.values()} == {SPECK}
    # Each is fed as its own weights know pictures; the one without weights as the first with them.
    fed = [(one.data.mean, one.data.std) for one in settings.values()]
    assert fed[0] == fed[1] == ([0.5], [0.2])
    assert fed[2] == ([0.4], [0.2])
    with (tmp_path / "run" / "report.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["start"] for row in rows} == set(starts)
    page = (tmp_path / "run" / "report.md").read_text()
    assert "| IoU in % of | pictures | scratch | own | own again |" in page
    assert "| start | mean IoU, 4 images | s of pretraining | s of a fine-tuning |" in page
    costs = [line.split(" | ")[-2:] for line in page.splitlines() if line.startswith("| scratch |")]
    assert costs[0][0] == "0"
    assert costs[0][1].removesuffix(" |").isdigit()  # was measured
    for pair in ("own less scratch", "own again less scratch", "own again less own"):
        assert f"| {pair} |" in page
    assert (tmp_path / "run" / "report_pictures" / "pairs.svg").stat().st_size > 5000
    written = (tmp_path / "run" / "comparison.txt").read_text()
    assert written in shown
    said = [line for line in written.splitlines() if line.startswith("Mean IoU with 4 images: ")]
    assert said
    assert all(sentence in page for sentence in said)


def test_a_start_that_does_not_fit_is_one_sentence_before_any_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "fine", name=SPECK, stem_stride=2)
    good = write_encoder(tmp_path / "good.safetensors")
    other = write_encoder(tmp_path / "other.safetensors", model_name="convnextv2_atto")
    colours = write_encoder(
        tmp_path / "colours.safetensors", in_chans=3, mean=(0.5,) * 3, std=(0.2,) * 3
    )
    for bad, said in (
        (str(tmp_path / "fine"), "has a stem of stride 2, expected 4"),
        (other, "does not fit the model"),
        (colours, "made for 3 channels, and data.in_chans is 1"),
        (str(tmp_path / "absent"), "does not exist"),
    ):
        for starts in ({"good": good, "mine": bad}, {"mine": bad, "good": good}):
            words = start_words(tmp_path, {"scratch": None, **starts})
            assert main(["finetune", *words]) == MISTAKE
            lines = capsys.readouterr().err.strip().splitlines()
            assert lines[-1].count("compare.starts, mine: ") == 1
            assert said in lines[-1]
            assert not (tmp_path / "run").exists()


def test_a_stopped_comparison_of_named_starts_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "one", name=SPECK)
    words = start_words(tmp_path, {"own": str(tmp_path / "one"), "none": None})
    begun, run = [], TrainingLoop.run

    def stop_at_the_third(loop: TrainingLoop) -> str | None:
        begun.append(loop.folder.path.name)
        return "SIGTERM" if len(begun) == 3 else run(loop)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "run", stop_at_the_third)
        assert main(["finetune", *words]) == INTERRUPTED
    assert begun == ["own-0", "none-0", "own-1"]
    assert not (tmp_path / "run" / "comparison.txt").exists()
    kept = (tmp_path / "run" / "own-0" / "metrics.jsonl").read_bytes()
    assert main(["finetune", *words]) == DONE
    assert (tmp_path / "run" / "own-0" / "metrics.jsonl").read_bytes() == kept
    written = (tmp_path / "run" / "comparison.txt").read_text()
    assert written in capsys.readouterr().out
    assert "none less own" in written or " beats " in written
