"""`fcmae ablate` as a user runs it, on small pictures: cells, results, failures, going on."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ablation_in_process
import numpy as np
import pytest
import torch
from pictures_on_disk import write_pictures
from safetensors.torch import load_file
from speck import SPECK

from fcmae.__main__ import main
from fcmae.data.recorded import read_paths
from fcmae.errors import DONE, FAILED, INTERRUPTED, MISTAKE, ConfigError, NonFiniteLossError
from fcmae.machine.cost import flops_per_image
from fcmae.runs.loading import load_run, load_run_config
from fcmae.runs.metrics import WALL_CLOCK, read_metrics
from fcmae.studies.ablation import worker
from fcmae.studies.ablation.worker import load_ablation

ROOT = Path(__file__).resolve().parents[2]
ATTO = "convnextv2_atto"
GRID = "{mask.ratio: [0.25, 0.5], train.seed: [0, 1]}"
# Of whole processes and a model of more than a few numbers: each cell takes seconds.
ONE_SEED = "{mask.ratio: [0.25, 0.5], train.seed: [0]}"
STEPS = 40
STOPPED: dict[str, Any] = {
    "grid": "{mask.ratio: [0.5], train.seed: [0]}",
    "steps": STEPS,
    "model": ATTO,
}
NAMES = [f"mask-ratio-{ratio}_train-seed-{seed}" for seed in (0, 1) for ratio in ("0.25", "0.5")]


def arguments(
    folder: Path,
    data: Path,
    *extra: str,
    grid: str = GRID,
    steps: int = 4,
    model: str = SPECK,
) -> list[str]:
    return [
        *("ablate", "--run.dir", str(folder), "--grid", grid, "--base.data.path", str(data)),
        *("--base.model.name", model, "--base.model.decoder_dim", "8"),
        *("--base.data.image_size", "64", "--base.data.workers", "0"),
        *("--base.train.batch_size", "4", "--base.train.steps", str(steps)),
        *("--base.mask.ratio", "0.5", "--base.log.every_steps", "1"),
        *("--base.log.tensorboard", "false", "--base.log.num_pictures", "1"),
        *("--base.checkpoint.every_steps", "2", "--evaluate.pictures", "2", *extra),
    ]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name, seed in (("left", 1), ("right", 2)):
        write_pictures(folder / name, 20, seed=seed)
    return folder


@pytest.fixture(scope="module")
def in_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        ablation_in_process.use(patch)
        yield


@pytest.fixture(scope="module")
def finished(labelled: Path, tmp_path_factory: pytest.TempPathFactory, in_process: None) -> Path:
    folder = tmp_path_factory.mktemp("ablations") / "finished"
    assert main(arguments(folder, labelled)) == DONE
    return folder


@pytest.fixture(scope="module")
def finished_atto(
    labelled: Path, tmp_path_factory: pytest.TempPathFactory, in_process: None
) -> Path:
    """The same of a model whose name is known to processes that did not import ours."""
    folder = tmp_path_factory.mktemp("ablations") / "finished"
    assert main(arguments(folder, labelled, grid=ONE_SEED, model=ATTO)) == DONE
    return folder


@pytest.fixture(scope="module")
def not_stopped(labelled: Path, tmp_path_factory: pytest.TempPathFactory, in_process: None) -> Path:
    """What an ablation that is killed goes on to."""
    folder = tmp_path_factory.mktemp("ablations") / "not-stopped"
    assert main(arguments(folder, labelled, "--evaluate.scratch", "false", **STOPPED)) == DONE
    return folder


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "cells" / name / "export" / "encoder.safetensors"))


def result(folder: Path, name: str) -> dict[str, object]:
    return dict(json.loads((folder / "cells" / name / "evaluation.json").read_text()))


def test_every_cell_is_an_ordinary_run_folder_with_scores(finished: Path) -> None:
    for name in NAMES:
        config, _, step = load_run(finished / "cells" / name)
        assert step == 4
        assert f"mask-ratio-{config.mask.ratio:g}_train-seed-{config.train.seed}" == name
        scores = result(finished, name)["scores"]
        assert isinstance(scores, dict)
        assert set(scores) == {"kNN", "linear"}
        assert all(0 <= value <= 100 for draws in scores.values() for value in draws)
    assert set(result(finished, "scratch_train-seed-0")["scores"]) == {"kNN", "linear"}  # type: ignore[call-overload]


def test_seeds_are_paired_across_ratios(finished: Path) -> None:
    from fcmae.model.autoencoder import create_model

    def start(name: str) -> dict[str, torch.Tensor]:
        model = create_model(load_run_config(finished / "cells" / name))
        return dict(model.state_dict())

    first, other, next_seed = start(NAMES[0]), start(NAMES[1]), start(NAMES[2])
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=0)
    stem = "encoder.stem.0.weight"
    assert not torch.equal(first[stem], next_seed[stem])
    lists = [(finished / "cells" / name / "images.jsonl").read_text() for name in NAMES[:2]]
    assert lists[0] == lists[1]


def test_held_out_pictures_are_the_same_and_masks_are_nested(finished: Path) -> None:
    with (
        np.load(finished / "cells" / NAMES[0] / "held_out.npz") as low,
        np.load(finished / "cells" / NAMES[1] / "held_out.npz") as high,
    ):
        np.testing.assert_array_equal(low["original"], high["original"])
        seen_low, seen_high = (
            (item["seen"] == item["original"]).all(axis=-1) for item in (low, high)
        )
    assert seen_high.sum() < seen_low.sum()
    assert not (seen_high & ~seen_low).any()


def test_the_table_has_one_line_per_cell(finished: Path) -> None:
    with (finished / "report.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["cell"] for row in rows] == [*NAMES, "scratch_train-seed-0", "scratch_train-seed-1"]
    assert {row["state"] for row in rows} == {"done"}
    assert [row["effective_mask_ratio"] for row in rows[:2]] == ["0.25", "0.5"]
    assert float(rows[0]["kNN"]) == pytest.approx(result(finished, NAMES[0])["scores"]["kNN"][0])  # type: ignore[index]
    assert float(rows[0]["flops"]) > float(rows[1]["flops"]) > 0
    assert all(float(row["step_milliseconds"]) > 0 for row in rows[:4])


def test_started_again_finished_cells_are_taken_as_they_are(
    finished: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [path for path in (finished / "cells").rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in paths}
    assert main(arguments(finished, labelled)) == DONE
    assert "6 cells, 6 of them done" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in paths} == before


def test_another_evaluation_scores_the_same_weights_anew(
    finished: Path, labelled: Path, in_process: None, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    before = weights(copy, NAMES[0])
    grid = "{mask.ratio: [0.25], train.seed: [0]}"
    extra = ["--evaluate.labels", "8", "--evaluate.draws", "3", "--evaluate.methods", "[kNN]"]
    extra += ["--evaluate.scratch", "false"]
    assert main(arguments(copy, labelled, *extra, grid=grid)) == DONE
    scores = result(copy, NAMES[0])["scores"]
    assert isinstance(scores, dict)
    assert list(map(len, scores.values())) == [3]
    after = weights(copy, NAMES[0])
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_cell_of_another_config_in_the_folder_is_told(
    finished: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(finished, labelled, "--base.optim.weight_decay", "0.5")) == MISTAKE
    shown = capsys.readouterr().err
    assert "cell mask.ratio 0.25, train.seed 0: " in shown
    assert "holds a run with other settings (optim.weight_decay 0.05 there, 0.5 now)" in shown
    assert len(shown.splitlines()) == 1


def test_a_failing_cell_stops_no_other_and_is_shown_as_failed(
    labelled: Path,
    tmp_path: Path,
    in_process: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pretrain = worker.pretrain
    broken = [0.25, 0.5]

    def fail(config: object) -> str | None:
        if config.mask.ratio == broken[0]:  # type: ignore[attr-defined]
            raise NonFiniteLossError("the loss of step 3 is nan; lower optim.base_lr.")
        if config.mask.ratio == broken[1]:  # type: ignore[attr-defined]
            raise ZeroDivisionError("nobody thought of that")
        return pretrain(config)  # type: ignore[arg-type]

    monkeypatch.setattr(worker, "pretrain", fail)
    grid = "{mask.ratio: [0.25, 0.5, 0.75], train.seed: [0]}"
    extra = ["--evaluate.scratch", "false", "--base.health.checks", "0"]
    assert main(arguments(tmp_path / "a", labelled, *extra, grid=grid, steps=2)) == FAILED
    shown = capsys.readouterr().out
    assert "mask.ratio 0.25, train.seed 0: failed (1 of 3): the loss of step 3 is nan" in shown
    assert "mask.ratio 0.5, train.seed 0: failed (2 of 3): ZeroDivisionError: nobody" in shown
    assert "mask.ratio 0.75, train.seed 0: done in" in shown
    page = (tmp_path / "a" / "report.html").read_text()
    assert "mask.ratio 0.25, train.seed 0: failed: the loss of step 3 is nan" in page
    broken.clear()
    broken += [9.0, 9.0]  # mended: the broken ones go on
    assert main(arguments(tmp_path / "a", labelled, *extra, grid=grid, steps=2)) == DONE
    assert "3 cells, 1 of them done" in capsys.readouterr().out
    assert "failed" not in (tmp_path / "a" / "report.md").read_text()


def test_cells_are_fine_tuned_on_the_split_where_that_is_asked_for(
    labelled: Path, tmp_path: Path, in_process: None
) -> None:
    extra = [
        *("--finetune.train.steps", "2", "--finetune.train.batch_size", "4"),
        *("--finetune.data.workers", "0", "--finetune.log.tensorboard", "false"),
        *("--finetune.augment.rand_augment", "null", "--evaluate.methods", "[]"),
        *("--finetune.optim.layer_decay", "0.5", "--base.health.checks", "0"),
    ]
    grid = "{mask.ratio: [0.5], train.seed: [0]}"
    folder = tmp_path / "a"
    assert main(arguments(folder, labelled, *extra, grid=grid, steps=2)) == DONE
    for name in ("mask-ratio-0.5_train-seed-0", "scratch_train-seed-0"):
        scores = result(folder, name)["scores"]
        assert isinstance(scores, dict)
        assert 0 <= scores["fine-tuned"][0] <= 100
        listed = read_paths(folder / "cells" / name / "finetune" / "images.jsonl")
        assert set(listed) == set(json.loads((folder / "split.json").read_text())["train"]["paths"])
    scratch = folder / "cells" / "scratch_train-seed-0" / "finetune" / "config.yaml"
    assert "layer_decay: 1.0" in scratch.read_text()
    assert "weights: null" in scratch.read_text()


def test_without_labels_the_label_free_measures_are_compared(
    labelled: Path, tmp_path: Path, in_process: None
) -> None:
    images = tmp_path / "unlabelled"
    write_pictures(images, 120, seed=5)
    extra = ["--evaluate.methods", "[]", "--evaluate.scratch", "false"]
    grid = "{mask.ratio: [0.5], train.seed: [0]}"
    assert main(arguments(tmp_path / "a", images, *extra, grid=grid)) == DONE
    text = (tmp_path / "a" / "report.md").read_text()
    assert "RankMe of held-out features (higher: more dimensions used): highest with" in text
    assert "One seed: nothing can be said about noise" in text
    assert "kNN" not in text


def test_counted_work_of_the_encoder_falls_with_the_visible_share(finished: Path) -> None:
    from dataclasses import replace

    config = load_run_config(finished / "cells" / NAMES[0])  # 3 of 4 patches visible
    config = replace(config, model=replace(config.model, name=ATTO))
    few = replace(config, mask=replace(config.mask, ratio=0.75))  # 1 of 4
    dense = replace(config, model=replace(config.model, backend="masked_dense"))
    low, high, all_of_it = map(flops_per_image, (few, config, dense))
    encoder = (all_of_it - high) * 4  # the decoder's part is the same in all
    assert high - low == pytest.approx(encoder / 2)
    # atto's 0.55 G multiply-adds at 224 px (paper's table), at 64 px and twice for FLOPs, thrice
    # for forward and backward.
    assert encoder == pytest.approx(0.55e9 * (64 / 224) ** 2 * 6, rel=0.02)


def test_a_folder_without_an_ablation_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder of an ablation"):
        load_ablation(tmp_path)


def whole_processes(test: Any) -> Any:
    """Mark a test whose like share a run, so one process has them all: for `--dist loadgroup`."""
    return pytest.mark.slow(pytest.mark.xdist_group("ablation")(test))


def run_console(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "fcmae", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@whole_processes
def test_two_jobs_in_processes_give_the_same_weights_and_scores(
    finished_atto: Path, labelled: Path, tmp_path: Path
) -> None:
    words = arguments(tmp_path / "a", labelled, "--jobs", "2", grid=ONE_SEED, model=ATTO)
    process = run_console(*words)
    output, _ = process.communicate()
    assert process.returncode == DONE, output.decode()
    for name in NAMES[:2]:
        mine, theirs = weights(finished_atto, name), weights(tmp_path / "a", name)
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
        assert result(finished_atto, name)["scores"] == result(tmp_path / "a", name)["scores"]


@whole_processes
def test_cells_as_jobs_of_a_cluster_give_the_same_weights(
    finished_atto: Path, labelled: Path, tmp_path: Path
) -> None:
    pytest.importorskip("submitit")
    grid = "{mask.ratio: [0.25], train.seed: [0]}"
    extra = ["--run.cluster", "true", "--slurm.executor", "local", "--slurm.gpus", "0"]
    extra += ["--evaluate.scratch", "false"]
    process = run_console(*arguments(tmp_path / "a", labelled, *extra, grid=grid, model=ATTO))
    output, _ = process.communicate()
    assert process.returncode == DONE, output.decode()
    assert "mask.ratio 0.25, train.seed 0: queued." in output.decode()
    mine, theirs = weights(finished_atto, NAMES[0]), weights(tmp_path / "a", NAMES[0])
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@whole_processes
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_ablation_goes_on_to_the_same_weights(
    number: int, labelled: Path, not_stopped: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    words = arguments(folder, labelled, "--evaluate.scratch", "false", **STOPPED)
    process = run_console(*words)
    metrics = folder / "cells" / "mask-ratio-0.5_train-seed-0" / "metrics.jsonl"
    while not any(line["step"] >= 9 for line in read_metrics(metrics)):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, number)
    process.communicate()
    assert process.returncode == (INTERRUPTED if number == signal.SIGTERM else -number)
    reached = max(line["step"] for line in read_metrics(metrics))
    assert reached < STEPS
    cell = int((metrics.parent / "lock").read_text().split()[1])
    while Path(f"/proc/{cell}").exists():  # it ends by itself when the ablation is gone
        time.sleep(0.02)
    assert max(line["step"] for line in read_metrics(metrics)) < STEPS
    again = run_console(*words)
    output, _ = again.communicate()
    assert again.returncode == DONE, output.decode()
    name = metrics.parent.name
    mine, theirs = weights(folder, name), weights(not_stopped, name)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)

    def logged(path: Path) -> list[dict[str, object]]:
        lines = read_metrics(path / "cells" / name / "metrics.jsonl")
        return [{k: v for k, v in line.items() if k not in WALL_CLOCK} for line in lines]

    assert logged(folder) == logged(not_stopped)
