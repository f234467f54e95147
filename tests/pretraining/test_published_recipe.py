"""A published recipe comes to its end on what it is for: ImageNet's structure, sizes reduced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcmae.__main__ import main
from fcmae.errors import DONE
from fcmae.runs.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("undrawn")

ROOT = Path(__file__).resolve().parents[2]
# Sizes alone; 0.04 of 3000 images are 120, four steps.
REDUCED = {
    "data.image_size": 64,
    "data.workers": 0,
    "train.batch_size": 16,
    "train.accumulate": 2,
    "train.epochs": 0.04,
    "optim.warmup_epochs": 0.02,
    "train.device": "cpu",
    "log.every_steps": 2,
}


def write_imagenet(folder: Path, per_class: int) -> None:
    """Write 1000 class folders of small JPEGs, named as ImageNet's."""
    rng = np.random.default_rng(0)
    for number in range(1000):
        name = f"n{1440764 + 97 * number:08d}"
        (folder / name).mkdir(parents=True)
        colour = rng.integers(0, 200, 3)
        for image in range(per_class):
            pixels = colour + rng.integers(0, 56, (80 + image, 96, 3))
            path = folder / name / f"{name}_{image}.JPEG"
            Image.fromarray(pixels.astype(np.uint8)).save(path, quality=80)


@pytest.mark.slow
def test_atto_goes_through_a_thousand_class_folders_to_the_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_imagenet(tmp_path / "train", 3)
    recipe = str(ROOT / "configs" / "pretrain" / "atto.yaml")
    arguments = ["--run.dir", str(tmp_path / "run"), "--data.path", str(tmp_path / "train")]
    for name, value in REDUCED.items():
        arguments += [f"--{name}", str(value)]
    assert main(["pretrain", "--config", recipe, *arguments]) == DONE
    said = " ".join(capfd.readouterr().err.split())
    assert "100 of the 1,000 classes are scored, drawn by the seed" in said
    assert "failed" not in said
    run = tmp_path / "run"
    assert (run / "finished.txt").read_text() == "step 4\n"
    assert "100 classes, chance 1" in (run / "scores.txt").read_text()
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line] == [
        1,
        2,
        4,
    ]
    assert (run / "export" / "encoder.safetensors").is_file()
