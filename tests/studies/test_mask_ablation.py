"""`fcmae ablate` with masks: every encoder is fine-tuned to them, and so is one from scratch."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import ablation_in_process
import pytest
from masked_pictures import write_pairs

from fcmae.__main__ import main
from fcmae.data.recorded import read_paths
from fcmae.errors import DONE, MISTAKE, ConfigError
from fcmae.settings.ablation import parse_ablation
from fcmae.settings.tasks import load_finetuning_settings
from fcmae.studies.ablation.evaluation import read_result
from fcmae.studies.ablation.runner import Runner

RECIPE = """
run: {dir: elsewhere}
task: segmentation
data: {masks: MASKS, classes: {ground: 0, square: 1, dot: 2}, image_size: 32, workers: 0}
model: {name: convnextv2_atto, weights: some/run}
optim: {base_lr: 0.05, layer_decay: 0.5}
augment: {class_balanced: 0.5, horizontal_flip: true, vertical_flip: false, rotate90: false}
train: {seed: 9, batch_size: 4, steps: 2}
evaluate: {num_pictures: 0}
log: {tensorboard: false}
"""
CELLS = ("mask-ratio-0.5_train-seed-0", "scratch_train-seed-0")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"), 15)


@pytest.fixture(scope="module")
def recipe(data: Path) -> Path:
    file = data / "masks.yaml"
    file.write_text(RECIPE.replace("MASKS", str(data / "masks")))
    return file


def arguments(folder: Path, data: Path, *extra: str) -> list[str]:
    return [
        *("--run.dir", str(folder), "--base.data.path", str(data / "images")),
        *("--grid", "{mask.ratio: [0.5], train.seed: [0]}"),
        *("--base.model.name", "convnextv2_speck", "--base.model.decoder_dim", "8"),
        *("--base.data.image_size", "64", "--base.data.workers", "0"),
        *("--base.train.batch_size", "4", "--base.train.steps", "1"),
        *("--base.log.tensorboard", "false", "--base.log.num_pictures", "1"),
        *("--base.health.checks", "0", "--evaluate.pictures", "1", "--evaluate.methods", "[]"),
        *extra,
    ]


@pytest.fixture(scope="module")
def in_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        ablation_in_process.use(patch)
        yield


@pytest.fixture(scope="module")
def finished(
    data: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory, in_process: None
) -> Path:
    folder = tmp_path_factory.mktemp("ablations") / "finished"
    words = arguments(folder, data, "--finetune.config", str(recipe))
    assert main(["ablate", *words]) == DONE
    return folder


def result(folder: Path, name: str) -> dict[str, object]:
    return dict(json.loads((folder / "cells" / name / "evaluation.json").read_text()))


def test_every_encoder_and_one_from_scratch_learns_the_same_masks(finished: Path) -> None:
    split = json.loads((finished / "split.json").read_text())
    for name in CELLS:
        [iou] = result(finished, name)["scores"]["fine-tuned masks"]  # type: ignore[index]
        assert 0 <= iou <= 100
        run = finished / "cells" / name / "finetune"
        assert set(read_paths(run / "images.jsonl")) == set(split["train"]["paths"])
        assert set(read_paths(run / "validation.jsonl")) == set(split["test"]["paths"])
        assert result(finished, name)["masks"] == {"train": 12, "scored": 3, "known": 0}
    pretrained, scratch = (
        load_finetuning_settings(finished / "cells" / name / "finetune" / "config.yaml")
        for name in CELLS
    )
    assert pretrained.model.weights == str(finished / "cells" / CELLS[0])
    assert scratch.model.weights is None
    assert (pretrained.optim.layer_decay, scratch.optim.layer_decay) == (0.5, 1.0)
    assert {pretrained.model.name, scratch.model.name} == {"convnextv2_speck"}
    assert {pretrained.train.seed, scratch.train.seed} == {0}


def test_the_report_says_what_masks_scored_and_beside_what(finished: Path) -> None:
    page = (finished / "report.md").read_text()
    assert "mean IoU of 3 held-out pictures, none of which a cell was pretrained on" in page
    assert "fine-tuned masks: compared with training from scratch, pretraining by the" in page
    with (finished / "report.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["cell"] for row in rows] == list(CELLS)
    ious = [result(finished, name)["scores"]["fine-tuned masks"][0] for name in CELLS]  # type: ignore[index]
    assert [float(row["fine-tuned masks"]) for row in rows] == pytest.approx(ious, rel=1e-5)


def test_started_again_all_cells_are_done(finished: Path, data: Path, recipe: Path) -> None:
    asked = parse_ablation(arguments(finished, data, "--finetune.config", str(recipe)))
    cells = Runner(asked).cells
    assert [cell.name for cell in cells if read_result(cell, asked) is not None] == list(CELLS)


def test_masks_of_other_pictures_are_taken_as_the_settings_name_them(
    data: Path, recipe: Path, in_process: None, tmp_path: Path
) -> None:
    apart = write_pairs(tmp_path / "apart", 4, seed=7)
    words = arguments(
        tmp_path / "run", data, "--grid", "{train.seed: [0]}", "--evaluate.scratch", "false",
        "--finetune.config", str(recipe), "--finetune.train.steps", "1",
        "--finetune.data.val_path", str(apart / "images"),
        "--finetune.data.val_masks", str(apart / "masks"),
    )  # fmt: skip
    assert main(["ablate", *words]) == DONE
    cell = tmp_path / "run" / "cells" / "train-seed-0"
    assert len(read_paths(cell / "finetune" / "images.jsonl")) == 15
    assert result(tmp_path / "run", cell.name)["masks"] == {"train": 15, "scored": 4, "known": 0}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--finetune.data.masks", "nowhere"], r"finetune\.data\.masks: 'nowhere' is no folder"),
        (["--finetune.data.val_share", "0.5"], "finetune.data.val_share: it follows from the cell"),
        (["--finetune.task.architecture", "none"], "task.architecture: got 'none'"),
        (["--finetune.task", "detection"], "task: got 'detection', expected classification or"),
        (
            ["--evaluate.methods", "[kNN]"],
            r"kNN need labels, .* --evaluate.methods \[]",
        ),
        (
            ["--base.model.stem_stride", "2", "--base.mask.patch_size", "32"],
            "model.stem_stride: got 2, expected 4, since decoders",
        ),
        (["--finetune.config", "absent.yaml"], "finetune.config: 'absent.yaml' cannot be read"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_runs(
    data: Path, recipe: Path, tmp_path: Path, extra: list[str], message: str
) -> None:
    words = arguments(tmp_path / "a", data, "--finetune.config", str(recipe), *extra)
    with pytest.raises(ConfigError, match=message) as caught:
        Runner(parse_ablation(words))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_a_mask_of_another_size_stops_the_ablation_by_its_name(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pairs(tmp_path / "data", 6)
    (data / "masks" / "03.png").write_bytes((data / "masks" / "04.png").read_bytes())
    masks = ["--finetune.config", str(recipe), "--finetune.data.masks", str(data / "masks")]
    assert main(["ablate", *arguments(tmp_path / "a", data, *masks)]) == MISTAKE
    assert "masks/03.png' is 44 x 48 px, and its image" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_word_names_the_task_in_a_file_and_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "ablation.yaml"
    file.write_text(
        "run: {dir: a}\nbase: {data: {path: p}}\ngrid: {train.seed: [0]}\n"
        "finetune: {task: segmentation, data: {masks: m}}\n"
    )
    asked = parse_ablation(["--config", str(file), "--finetune.task.architecture", "fpn"])
    assert asked.finetune["task"] == {"kind": "segmentation", "architecture": "fpn"}
    other = parse_ablation(["--config", str(file), "--finetune.task", "classification"])
    assert other.finetune["task"] == {"kind": "classification"}
