"""`fcmae compare`: fair draws of labels, one sentence that agrees with the figures, mistakes."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures_on_disk import write_pictures
from speck import SPECK
from tiny_run import make_run

from fcmae.__main__ import main
from fcmae.data import ImageList
from fcmae.data.splits import draw_share
from fcmae.errors import DONE, INTERRUPTED, MISTAKE
from fcmae.evaluation import RULE
from fcmae.evaluation.classification import ClassificationScores
from fcmae.reports import figures
from fcmae.reports.comparison import shares_plot
from fcmae.settings.finetune import FinetuneConfig
from fcmae.settings.reading import load
from fcmae.studies.comparison import pairs
from fcmae.studies.comparison.running import repeated
from fcmae.studies.comparison.scores import KNN, LINEAR, PIXELS, Comparison

pytestmark = pytest.mark.usefixtures("undrawn")

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "quickstart_compare.yaml"
ARMS = CONFIG.with_name("quickstart_arms.yaml")
IMAGES = ImageList(
    tuple(f"{index}.png" for index in range(300)), tuple([0] * 200 + [1] * 100), ("a", "b")
)


def found(
    first: list[float], second: list[float], name: str = "from scratch", share: float = 5.0
) -> Comparison:
    """A comparison with these balanced accuracies in per cent, of two classes."""

    def scores(values: list[float]) -> dict[int, ClassificationScores]:
        confusions = (torch.tensor([[10 * v, 1000 - 10 * v], [0, 1000]]).round() for v in values)
        halves = (confusion.long() for confusion in confusions)
        return {seed: ClassificationScores(c, 0.5) for seed, c in enumerate(halves)}

    # Of the second class all are right: class 0 has what is left of twice the mean.
    results = {
        "pretrained": scores([2 * value - 100 for value in first]),
        name: scores([2 * value - 100 for value in second]),
    }
    return Comparison(
        ("pretrained", name),
        {share: results},
        {share: 15},
        50,
        drawn={share} - {100.0},
        num_classes=2,
        num_test=40,
    )


def test_a_share_has_its_part_of_every_class_and_lies_in_larger_ones() -> None:
    small, large = (set(draw_share(IMAGES, share, 1).paths) for share in (5, 10))
    assert len(small) == 15
    assert len([path for path in small if int(path[:-4]) < 200]) == 10
    assert small < large
    assert draw_share(IMAGES, 5, 2).paths != draw_share(IMAGES, 5, 1).paths
    assert draw_share(IMAGES, 100, 3) == IMAGES
    assert len(draw_share(IMAGES, 0.01, 0)) == 2  # one of each class


def test_few_images_are_repeated_to_fill_a_step() -> None:
    few = IMAGES.select([0, 200, 201])
    assert list(repeated(few, 7).paths) == list(few.paths) * 3
    assert repeated(few, 7).labels == (0, 1, 1) * 3
    assert repeated(few, 3) == few


def test_the_sentence_says_that_pretraining_helps_where_it_does() -> None:
    said = found([80.0, 81.0, 79.5], [70.0, 71.5, 69.0]).sentence()
    assert said == (
        "After 50 steps, compared with training from scratch, pretraining helps by 10.0 +- 1.2 "
        "points at 15 labels."
    )


def test_the_sentence_says_that_pretraining_hurts_where_it_does() -> None:
    said = found([70.0, 71.5, 69.0], [80.0, 81.0, 79.5], "other weights").sentence()
    assert said == (
        "After 50 steps, compared with other weights, pretraining hurts by 10.0 +- 1.2 points at "
        "15 labels."
    )


def test_the_sentence_claims_nothing_within_the_noise() -> None:
    said = found([80.0, 70.0, 75.0], [74.0, 76.0, 70.0]).sentence()
    assert "makes no difference beyond noise at 15 labels (+1.7 +- 16.5)" in said


def test_a_start_that_sits_at_chance_is_said_to_have_learned_nothing_yet() -> None:
    said = found([75.0, 74.0, 75.5], [50.0, 51.5, 50.0]).sentence()
    assert "helps by 24.3 +- 4.0 points at 15 labels. But training from scratch has not" in said
    assert "learned yet after 50 steps (50.5 +- 1.3 % at 15 labels; chance is 50 %)" in said
    assert "has not learned" not in found([75.0, 74.0, 75.5], [60.0, 61.5, 60.0]).sentence()


def test_one_line_says_what_pretraining_was_worth_beside_scratch_probe_and_pixels() -> None:
    one = found([80.0, 81.0, 79.0], [53.0, 56.0, 50.0])
    one.frozen[5.0] = {
        LINEAR: {0: 70.0, 1: 71.0, 2: 69.0},
        PIXELS: {0: 60.0, 1: 64.0, 2: 56.0},
    }
    line = (
        "What pretraining was worth with 15 labels, balanced accuracy in % (mean +- standard "
        "deviation over the seeds): fine-tuned 80.0 +- 1.0, from scratch 53.0 +- 3.0, linear "
        "probe of the frozen encoder 70.0 +- 1.0, linear probe of raw pixels 60.0 +- 4.0."
    )
    assert one.text().count(line) == 1
    assert "beats fine-tuning" not in one.text()


def test_frozen_features_that_beat_fine_tuning_are_told_with_the_advice() -> None:
    one = found([70.0, 71.0, 69.0], [53.0, 56.0, 50.0])
    one.frozen[5.0] = {LINEAR: {0: 80.0, 1: 81.5, 2: 79.0}}
    one.advice = "Train longer."
    (said,) = one.behind_frozen(5.0)
    assert said.startswith(f"With 15 labels {LINEAR} beats fine-tuning by 10.2 +- ")
    assert said.endswith("points: the recipe loses what the encoder knows. Train longer.")
    one.frozen[5.0] = {LINEAR: {0: 80.0, 1: 60.0, 2: 75.0}}  # within the noise
    assert one.behind_frozen(5.0) == []


def test_seeds_share_their_labelled_images_where_all_are_taken() -> None:
    some, every = (found([80.0] * 3, [70.0] * 3, share=share).text() for share in (5.0, 100.0))
    assert "with 15 labels each seed has its own labelled images" in some
    assert "with 15 all seeds have the same ones" in every
    assert "own labelled images" not in every
    assert RULE in some


def test_the_shipped_recipe_is_read() -> None:
    config = load(FinetuneConfig, CONFIG)
    assert (config.train.steps, config.data.train_per_class) == (100, None)
    assert "fcmae compare --config configs/quickstart_compare.yaml" in CONFIG.read_text()


def test_the_shipped_recipe_of_three_starts_is_read() -> None:
    config = load(FinetuneConfig, ARMS)
    assert list(config.compare.starts or ()) == ["scratch", "own", "continued"]
    assert "fcmae compare --config configs/quickstart_arms.yaml" in ARMS.read_text()


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    make_run(folder / "run", name=SPECK)
    for name, seed in (("left", 1), ("right", 2)):
        write_pictures(folder / "pictures" / name, 10, seed=seed)
    return folder


def arguments(material: Path, run: Path, *extra: str) -> list[str]:
    return [
        *("compare", "--run.dir", str(run), "--data.path", str(material / "pictures")),
        *("--model.name", SPECK, "--model.weights", str(material / "run")),
        *("--data.image_size", "[64, 96]", "--data.in_chans", "1", "--data.workers", "0"),
        *("--train.steps", "2", "--train.batch_size", "4", "--log.tensorboard", "false"),
        *("--augment.rand_augment", "null", "--optim.layer_decay", "0.5", *extra),
    ]


def test_every_start_share_and_seed_is_a_run_and_the_report_agrees(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "comparison"
    assert main(arguments(material, folder, "--shares", "[10, 100]")) == DONE
    shown = capsys.readouterr().out
    runs = sorted(str(path.parent.relative_to(folder)) for path in folder.glob("*/*/config.yaml"))
    assert len(runs) == 12
    assert runs[0] == "labels-10/from-scratch-0"
    pretrained, scratch = (
        load(FinetuneConfig, folder / "labels-10" / f"{name}-2" / "config.yaml")
        for name in ("pretrained", "from-scratch")
    )
    assert pretrained.train == scratch.train
    assert pretrained.augment == scratch.augment
    assert (pretrained.optim.layer_decay, scratch.optim.layer_decay) == (0.5, 1.0)
    assert (pretrained.model.head_start, scratch.model.head_start) == ("probe", "random")
    rates = (pretrained.optim.base_lr, scratch.optim.base_lr)
    assert rates == pytest.approx(
        [rate * (256 / 4) * (4 / 32) ** 0.5 for rate in (2e-5, 5e-4)], 0.01
    )
    assert (pretrained.model.weights, scratch.model.weights) == (str(material / "run"), None)
    lists = [
        (folder / "labels-10" / f"{name}-2" / "images.jsonl").read_text()
        for name in ("pretrained", "from-scratch")
    ]
    assert lists[0] == lists[1]
    rows = list(csv.DictReader(io.StringIO((folder / "report.csv").read_text())))
    assert {(row["labels"], row["start"]) for row in rows} == {
        (labels, start)
        for labels in ("2", "16")
        for start in ("pretrained", "from scratch", LINEAR, KNN, PIXELS)
    }
    assert (folder / "report.md").read_text().count("What pretraining was worth with ") == 2
    sentence = shown.strip().split("\n")[-1]
    assert sentence.startswith("After 2 steps, compared with training from scratch, pretraining ")
    assert sentence in (folder / "report.md").read_text()
    before = (folder / "report.csv").read_text()
    shutil.copytree(material, tmp_path / "grown")  # a folder that grew changes nothing
    for name in (path.name for path in (material / "pictures").iterdir()):
        for path in write_pictures(tmp_path / "more", 15, seed=9)[10:]:
            shutil.copy(path, tmp_path / "grown" / "pictures" / name)
    grown = arguments(material, folder, "--shares", "[10, 100]")
    grown[grown.index(str(material / "pictures"))] = str(tmp_path / "grown" / "pictures")
    for path in folder.glob("labels-100/from-scratch-*"):  # as if it had been stopped before
        shutil.rmtree(path)
    assert main(grown) == DONE
    assert (folder / "report.csv").read_text() == before


def named(*scores: list[float]) -> Comparison:
    """Three named starts of which these are the balanced accuracies in per cent."""
    parts = [found(values, values).results[5.0]["pretrained"] for values in scores]
    starts = ("scratch", "public", "own")
    one = Comparison(starts, {5.0: dict(zip(starts, parts, strict=True))}, are_named=True)
    one.num_labels, one.drawn = {5.0: 15}, {5.0}
    one.num_classes, one.num_test, one.steps = 2, 40, 50
    one.pretraining_seconds = {"scratch": 0.0, "public": None, "own": 300.4}
    one.seconds = {5.0: {"scratch": {0: 20.0, 1: 21.0, 2: 90.0}, "public": {}, "own": {}}}
    return one


def test_each_pair_beyond_noise_has_its_sentence_and_the_others_are_told_as_noise() -> None:
    one = named([70.0, 71.0, 69.0], [80.0, 81.2, 79.1], [80.1, 81.0, 79.3])
    said = pairs.sentences(one)
    assert said[:2] == [
        "Fine-tuned with 15 labels: public beats scratch by 10.1 +- 0.5 points.",
        "Fine-tuned with 15 labels: own beats scratch by 10.1 +- 0.8 points.",
    ]
    assert said[2:] == [
        "Fine-tuned with 15 labels: no difference beyond noise (own less public +0.0 +- 1.0)."
    ]


def test_starts_that_do_not_differ_are_said_not_to_in_one_sentence() -> None:
    one = named([80.0, 70.0, 75.0], [74.0, 76.0, 70.0], [76.0, 74.0, 71.0])
    (said,) = pairs.sentences(one)
    assert said.startswith("Fine-tuned with 15 labels: no difference beyond noise (public less ")
    assert said.count(" less ") == 3


def test_what_each_start_costs_stands_beside_its_scores() -> None:
    one = named([70.0, 71.0, 69.0], [80.0, 81.2, 79.1], [80.1, 81.0, 79.3])
    one.probes = {5.0: {"kNN": {start: {0: 60.0, 1: 61.0, 2: 62.0} for start in one.starts}}}
    header, *table = pairs.costs_table(one, list(pairs.rows_of(one)))
    assert header == [
        *("start", "fine-tuned, 15 labels", "kNN, 15 labels"),
        *("s of pretraining", "s of a fine-tuning"),
    ]
    assert [row[1] for row in table] == ["70.0 +- 2.5", "80.1 +- 2.6", "80.1 +- 2.1"]
    assert [row[-2:] for row in table] == [["0", "21"], ["-", "-"], ["300", "-"]]
    shown = pairs.text_of(one)
    assert "kNN with 15 labels: no difference beyond noise (public less scratch +0.0," in shown
    assert (
        "pairs of a row of the table together (Bonferroni) with 95 %, of three and more starts 96 %"
        in shown
    )


def test_named_starts_are_compared_by_fine_tuning_and_by_probes_in_one_report(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "arms"
    starts = {"scratch": None, "own": str(material / "run"), "own again": str(tmp_path / "other")}
    make_run(tmp_path / "other", name=SPECK)
    words = arguments(material, folder, "--shares", "[50]", "--starts", json.dumps(starts))
    del words[words.index("--model.weights") : words.index("--model.weights") + 2]
    assert main(words) == DONE
    shown = capsys.readouterr().out
    folders = {path.parent.name for path in folder.glob("labels-50/*/config.yaml")}
    assert folders == {f"{n}-{s}" for n in ("scratch", "own", "own-again") for s in range(3)}
    settings = {
        name: load(FinetuneConfig, folder / "labels-50" / f"{name}-0" / "config.yaml")
        for name in ("scratch", "own", "own-again")
    }
    assert [one.model.weights for one in settings.values()] == list(starts.values())
    assert [one.optim.layer_decay for one in settings.values()] == [1.0, 0.5, 0.5]
    assert [one.model.head_start for one in settings.values()] == ["random", "probe", "probe"]
    assert len({str(one.data.mean) for one in settings.values()}) == 1
    rows = list(csv.DictReader(io.StringIO((folder / "report.csv").read_text())))
    assert {(row["start"], row["score"]) for row in rows} == {
        (start, score) for start in starts for score in ("fine-tuned", "linear probe", "kNN")
    }
    page = (folder / "report.md").read_text()
    assert "s of pretraining" in page
    assert (folder / "report_pictures" / "pairs.svg").stat().st_size > 5000
    for sentence in shown.strip().splitlines()[-3:]:
        assert sentence in page
    # Equal weights score alike in every seed, and nothing is claimed of them.
    assert "own again less own +0.0" in page


def test_finetune_takes_named_starts_too(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tuned"
    words = arguments(material, folder)[1:]
    del words[words.index("--model.weights") : words.index("--model.weights") + 2]
    starts = json.dumps({"own": str(material / "run"), "scratch": None})
    assert main(["finetune", *words, "--compare.starts", starts]) == DONE
    written = (folder / "comparison.txt").read_text()
    assert written in capsys.readouterr().out
    assert "Linear probe with 16 labels: no difference beyond noise (scratch less own" in written


def test_a_stopped_comparison_says_so(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fcmae.training.loop import TrainingLoop

    monkeypatch.setattr(TrainingLoop, "run", lambda self: "SIGTERM")
    assert main(arguments(material, tmp_path / "a")) == INTERRUPTED
    assert not (tmp_path / "a" / "report.html").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--shares", "[0, 5]"], "--shares: got [0, 5], expected per cents of the labels above 0"),
        (["--shares", "[]"], "--shares: got [], expected per cents"),
        (["--shares", "[5, 5]"], "--shares: got [5, 5], expected each share once"),
        (["--shares", "[many]"], "--shares: got '[many]', expected numbers"),
        (["--shares"], "command line: --shares has no value"),
        (["--model.weights", "null"], "model.weights: not given"),
        (["--train.steps", "null", "--train.epochs", "2"], "train.epochs: got 2.0, but a share"),
        (["--data.train_per_class", "3"], "data.train_per_class: got 3, but --shares decides"),
        (["--compare.seeds", "2"], "compare.seeds: got 2, expected 3 or more"),
        (["--against", "absent.pth"], "absent.pth: does not exist"),
        (["--starts", "{a: null, b: x}"], "beside compare.starts, expected null, or one of the"),
        (["--starts", "[1]"], "compare.starts: got '[1]', expected names with a text or null each"),
        (["--starts", "{a: null}"], "compare.starts: got {'a': None}, expected 2 to 10 names"),
        (["--starts", "{a: null, b: null}"], "all different, one of them of weights"),
        (["--starts", "{a b: null, a-b: x}"], "names that differ in more than a space and a '-'"),
        (["--starts", "{a/b: null, b: x}"], "got 'a/b': None, expected names of letters"),
        (["--model.nam", "x"], "unknown setting 'model.nam'. Did you mean model.name or"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(
    material: Path,
    tmp_path: Path,
    extra: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(arguments(material, tmp_path / "a", *extra)) == MISTAKE
    shown = capsys.readouterr().err
    assert message in shown.strip().splitlines()[-1]
    assert "Traceback" not in shown


def test_the_figure_over_labels_has_the_intervals_of_its_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[dict[str, Any]] = []
    monkeypatch.setattr(figures, "draw_means", lambda *_, **named: drawn.append(named) or b"")
    scores = found([88.0, 90.0, 92.0], [70.0, 74.0, 72.0])
    shares_plot(scores, scores.accuracies, 3, x_name="labels", y_name="%")
    for share, count in scores.num_labels.items():
        for start, mean in scores.means(share).items():
            assert drawn[0]["intervals"][start][f"{count} ({share:g} %)"] == mean
