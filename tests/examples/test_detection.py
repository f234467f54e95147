"""The worked example of detection learns boxes in COCO's JSON and says its AP."""

import json
from pathlib import Path

import numpy as np
import pytest
from example_scripts import exported_folder, run_script
from PIL import Image

pytest.importorskip("torchmetrics", reason="the extra detection")
pytest.importorskip("pycocotools", reason="the extra detection")

SIDE = 64
# Ids as other tools give them: neither from 0 nor without gaps.
CATEGORIES = [{"id": 7, "name": "bright"}, {"id": 12, "name": "dark"}]


def made_pictures(folder: Path, count: int, first_id: int, seed: int) -> dict[str, list]:
    """Write grey noise with one to two rectangles each, and return COCO's description."""
    rng = np.random.default_rng(seed)
    coco: dict[str, list] = {"images": [], "annotations": [], "categories": CATEGORIES}
    for image_id in range(first_id, first_id + count):
        pixels = rng.normal(128, 10, (SIDE, SIDE, 3))
        for place, kind in enumerate(CATEGORIES):
            if rng.random() < 0.25:
                continue
            width, height = (int(value) for value in rng.integers(14, 28, 2))
            x = place * SIDE // 2 + int(rng.integers(0, SIDE // 2 - width + 1))
            y = int(rng.integers(0, SIDE - height))
            pixels[y : y + height, x : x + width] = 235 if kind["name"] == "bright" else 20
            box = [x, y, width, height]
            coco["annotations"].append(
                {"id": len(coco["annotations"]), "image_id": image_id, "bbox": box}
                | {"category_id": kind["id"], "iscrowd": 0, "area": width * height}
            )
        name = f"{image_id:03d}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
        coco["images"].append({"id": image_id, "file_name": name, "width": SIDE, "height": SIDE})
    return coco


@pytest.mark.slow
def test_a_detector_finds_rectangles_that_it_has_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported_folder(tmp_path / "encoder-timm", 3)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    files = []
    for name, count, first_id in (("train", 32, 100), ("val", 8, 500)):
        coco = made_pictures(pictures, count, first_id, seed=first_id)
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(coco), encoding="utf-8")
    output = tmp_path / "boxes"
    run_script(
        monkeypatch,
        "detection.py",
        *(tmp_path / "encoder-timm", *files, "--images", pictures, "--output", output),
        *("--steps", 60, "--batch_size", 4, "--lr", 1e-3, "--regions", 32),
    )
    scores = json.loads((output / "scores.json").read_text(encoding="utf-8"))
    assert set(scores) == {"AP", "AP50", "AP75", "AP bright", "AP dark"}
    assert scores["AP50"] > 0.25  # 0.38 when it was written; 0 of a detector that has not learned
    detections = json.loads((output / "detections.json").read_text(encoding="utf-8"))
    assert {one["category_id"] for one in detections} <= {7, 12}
    truth = json.loads(files[1].read_text(encoding="utf-8"))["annotations"]
    best = max(detections, key=lambda one: one["score"])
    boxes = [one["bbox"] for one in truth if one["image_id"] == best["image_id"]]
    assert min(np.abs(np.subtract(box, best["bbox"])).max() for box in boxes) < 8
    assert (output / "detector.safetensors").is_file()
    assert len(list(output.glob("boxes_*.png"))) == 8
