"""The feature-collapse figure: read from the logs of runs, drawn, and its shipped config."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from fcmae.evaluation.health.collapse import collapse_figure, last_diversity
from fcmae.model.autoencoder import create_model
from fcmae.reports.health import health_blocks
from fcmae.runs.metrics import read_metrics
from fcmae.settings.ablation import parse_ablation
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.reading import from_plain

ROOT = Path(__file__).resolve().parents[3]


def write_run(folder: Path, *checks: list[float | None]) -> Path:
    folder.mkdir(parents=True)
    lines = [{"step": n, "health/diversity_by_layer": check} for n, check in enumerate(checks)]
    lines.append({"step": len(checks), "loss": 0.5})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    return folder


def diversity_of(run: Path) -> tuple[float, ...] | None:
    """Return the diversity that the log of a run folder has."""
    return last_diversity(read_metrics(run / "metrics.jsonl"))


def test_the_last_check_of_a_run_counts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [0.5, 0.5], [0.4, 0.1])
    assert diversity_of(run) == (0.4, 0.1)


def test_runs_without_checks_or_with_features_that_are_not_finite_have_none(tmp_path: Path) -> None:
    assert diversity_of(tmp_path / "absent") is None
    assert diversity_of(write_run(tmp_path / "unchecked")) is None
    assert diversity_of(write_run(tmp_path / "infinite", [0.4, None])) is None


def test_the_figure_has_a_mean_line_per_group_and_a_thin_one_per_run(
    tmp_path: Path,
) -> None:
    collapsed = [write_run(tmp_path / f"a{n}", [0.3, 0.1 * n]) for n in (0, 2)]
    diverse = [write_run(tmp_path / "b", [0.5, 0.4, 0.5])]
    groups = {"V1": collapsed, "V2": diverse, "failed": [tmp_path / "none"]}
    figure = collapse_figure({name: list(map(diversity_of, runs)) for name, runs in groups.items()})
    assert figure is not None
    axes = figure.axes[0]
    lines = [tuple(line.get_ydata()) for line in axes.lines]  # type: ignore[arg-type]
    assert lines[:3] == [(0.3, 0.0), (0.3, 0.2), (0.3, 0.1)]
    assert lines[3:5] == [(0.5, 0.4, 0.5)] * 2
    assert axes.get_legend_handles_labels()[1] == ["V1 (2 runs)", "V2"]


def test_nothing_is_drawn_of_runs_that_were_not_checked(tmp_path: Path) -> None:
    assert collapse_figure({"V1": [diversity_of(tmp_path / "none")]}) is None


def test_the_shipped_config_compares_encoders_that_differ_in_grn_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)  # the config names another by its path from there
    ablation = parse_ablation(["--config", "configs/ablation/feature_collapse.yaml"])
    assert len(ablation.grid["train.seed"]) >= 2
    models = []
    for name in ablation.grid["model.name"]:
        settings = {**ablation.base, "run": {"dir": "unused"}}
        settings["model"] = {**settings["model"], "name": name}
        models.append(create_model(from_plain(PretrainConfig, settings, where="test")))
    blocks = [[block for s in model.encoder.stages for block in s.blocks] for model in models]
    first, second = ([block.mlp.fc1.weight.shape for block in of_model] for of_model in blocks)
    assert first == second
    assert [hasattr(of_model[0].mlp, "grn") for of_model in blocks] == [False, True]


def test_a_report_shows_the_figure_where_runs_were_checked() -> None:
    @dataclasses.dataclass
    class Cell:
        lines: list[dict[str, object]]

    checked = Cell([{"step": 1, "health/diversity_by_layer": [0.5, 0.4]}])
    blocks: Any = health_blocks({"V2": [checked]}, [])  # type: ignore[list-item]
    assert blocks[0].name == "diversity-by-layer.svg"
    assert b"</svg>" in blocks[0].data
    assert health_blocks({"V2": [Cell([{"step": 1}])]}, []) == []  # type: ignore[list-item]
