"""Measures the encoders of finished cells without labels, by what needs several views of images.

Command: `python studies/recipes/label_free.py OUT [OUT ...] TABLE.csv`, where every OUT is a folder
of run_cells.py and lies where its cells were run from. A row of TABLE.csv per pretraining: its
probes as they were scored, the health panel's measures, and

rank_me:  effective rank of the features of crops (Garrido et al. 2023, arXiv 2210.02885).
alpha_req: how far the decay of the features' eigenvalues is from 1 / rank, 0 the best; the exponent
    is fitted to ranks 4 to 50 (Agrawal et al. 2022, section 3).
lidar:    effective rank of the discriminant that tells images apart from views of the same image
    (Thilak et al. 2023, arXiv 2312.04000, equation 3, delta 1e-4), 6 crops each.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

import fcmae
from fcmae.data import Normalisation, PretrainAugmentation, PretrainDataset, open_images
from fcmae.evaluation.features import evaluating, pooled_features
from fcmae.evaluation.health.measures import rank_me
from fcmae.model.patches import patch_grid

IMAGES, VIEWS = 192, 6
DELTA = 1e-4
FIRST_RANK, LAST_RANK = 4, 50
KEPT = ("pretrained/linear", "pretrained/kNN", "health/loss_at_0.6", "health/rank_me")
KEPT += tuple(f"health/diversity_stage_{stage}" for stage in (1, 2, 3))


def decay(vectors: Tensor) -> float:
    """Return the exponent of the power law that eigenvalues of features [N, D] follow."""
    centred = vectors.double() - vectors.double().mean(dim=0)
    values = torch.linalg.svdvals(centred).square()[FIRST_RANK - 1 : LAST_RANK]
    ranks = torch.arange(FIRST_RANK, FIRST_RANK + len(values)).double()
    points = torch.stack([ranks.log(), values.log()])
    covariance = torch.cov(points)
    return -float(covariance[0, 1] / covariance[0, 0])


def lidar(views: Tensor) -> float:
    """Return the effective rank of the linear discriminant of features [N, VIEWS, D]."""
    views = views.double()
    centres = views.mean(dim=1)
    between = torch.cov(centres.T)
    inner = (views - centres[:, None]).flatten(0, 1)
    within = inner.T @ inner / (len(inner) - len(centres)) + DELTA * torch.eye(inner.shape[1])
    values, axes = torch.linalg.eigh(within)
    whitening = axes @ torch.diag(values.rsqrt()) @ axes.T
    spread = torch.linalg.eigvalsh(whitening @ between @ whitening).clamp_min(0)
    shares = spread / spread.sum()
    return float(torch.special.entr(shares).sum().exp())


@torch.no_grad()
def features_of_views(run_dir: Path) -> Tensor:
    """Return the encoder's features of several training crops of some images, [N, VIEWS, D]."""
    data, model = fcmae.Run(run_dir).config.data, fcmae.load(run_dir / "export/encoder.safetensors")
    encoder, info = model.network, model.info
    images = open_images([data.path], None, where="data.path")
    step = max(1, len(images) // IMAGES)
    images = images.select(range(0, step * min(IMAGES, len(images)), step))
    augmentation = PretrainAugmentation(info.image_size, crop_scale=data.crop_scale)
    height, width = patch_grid(info.image_size, info.patch_size)
    dataset = PretrainDataset(
        images,
        augmentation,
        seed=0,
        reading=info.reading(),
        num_patches=height * width,
        mask_ratio=info.mask_ratio,
        patch_size=info.patch_size,
    )
    normalise = Normalisation(info.mean, info.std)
    vectors = []
    with evaluating(encoder):
        for index in range(len(images)):
            crops = torch.stack([dataset[view, index]["image"] for view in range(VIEWS)])
            vectors.append(pooled_features(encoder, normalise(crops)))
    return torch.stack(vectors)


def main() -> None:
    """Measure every pretraining that still has its weights."""
    *folders, table = map(Path, sys.argv[1:])
    rows: dict[str, dict[str, object]] = {}
    for folder in folders:
        for line in (folder / "cells.jsonl").read_text(encoding="utf-8").splitlines():
            cell = json.loads(line)
            run_dir = folder / cell["name"]
            if cell["kind"] != "pretrain" or not (run_dir / "export").is_dir():
                continue
            views = features_of_views(run_dir)
            flat = views.flatten(0, 1)
            kept = {name: cell["scores"].get(name) for name in KEPT}
            measured = {
                "rank_me": rank_me(flat),
                "alpha_req": abs(decay(flat) - 1),
                "lidar": lidar(views),
            }
            rounded = {name: round(value, 4) for name, value in measured.items()}
            rows[cell["name"]] = {"name": cell["name"], "set": cell["set"]} | kept | rounded
            print(rows[cell["name"]], flush=True)
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(next(iter(rows.values()))))
        writer.writeheader()
        writer.writerows(rows.values())


if __name__ == "__main__":
    main()
