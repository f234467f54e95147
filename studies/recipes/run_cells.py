"""Runs the cells of the recipe study one after another, and writes a CSV row for each.

Command: `python studies/recipes/run_cells.py PLAN.txt SETS OUT [BEFORE.csv]`. A line of the plan is
`KIND NAME SET [SETTING=VALUE ...]`: KIND is pretrain or finetune, NAME the folder in OUT, SET a
folder in SETS or the name elpv, and the settings are those of the command; `seed` stands for
train.seed and `peak` for the absolute peak rate. Rows of BEFORE.csv come first in OUT/cells.csv.
Blank lines and # lines mean nothing; an empty file OUT/stop ends it after the cell that runs. A
cell that has a row is not run again; lines that are added while it runs are run, too. All cells
share one process: loading torch takes longer than a short cell.
"""

from __future__ import annotations

import csv
import datetime
import json
import re
import shutil
import sys
import time
from pathlib import Path

from fcmae.__main__ import main as fcmae

ELPV = "elpv"  # the name that data.path knows, no folder
COMMON_BATCH = 32
COMMON = {"data.image_size": "96", "data.workers": "0", "log.tensorboard": "false"}
PRETRAIN = COMMON | {
    "model.name": "convnextv2_atto",
    "data.crop_scale": "[0.4, 1.0]",
    "train.batch_size": str(COMMON_BATCH),
    "checkpoint.every_steps": "null",
    "evaluate.max_images": "600",
    "evaluate.labels": "200",
    "health.checks": "1",
    "log.num_pictures": "1",
}
FINETUNE = COMMON | {
    "model.name": "convnextv2_atto",
    "train.batch_size": str(COMMON_BATCH),
    "checkpoint.every_steps": "null",
    "augment.reprob": "0",
    "augment.rand_augment": "null",
}


def scores(folder: Path) -> dict[str, float]:
    """Return every number of the run's records, the newest of each name."""
    found: dict[str, float] = {}
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        for name, value in json.loads(line).items():
            if isinstance(value, int | float) and not name.startswith("health/grn"):
                found[name] = value
    scores = folder / "scores.txt"
    for line in scores.read_text(encoding="utf-8").splitlines() if scores.exists() else ():
        row = re.fullmatch(r"(.+?) +([\d.]+) \+- +([\d.]+) +([\d.]+) \+- +([\d.]+)", line)
        if row:
            names = ("kNN", "kNN spread", "linear", "linear spread")
            numbers = map(float, row.groups()[1:])
            found |= {f"{row[1]}/{k}": v for k, v in zip(names, numbers, strict=True)}
    return found


def spelt_out(words: list[str]) -> dict[str, str]:
    """Return the settings of a plan's words, with those that it abbreviates."""
    given = dict(word.replace("_,", ", ").split("=", 1) for word in words)
    if "seed" in given:
        given["train.seed"] = given.pop("seed")
    if "peak" in given:
        batch = int(given.get("train.batch_size", COMMON_BATCH))
        given["optim.base_lr"] = f"{float(given.pop('peak')) * 256 / batch:.6g}"
    return given


def main() -> None:
    """Run what is left of the plan."""
    plan, sets, out = map(Path, sys.argv[1:4])
    before = Path(sys.argv[4]) if len(sys.argv) > 4 else None
    table = out / "cells.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    table.touch()
    while not (out / "stop").exists():
        done = {json.loads(line)["name"] for line in table.read_text().splitlines()}
        lines = [line.split("#")[0].split() for line in plan.read_text().splitlines()]
        left = [words for words in lines if words and words[1] not in done]
        if not left:
            write_csv(table, out / "cells.csv", before)
            time.sleep(5)
            continue
        kind, name, data, *given = left[0]
        settings = (PRETRAIN if kind == "pretrain" else FINETUNE) | spelt_out(given)
        path = data if data == ELPV else str(sets / data)
        settings |= {"data.path": path, "run.dir": str(out / name)}
        if "model.weights" in settings:
            settings["model.weights"] = str(out / settings["model.weights"])
        begin = time.monotonic()
        words = [word for pair in settings.items() for word in (f"--{pair[0]}", pair[1])]
        status = fcmae([kind, *words])
        row = {"name": name, "kind": kind, "set": data, "status": status}
        row["date"] = datetime.date.today().isoformat()
        row |= {"seconds": round(time.monotonic() - begin, 1), "settings": settings}
        row["scores"] = scores(out / name) if status == 0 else {}
        with table.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for large in (out / name).rglob("*.safetensors" if kind == "finetune" else "*.partial"):
            large.unlink()
        shutil.rmtree(out / name / "checkpoints", ignore_errors=True)
    write_csv(table, out / "cells.csv", before)


def write_csv(table: Path, path: Path, before: Path | None) -> None:
    """Write one row per cell, those of an earlier file first: what was set, what was measured."""
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    flat: list[dict[str, object]] = []
    if before is not None:
        with before.open(encoding="utf-8") as file:
            flat += csv.DictReader(file)
    flat += [
        {name: row[name] for name in ("name", "kind", "set", "status", "date", "seconds")}
        | row["settings"]
        | row["scores"]
        for row in rows
    ]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(flat)


if __name__ == "__main__":
    main()
