"""What images with holes cost: three pretrainings per seed, scored on the same whole pictures.

Command: `python studies/holes.py OUT [--pictures elpv] [--seeds 4] [--steps 200]`. It writes grey
pictures of 144 px three times: whole, and twice with 20 to 60 % of the area (40 % in the mean) made
black behind a straight border at a random place and angle. The arms "whole", "holes" and "black"
are alike but for the pictures and `data.invalid 0`; "half" is "holes" with the rule of runs that
began before `data.fullest_crops`, and is run where --half asks for it. Flips and turns are given,
since `auto` may choose others for other pictures. Each is scored by the loss of hidden patches on
200 other whole pictures, two crops each, the same crops and masks for every arm and seed. "Its own"
is the mean of the training loss over the last quarter of the steps.
A cell that has a row in OUT/scores.csv is not run again.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

import fcmae
from fcmae.data import (
    Normalisation,
    PretrainAugmentation,
    PretrainDataset,
    Reading,
    collate,
    find_images,
    open_images,
)
from fcmae.evaluation.statistics import RULE, means, pairwise
from fcmae.runs.loading import load_run
from fcmae.runs.metrics import read_metrics

SIDE_PX, IMAGE_PX, PATCH_PX, MASK_RATIO = 144, 96, 32, 0.6
LEAST_HOLE, MOST_HOLE = 0.2, 0.6  # share of a picture's area
NUM_HELD_OUT, CROPS_EACH, SCORING_SEED = 200, 2, 1000
CROP_SCALE = (0.4, 1.0)
ARMS: dict[str, tuple[str, dict[str, Any]]] = {  # name: (folder of pictures, settings)
    "whole": ("whole", {}),
    "holes": ("holes", {"data.invalid": 0}),
    "black": ("holes", {}),
    "half": ("holes", {"data.invalid": 0, "data.fullest_crops": False}),
}
SETTINGS: dict[str, Any] = {
    "data.in_chans": 1,
    "data.mean": [0.5],
    "data.std": [0.25],
    "data.image_size": IMAGE_PX,
    "data.crop_scale": list(CROP_SCALE),
    "data.horizontal_flip": True,
    "data.vertical_flip": False,
    "data.rotate90": False,
    "data.workers": 0,
    "mask.ratio": MASK_RATIO,
    "mask.patch_size": PATCH_PX,
    "model.decoder_dim": 128,
    "train.batch_size": 32,
    "optim.base_lr": 3e-3,
    "optim.warmup_steps": 40,
    "health.checks": 0,
    "checkpoint.every_steps": None,
    "log.tensorboard": False,
    "log.num_pictures": 1,
}


def write_pictures(out: Path, pictures: str, count: int) -> None:
    """Write OUT/whole, OUT/holes and OUT/held-out, once; no pixel of a picture itself is 0."""
    if (out / "held-out").is_dir():
        return
    rng = np.random.default_rng(0)
    images = open_images(pictures)
    places = rng.permutation(len(images))[: count + NUM_HELD_OUT]
    for folder in ("whole", "holes", "held-out.part"):
        shutil.rmtree(out / folder, ignore_errors=True)
        (out / folder).mkdir(parents=True)
    rows, columns = np.mgrid[0:SIDE_PX, 0:SIDE_PX] / SIDE_PX - 0.5
    for number, place in enumerate(places):
        with Image.open(images.paths[place]) as opened:
            grey = ImageOps.fit(opened.convert("L"), (SIDE_PX, SIDE_PX))
        pixels = np.maximum(np.asarray(grey), 1)
        name = f"{number:04d}.png"
        if number < NUM_HELD_OUT:
            Image.fromarray(pixels).save(out / "held-out.part" / name)
            continue
        Image.fromarray(pixels).save(out / "whole" / name)
        angle, share = rng.uniform(0, 2 * np.pi), rng.uniform(LEAST_HOLE, MOST_HOLE)
        depth = rows * np.sin(angle) + columns * np.cos(angle)
        holed = np.where(depth < np.quantile(depth, share), 0, pixels).astype(np.uint8)
        Image.fromarray(holed).save(out / "holes" / name)
    (out / "held-out.part").rename(out / "held-out")


@torch.no_grad()
def held_out_loss(run: Path, folder: Path) -> float:
    """Return the loss of a run's last weights on whole pictures it has not seen."""
    _, model, _ = load_run(run)
    model.eval()
    dataset = PretrainDataset(
        find_images(str(folder)),
        PretrainAugmentation(model.image_size, crop_scale=CROP_SCALE),
        seed=SCORING_SEED,
        reading=Reading(in_chans=1),
        num_patches=model.num_patches,
        mask_ratio=MASK_RATIO,
    )
    normalise = Normalisation(SETTINGS["data.mean"], SETTINGS["data.std"])
    losses = []
    for epoch in range(CROPS_EACH):
        for start in range(0, len(dataset), 50):
            rows = range(start, min(start + 50, len(dataset)))
            batch = collate([dataset[epoch, index] for index in rows])
            loss = model(normalise(batch["image"]), batch["visible"]).loss
            losses += [float(loss)] * len(rows)
    return statistics.fmean(losses)


def end_loss(run: Path) -> float:
    """Return the mean loss of the run's last quarter of steps, on its own pictures."""
    lines = [line for line in read_metrics(run / "metrics.jsonl") if line.get("loss") is not None]
    last = lines[-1]["step"]
    return statistics.fmean(line["loss"] for line in lines if line["step"] > 0.75 * last)


def read_scores(file: Path) -> dict[str, dict[int, float]]:
    """Return {arm: {seed: loss}} of the rows that are there."""
    table: dict[str, dict[int, float]] = {arm: {} for arm in ARMS}
    if file.exists():
        for arm, seed, loss in csv.reader(file.read_text(encoding="utf-8").splitlines()):
            table[arm][int(seed)] = float(loss)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cells that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures", default="elpv", help="a folder, or elpv")
    parser.add_argument("--count", type=int, default=1000, help="pictures trained on, at most")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--half", action="store_true", help='run the arm "half", too')
    parsed = parser.parse_args(arguments)
    write_pictures(parsed.out, parsed.pictures, parsed.count)
    file = parsed.out / "scores.csv"
    for seed in range(parsed.seeds):
        for arm, (folder, settings) in ARMS.items():
            if arm == "half" and not parsed.half:
                continue
            if seed in read_scores(file)[arm]:
                continue
            run = parsed.out / f"{arm}-{seed}"
            trained = fcmae.pretrain(
                parsed.out / folder,
                run,
                "convnextv2_atto",
                **{**SETTINGS, **settings, "train.steps": parsed.steps, "train.seed": seed},
            )
            if trained.stopped_by is not None:
                raise SystemExit(f"stopped by {trained.stopped_by}; the same command goes on.")
            loss = held_out_loss(run, parsed.out / "held-out")
            with file.open("a", encoding="utf-8") as rows:
                rows.write(f"{arm},{seed},{loss:.5f}\n")
            print(f"{arm}, seed {seed}: {loss:.4f}, its own {end_loss(run):.4f}", flush=True)
    table = {arm: losses for arm, losses in read_scores(file).items() if losses}
    for arm, mean in means(table).items():
        seeds = ", ".join(f"{loss:.3f}" for _, loss in sorted(table[arm].items()))
        print(f"{arm}: {mean.text(3)} ({seeds})")
    for (first, second), gap in pairwise(table).items():
        print(f"{second} - {first}: {gap.text(3)}, {gap.verdict()}")
    print(RULE)


if __name__ == "__main__":
    main()
