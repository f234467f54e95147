"""An ablation as its report reads it, made without training anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tiny_run import make_config

from fcmae.data import ImageList
from fcmae.reports.records import AblationRecord, Record, key_of
from fcmae.settings.ablation import Ablation, AblationEvaluateConfig, AblationRunConfig
from fcmae.settings.submit import SlurmConfig
from fcmae.studies.ablation.evaluation import PICTURES_FILE
from fcmae.studies.ablation.grid import Cell
from fcmae.studies.ablation.split import Split

RATIOS = (0.15, 0.3, 0.5, 0.65, 0.8)  # hide 1 to 5 of 6
HOSTILE = "<script>alert('&')</script>"


def make_ablation(
    folder: Path,
    score: Callable[[float, int], float],
    *,
    ratios: tuple[float, ...] = RATIOS,
    seeds: tuple[int, ...] = (0, 1),
    failing: tuple[float, int] | None = None,
    baseline: float = 60.0,
) -> AblationRecord:
    """Return cells of six patches whose kNN score is `score(ratio, seed)`; 0.5 is the default."""
    records = []
    for seed in seeds:
        for ratio in ratios:
            record = _record(folder, ratio, seed, score(ratio, seed))
            if failing == (ratio, seed):
                record = dataclasses.replace(record, state="failed", failure=HOSTILE, result={})
            records.append(record)
    baselines = [_baseline(folder, seed, baseline + 3 * seed) for seed in seeds]
    images = ImageList(("a.png", "b.png"), (0, 1), ("left", "right"))
    grid: dict[str, list[Any]] = {"mask.ratio": list(ratios), "train.seed": list(seeds)}
    ablation = Ablation(
        AblationRunConfig(dir=str(folder)), AblationEvaluateConfig(), SlurmConfig(), {}, grid, {}
    )
    split = Split(images, images, "pictures", True, {})
    return AblationRecord(ablation, split, records, baselines, key_of({"mask.ratio": 0.5}))


def _record(folder: Path, ratio: float, seed: int, score: float) -> Record:
    config = make_config(folder / f"{ratio}-{seed}")
    config = dataclasses.replace(
        config,
        mask=dataclasses.replace(config.mask, ratio=ratio),
        train=dataclasses.replace(config.train, seed=seed, batch_size=10),
    )
    cell = Cell(f"{ratio}-{seed}", {"mask.ratio": ratio}, seed, config, None)
    lines: list[dict[str, Any]] = [
        {
            "step": step,
            "loss": 1.0 - 0.01 * step,
            "images_per_second": 100.0 / (1.5 - ratio),
            "health/loss": 1.0 - 0.008 * step,
            "health/rank_me": 5.0 + step + 10 * ratio,
        }
        for step in range(1, 8)
    ]
    result = {
        "scores": {"kNN": [score - 1, score + 1]},
        "steps": 7,
        "images": 70,
        "flops": 1e12 * (1 - ratio),
        "hardware": "a machine, 2 cores",
        "versions": "fcmae 0",
        "threads": 1,
    }
    cell.folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images = {
        name: rng.integers(0, 255, (3, 64, 96, 3), dtype=np.uint8)
        for name in ("original", "seen", "pasted")
    }
    np.savez_compressed(cell.folder / PICTURES_FILE, **images)
    return Record(cell, "done", "", lines, result)


def _baseline(folder: Path, seed: int, score: float) -> Record:
    cell = Cell(f"scratch-{seed}", {}, seed, make_config(folder / f"scratch-{seed}"), None, True)
    return Record(cell, "done", "", [], {"scores": {"kNN": [score]}})
