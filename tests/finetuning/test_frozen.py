"""The frozen line: beside every fine-tuned score, true, and harmless."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pictures_on_disk import write_pictures
from real_runs import assert_same_run, options
from speck import THREE_STEPS

from fcmae.__main__ import main
from fcmae.data import ImageList
from fcmae.data.splits import open_labelled
from fcmae.errors import DONE, INTERRUPTED
from fcmae.evaluation import linear_probe_predict, pooled_features
from fcmae.evaluation.classification import ClassificationScores
from fcmae.finetuning import frozen
from fcmae.finetuning.setup import create_classifier, create_evaluation_transform, create_reading
from fcmae.runs.metrics import read_metrics
from fcmae.settings.finetune import FinetuneConfig
from fcmae.settings.reading import load, parse
from fcmae.training.schedule import Schedule
from fcmae.training.signals import StopRequest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, seed in (("left", 1), ("right", 2)):
        write_pictures(folder / name, 8, seed=seed)
    return folder


def arguments(run: Path, data: Path, **changes: object) -> list[str]:
    return options({"run.dir": run, "data.path": data, **THREE_STEPS}, changes)


def read(run: Path, data: Path, **changes: object) -> FinetuneConfig:
    return parse(FinetuneConfig, arguments(run, data, **changes), prog="fcmae finetune")


def finetune(run: Path, data: Path, **changes: object) -> int:
    return main(["finetune", *arguments(run, data, **changes)])


def test_the_frozen_line_stands_beside_the_fine_tuned_score_and_is_that_of_the_start(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(tmp_path / "run", data) == DONE
    (line,) = [
        line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "frozen_labels" in line
    ]
    assert (line["step"], line["frozen_labels"]) == (0, 8)
    config = load(FinetuneConfig, tmp_path / "run" / "config.yaml")
    train, validation = open_labelled(config.data, config.train.seed)
    model, _ = create_classifier(config, ("left", "right"))
    known, unknown = (vectors(model.eval(), images, config) for images in (train, validation))
    right = linear_probe_predict(known, torch.tensor(train.labels), unknown)
    share = float((right == torch.tensor(validation.labels)).double().mean())  # equal classes
    assert line["frozen_linear_balanced_accuracy"] == pytest.approx(share)
    said = capsys.readouterr().err
    beside = f"same labels and validation images: linear probe {100 * share:.1f} %, kNN "
    assert said.count(beside) == 2
    assert beside in (tmp_path / "run" / "scores.txt").read_text()


def vectors(model: Any, images: ImageList, config: FinetuneConfig) -> torch.Tensor:
    from fcmae.data import EvaluationDataset

    transform = create_evaluation_transform(config)
    dataset = EvaluationDataset(images, transform, reading=create_reading(config))
    pictures = torch.stack([dataset[place]["image"] for place in range(len(dataset))])
    with torch.no_grad():
        return pooled_features(model, pictures)


def test_a_look_that_fails_is_told_and_changes_no_bit_of_the_run(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert finetune(tmp_path / "looked", data) == DONE

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(frozen, "extract_together", fail)
    capsys.readouterr()
    assert finetune(tmp_path / "failed", data) == DONE
    said = capsys.readouterr().err
    told = "scoring the frozen features failed (RuntimeError: out of memory); training goes on."
    assert told in said
    lines = (tmp_path / "looked" / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = "".join(line for line in lines if "frozen_labels" not in line)
    (tmp_path / "looked" / "metrics.jsonl").write_text(kept)
    assert_same_run(tmp_path / "failed", tmp_path / "looked")


def test_a_run_that_goes_on_does_not_look_again(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "name", property(lambda self: "SIGTERM"), raising=False)
        assert finetune(tmp_path / "run", data) == INTERRUPTED
    monkeypatch.delattr(frozen, "extract_together")
    capsys.readouterr()
    assert finetune(tmp_path / "run", data) == DONE
    said = capsys.readouterr().err
    assert said.count("frozen features of the start") == 1
    assert "scoring the frozen features failed" not in said


def scores(*confusion: tuple[int, int]) -> ClassificationScores:
    return ClassificationScores(torch.tensor(confusion), 1.0)


LINE = {
    "frozen_linear_balanced_accuracy": 0.8,
    "frozen_knn_balanced_accuracy": 0.6,
    "frozen_labels": 8,
}


WRONG: dict[str, object] = {
    "optim__warmup_steps": 1,
    "optim__base_lr": 1e-3,
    "augment__rand_augment": "rand-m9-mstd0.5-inc1",
    "augment__reprob": 0.25,
    "augment__mixup": 0,
    "augment__cutmix": 0,
    "ema__decay": "null",
}


def compared(best: ClassificationScores, tmp_path: Path, **changes: object) -> list[str]:
    config = read(tmp_path / "run", tmp_path, **{**WRONG, **changes})
    schedule = Schedule(config.train, config.optim, 8, 4)
    return frozen.compared(LINE, best, best, config, schedule, 8)


def test_a_probe_that_beats_fine_tuning_is_told_with_what_to_change(tmp_path: Path) -> None:
    _, said = compared(scores((7, 3), (3, 7)), tmp_path)
    assert said.startswith(
        "the linear probe of the untouched encoder beats the fine-tuning (best evaluation 70.0 %) "
        "by 10.0 points, where 20.1 are noise of 20 images"
    )
    for setting in (
        "--train.steps 100; it saw each image 2 times",
        "raise the rate (--optim.base_lr auto: a peak of 0.00018; it had 1.6e-05)",
        "--augment.rand_augment null --augment.reprob 0",
        "--optim.warmup_steps auto; it took 33 % of the run",
        "fcmae probe RUN DATA --save FILE",
    ):
        assert setting in said


def test_what_the_recipe_has_right_already_is_not_advised(tmp_path: Path) -> None:
    _, said = compared(
        scores((7, 3), (3, 7)),
        tmp_path,
        train__steps=200,
        optim__base_lr=1e-2,
        optim__warmup_steps=20,
        augment__rand_augment="null",
        augment__reprob=0,
    )
    assert said.endswith("You may take the probe itself: fcmae probe RUN DATA --save FILE.")


def test_fine_tuning_that_is_better_is_told_with_the_distance(tmp_path: Path) -> None:
    first, said = compared(scores((9, 1), (1, 9)), tmp_path)
    assert first.endswith("linear probe 80.0 %, kNN 60.0 % balanced accuracy.")
    assert said == (
        "fine-tuned: 90.0 % after the last step, 90.0 % at best; the linear probe is 10.0 points "
        "below that."
    )


def test_without_a_line_nothing_is_compared() -> None:
    best = scores((9, 1), (1, 9))
    assert frozen.compared({}, best, best, None, None, 8) == []  # type: ignore[arg-type]


def test_many_labels_are_drawn_and_that_is_told(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen, "MOST_LABELS", 6)
    assert finetune(tmp_path / "run", data) == DONE
    assert "(of 6 of the 8 labels)" in (tmp_path / "run" / "scores.txt").read_text()
