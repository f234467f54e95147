"""What an ablation is asked to do: its grid, its cells, and every mistake, before anything runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from pictures_on_disk import write_pictures
from tiny_run import make_run

from fcmae.__main__ import main
from fcmae.data import ImageList
from fcmae.errors import DONE, MISTAKE, ConfigError
from fcmae.settings.ablation import Ablation, parse_ablation
from fcmae.settings.finetune import FinetuneConfig
from fcmae.settings.reading import to_yaml
from fcmae.studies.ablation.evaluation import check_labels
from fcmae.studies.ablation.grid import build_cells, default_settings
from fcmae.studies.ablation.runner import Runner
from fcmae.studies.ablation.split import Split, open_split, write_split

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "ablation"
GRID = "{mask.ratio: [0.5, 0.25], train.seed: [3, 4]}"
SMALL = [
    *("--base.model.name", "convnextv2_atto", "--base.model.decoder_dim", "8"),
    *("--base.data.image_size", "64", "--base.data.workers", "0"),
    *("--base.train.batch_size", "4", "--base.train.steps", "2"),
]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name, seed in (("left", 1), ("right", 2)):
        write_pictures(folder / name, 10, seed=seed)
    return folder


@pytest.fixture(scope="module")
def unlabelled(labelled: Path) -> Path:
    return labelled / "left"


def arguments(folder: Path, data: Path, *extra: str, grid: str = GRID) -> list[str]:
    start = ["--run.dir", str(folder), "--base.data.path", str(data), *SMALL]
    return [*start, "--grid", grid, *extra]


def ablation(folder: Path, data: Path, *extra: str, grid: str = GRID) -> Ablation:
    return parse_ablation(arguments(folder, data, *extra, grid=grid))


def test_a_cell_is_the_base_run_with_the_values_of_the_grid(tmp_path: Path, labelled: Path) -> None:
    asked = ablation(tmp_path / "a", labelled, "--base.optim.base_lr", "1e-4")
    cells = build_cells(asked, open_split(asked))
    pretrained = [cell for cell in cells if not cell.is_scratch]
    assert [(cell.settings, cell.seed) for cell in pretrained] == [
        ({"mask.ratio": 0.5}, 3),
        ({"mask.ratio": 0.25}, 3),
        ({"mask.ratio": 0.5}, 4),
        ({"mask.ratio": 0.25}, 4),
    ]
    for cell in pretrained:
        config = cell.config
        assert (config.mask.ratio, config.train.seed) == (cell.settings["mask.ratio"], cell.seed)
        assert (config.optim.base_lr, config.train.steps) == (1e-4, 2)
        assert config.data.path == str(tmp_path / "a" / "images.txt")
    assert pretrained[1].folder == tmp_path / "a" / "cells" / "mask-ratio-0.25_train-seed-3"
    assert pretrained[1].title == "mask.ratio 0.25, train.seed 3"


def test_one_untrained_baseline_per_seed_and_encoder(tmp_path: Path, labelled: Path) -> None:
    grid = (
        "{mask.ratio: [0.5, 0.25], model.name: [convnextv2_atto, convnext_atto], train.seed: [3]}"
    )
    asked = ablation(tmp_path / "a", labelled, grid=grid)
    baselines = [cell for cell in build_cells(asked, open_split(asked)) if cell.is_scratch]
    names = [cell.settings["model.name"] for cell in baselines]
    assert names == ["convnextv2_atto", "convnext_atto"]
    without = ablation(tmp_path / "a", labelled, "--evaluate.scratch", "false", grid=grid)
    assert not any(cell.is_scratch for cell in build_cells(without, open_split(without)))


def test_the_default_is_the_base_runs_value_or_the_first_of_the_grid(
    tmp_path: Path, labelled: Path
) -> None:
    asked = ablation(tmp_path / "a", labelled, "--base.mask.ratio", "0.25")
    assert default_settings(build_cells(asked, open_split(asked)), asked) == {"mask.ratio": 0.25}
    other = ablation(tmp_path / "a", labelled, "--base.mask.ratio", "0.75")
    assert default_settings(build_cells(other, open_split(other)), other) == {"mask.ratio": 0.5}


def test_an_image_size_left_to_the_pictures_is_one_for_all_cells_and_as_begun(
    tmp_path: Path, labelled: Path
) -> None:
    left = ["--base.data.image_size", "auto", "--finetune.train.steps", "2"]
    for words in ([], ["--finetune.data.image_size", "auto"]):
        asked = ablation(tmp_path / "a", labelled, *left, *words)
        cells = build_cells(asked, open_split(asked))
        tuned = [cell.finetune.data.image_size for cell in cells if cell.finetune is not None]
        assert [cell.config.data.image_size for cell in cells] == tuned == [96] * 6
    make_run(tmp_path / "a/cells/begun")
    cells = build_cells(asked, open_split(asked))
    assert {cell.config.data.image_size for cell in cells} == {(64, 96)}
    grid = "{data.image_size: [auto, 64], train.seed: [3]}"
    varied = ablation(tmp_path / "b", labelled, *left, grid=grid)
    cells = build_cells(varied, open_split(varied))
    assert {cell.config.data.image_size for cell in cells} == {96, 64}


def test_held_out_images_are_in_no_cells_training_list(tmp_path: Path, labelled: Path) -> None:
    asked = ablation(tmp_path / "a", labelled)
    split = open_split(asked)
    (tmp_path / "a").mkdir()
    write_split(split, tmp_path / "a")
    listed = set((tmp_path / "a" / "images.txt").read_text().split("\n")[:-1])
    assert len(split.test) == 4
    assert split.test.labels == (0, 0, 1, 1)
    assert listed == set(split.train.paths)
    assert not listed & set(split.test.paths)
    assert open_split(asked) == split  # read back from the folder


def test_images_for_the_evaluation_are_scored_whole_where_the_base_runs_have_the_labels(
    tmp_path: Path, labelled: Path
) -> None:
    val = tmp_path / "val"
    for folder in sorted(path for path in labelled.iterdir() if path.is_dir()):
        write_pictures(val / folder.name, 3, seed=9)
    split = open_split(ablation(tmp_path / "a", labelled, "--evaluate.path", str(val)))
    assert len(split.test) == 6
    assert all(path.startswith(str(val)) for path in split.test.paths)
    assert all(path.startswith(str(labelled)) for path in split.train.paths)
    overlapping = open_split(ablation(tmp_path / "b", labelled, "--evaluate.path", str(labelled)))
    assert not set(overlapping.test.paths) & set(overlapping.train.paths)


def test_with_images_for_the_evaluation_cells_train_on_all_of_the_base_runs(
    tmp_path: Path, labelled: Path, unlabelled: Path
) -> None:
    asked = ablation(tmp_path / "a", unlabelled, "--evaluate.path", str(labelled))
    split = open_split(asked)
    assert not split.is_cut_from_base
    assert split.test.labels is not None
    cells = build_cells(asked, split)
    assert cells[0].config.data.path == str(unlabelled)


def test_an_ablation_is_read_back_from_what_it_writes(tmp_path: Path, labelled: Path) -> None:
    asked = ablation(tmp_path / "a", labelled, "--finetune.train.steps", "3")
    file = tmp_path / "again.yaml"
    file.write_text(to_yaml(asked))
    assert parse_ablation(["--config", str(file)]) == asked


def test_the_settings_are_printed_where_that_is_asked_for(
    tmp_path: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ablate", *arguments(tmp_path / "a", labelled), "--print_config"]) == DONE
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert parse_ablation(["--config", str(file)]) == ablation(tmp_path / "a", labelled)
    assert not (tmp_path / "a").exists()


def test_later_arguments_win_and_a_grid_replaces_the_files(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "run: {dir: a, jobs: 2}\nbase: {mask: {ratio: 0.5}, train: {steps: 9}}\n"
        "grid: {mask.ratio: [0.1], train.seed: [0]}\n"
    )
    asked = parse_ablation(
        [
            "--config",
            str(file),
            "--base.train.steps=3",
            "--jobs",
            "4",
            "--grid",
            "{train.seed: [1]}",
        ]
    )
    assert asked.base == {"mask": {"ratio": 0.5}, "train": {"steps": 3}}
    assert (asked.run.jobs, asked.grid) == (4, {"train.seed": [1]})


def test_the_base_run_may_come_from_a_file_of_pretraining(tmp_path: Path, labelled: Path) -> None:
    file = tmp_path / "pretrain.yaml"
    file.write_text("run: {dir: elsewhere}\noptim: {warmup_steps: 1}\ntrain: {steps: 7}\n")
    asked = ablation(tmp_path / "a", labelled, "--base.config", str(file))
    cell = build_cells(asked, open_split(asked))[0]
    assert (cell.config.optim.warmup_steps, cell.config.train.steps) == (1, 2)
    assert str(tmp_path) in cell.config.run.dir


def test_lengths_said_in_another_way_are_replaced_and_told(
    tmp_path: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pretrain.yaml"
    file.write_text("train: {epochs: 7}\noptim: {warmup_epochs: 1, warmup_steps: null}\n")
    words = ["--base.config", str(file), "--base.optim.warmup_steps", "1"]
    grid = "{train.epochs: [1, 2], train.seed: [0]}"
    asked = ablation(tmp_path / "a", labelled, *words, grid=grid)
    assert capsys.readouterr().err.splitlines() == [
        f"fcmae: train.steps 2 of the base run replaces train.epochs 7 of the file {file}.",
        "fcmae: optim.warmup_steps 1 of the base run replaces optim.warmup_epochs 1 of the file "
        f"{file}.",
        "fcmae: train.epochs 1 of the grid replaces train.steps 2 of the base run.",
    ]
    config = build_cells(asked, open_split(asked))[0].config
    assert (config.train.epochs, config.train.steps, config.optim.warmup_steps) == (1.0, None, 1)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("{mask.ratio: [0.5], train.seed: [0], mask.ratio: [0.1]}", "is no value: mask.ratio stan"),
        ("{}", "grid: it is empty"),
        ("[1]", "grid: got .*, expected settings and their values"),
        ("{mask.ratio: [], train.seed: [0]}", "grid: mask.ratio: got .*, expected a list of one"),
        ("{mask.ratio: 0.5, train.seed: [0]}", "grid: mask.ratio: got 0.5, expected a list"),
        ("{mask.ratio: [0.5]}", "grid: no train.seed; expected the seeds"),
        ("{train.seed: []}", "grid: train.seed: got .*, expected a list of one value"),
        ("{train.seed: [1, 1]}", "grid: train.seed: got .*, expected each value once"),
        (
            "{mask.ratio: [0.5, 1.5], train.seed: [0]}",
            "cell mask.ratio 1.5, train.seed 0: mask.ratio: got 1.5, expected a share",
        ),
        (
            "{mask.ratio: [0.5, 0.9], train.seed: [0]}",
            "cell mask.ratio 0.9, train.seed 0: mask.ratio: 0.9 of 4 patches leaves none visible",
        ),
        (
            "{mask.patch_size: [24], train.seed: [0]}",
            "cell mask.patch_size 24, train.seed 0: ",
        ),
        ("{mask.ratoi: [0.5], train.seed: [0]}", "unknown setting 'mask.ratoi'. Did you mean"),
        ("{run.dir: [a], train.seed: [0]}", "grid: 'run.dir' cannot vary"),
        ("{ratio: [0.5], train.seed: [0]}", "grid: 'ratio' cannot vary"),
        ("{train.seed: [a]}", "cell train.seed a: train.seed: got 'a', expected a whole number"),
        (
            "{model.name: [convnextv2_attoo], train.seed: [0]}",
            "cell model.name convnextv2_attoo, train.seed 0: .*convnextv2_atto",
        ),
        (
            "{mask.ratio: [0.5, 0.25, 0.3], train.seed: [0]}",
            "grid: mask.ratio 0.5 and 0.3 hide the same share of the patches, 0.500",
        ),
        ("{data.path: [a, b], train.seed: [0]}", "grid: data.path varies, so that images held"),
    ],
)
def test_a_grid_that_cannot_work_is_told_with_its_cell(
    tmp_path: Path, labelled: Path, grid: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Runner(ablation(tmp_path / "a", labelled, grid=grid))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--base.mask.ratoi", "1"], "base.*: unknown setting 'mask.ratoi'"),
        (["--bse.mask.ratio", "1"], "command line: unknown setting 'bse.mask.ratio'. Did you mean"),
        (["--base.mask", "1"], "command line: unknown setting 'base.mask'"),
        (["--run.jobz", "1"], "unknown setting 'run.jobz'. Did you mean run.jobs"),
        (["--jobs", "0"], "run.jobs: got 0, expected 1 or more"),
        (["--evaluate.val_share", "1"], "evaluate.val_share: got 1.0, expected more than 0"),
        (["--evaluate.methods", "[svm]"], "evaluate.methods"),
        (["--evaluate.methods", "[kNN, kNN]"], "evaluate.methods: got .*, expected each method"),
        (["--evaluate.labels", "17"], "evaluate.labels: got 17, expected 2 .* to 14 of the 16"),
        (["--run.cluster", "true", "--slurm.gpus", "8"], "slurm.nodes, slurm.gpus: got 1 and 8"),
        (["--slurm.hours", "0"], "slurm.hours: got 0.0, expected more than"),
        (["--base.run.dir", "x"], "base.run: each cell has a folder of its own"),
        (["--base.train.batch_size", "99"], "cell .*: train.batch_size: a step takes 99 images"),
        (["--finetune.train.seed", "1"], "finetune.train.seed: it follows from the cell"),
        (["--finetune.train.stepz", "1"], "finetune: unknown setting 'train.stepz'"),
        (["--jobs"], "command line: --jobs has no value"),
        (["more"], "command line: unexpected 'more'"),
        (["--config", "absent.yaml"], "--config: 'absent.yaml' cannot be read"),
    ],
)
def test_mistakes_on_the_command_line_are_one_sentence(
    tmp_path: Path, labelled: Path, extra: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Runner(ablation(tmp_path / "a", labelled, *extra))
    assert "\n" not in str(caught.value)


def test_labels_missing_for_a_labelled_evaluation_is_told(tmp_path: Path, unlabelled: Path) -> None:
    with pytest.raises(ConfigError, match=r"kNN and linear need labels, and .* has none"):
        open_split(ablation(tmp_path / "a", unlabelled))
    free = ablation(tmp_path / "a", unlabelled, "--evaluate.methods", "[]")
    assert len(open_split(free).test) == 2


def test_another_split_in_the_folder_is_told(tmp_path: Path, labelled: Path) -> None:
    asked = ablation(tmp_path, labelled)
    write_split(open_split(asked), tmp_path)
    with pytest.raises(
        ConfigError, match=r"another split of the images \(split_seed 0 there, 1 now"
    ):
        open_split(ablation(tmp_path, labelled, "--evaluate.split_seed", "1"))


def test_a_damaged_split_is_told(tmp_path: Path, labelled: Path) -> None:
    (tmp_path / "split.json").write_text("{")
    with pytest.raises(ConfigError, match=r"split\.json is damaged"):
        open_split(ablation(tmp_path, labelled))


def test_values_that_would_share_a_folder_are_told(tmp_path: Path, labelled: Path) -> None:
    grid = "{model.init_from: ['a b', a-b], train.seed: [0]}"
    with pytest.raises(ConfigError, match="would share the folder model-init_from-a-b"):
        Runner(ablation(tmp_path / "a", labelled, grid=grid))


def test_an_unwritable_folder_is_one_sentence_and_status_2(
    tmp_path: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["ablate", *arguments(tmp_path / "file" / "a", labelled)]) == MISTAKE
    shown = capsys.readouterr().err
    assert shown.startswith("fcmae: error: run.dir: ")
    assert len(shown.splitlines()) == 1


def test_a_folder_that_holds_something_else_is_told(tmp_path: Path, labelled: Path) -> None:
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        Runner(ablation(tmp_path, labelled)).run()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_grid_builds_every_cell(path: Path) -> None:
    asked = parse_ablation(["--config", str(path)])
    text = path.read_text(encoding="utf-8")
    assert f"fcmae ablate --config configs/ablation/{path.name}\n" in text
    assert max(map(len, text.splitlines())) <= 100
    images = ImageList(tuple(map(str, range(900))), (0, 1) * 450, ("a", "b"))
    made_by = {"label": "type", "val_share": 0.2, "split_seed": 0}
    split = Split(images, images, "elpv", True, made_by)
    check_labels(asked.evaluate, split)
    assert len(asked.grid["train.seed"]) >= 2
    one_seed = dataclasses.replace(asked, grid={**asked.grid, "train.seed": [0]})
    cells = build_cells(one_seed, split)
    assert len(cells) >= 2
    assert any(cell.is_scratch for cell in cells)


def test_a_probe_that_is_asked_for_is_left_out_where_nothing_was_pretrained(
    tmp_path: Path, labelled: Path
) -> None:
    asked = ablation(tmp_path / "a", labelled)
    wanted = {"data": {}, "train": {"steps": 2}, "model": {"head_start": "probe"}}
    asked = dataclasses.replace(asked, finetune=wanted)
    starts = {
        cell.is_scratch: cell.finetune.model.head_start
        for cell in build_cells(asked, open_split(asked))
        if isinstance(cell.finetune, FinetuneConfig)
    }
    assert starts == {False: "probe", True: "random"}
