"""A detector on your own boxes: Faster R-CNN over an exported folder, scored by COCO's AP.

    pip install 'fcmae[detection]'
    python examples/detection.py runs/mine/export/encoder-timm train.json val.json \
        --images pictures --output runs/boxes --steps 2000

TRAIN and VAL are COCO's JSON (`images`, `annotations` with `bbox` [x, y, width, height] in px,
`categories`), as CVAT, Label Studio and Roboflow write it. Pictures are read as the run read them:
channels, bits and range, TIFF and DICOM too. Into --output go the scores, the boxes found in COCO's
format of results, pictures of them beside the true ones, and the detector's weights.
"""

import argparse
import json
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import box_convert
from torchvision.utils import draw_bounding_boxes, save_image

import fcmae
from fcmae.data import Reading, decode_all, to_float

PICTURES = 8  # drawn with their boxes


class Boxes(Dataset):
    """Pictures in 0..1 [C, H, W] and their targets: boxes x0, y0, x1, y1 in px, labels from 1."""

    def __init__(self, file: Path, images: Path, reading: Reading, *, is_flipped: bool) -> None:
        coco = json.loads(file.read_text(encoding="utf-8"))
        self.folder, self.reading, self.is_flipped = images, reading, is_flipped
        self.pictures = coco["images"]
        self.categories = {one["id"]: one["name"] for one in coco["categories"]}
        self.boxes: dict[int, list[dict]] = {picture["id"]: [] for picture in self.pictures}
        for one in coco["annotations"]:
            width, height = one["bbox"][2:]
            if not one.get("iscrowd") and width > 0 and height > 0:
                self.boxes[one["image_id"]].append(one)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        picture = self.pictures[index]
        path = self.folder / picture["file_name"]
        pixels = to_float(decode_all(str(path), self.reading))
        own, labels = self.boxes[picture["id"]], list(self.categories)
        corners = torch.tensor([one["bbox"] for one in own], dtype=torch.float32).reshape(-1, 4)
        boxes = box_convert(corners, "xywh", "xyxy")
        if self.is_flipped and torch.rand(()) < 0.5:
            pixels = pixels.flip(-1)
            boxes[:, [0, 2]] = pixels.shape[-1] - boxes[:, [2, 0]]
        found = torch.tensor([1 + labels.index(one["category_id"]) for one in own])
        return pixels, {"boxes": boxes, "labels": found.long()}


def create_detector(
    folder: Path, num_classes: int, side: int | None, regions: int, *, is_pretrained: bool
) -> FasterRCNN:
    """Return Faster R-CNN with a feature pyramid over the folder's encoder."""
    name = f"local-dir:{folder}"
    body = timm.create_model(name, pretrained=is_pretrained, features_only=True)
    layers = {f"stages_{stage}": str(stage) for stage in range(4)}
    config = timm.create_model(name).pretrained_cfg
    side = side or min(config["input_size"][1:])
    # One size of box per map of the pyramid, from 4 cells of the finest on: torchvision's own begin
    # at 32 px, for pictures of 800.
    strides = [*body.feature_info.reduction(), 2 * body.feature_info.reduction()[-1]]
    sizes = tuple((4 * stride,) for stride in strides)
    return FasterRCNN(
        BackboneWithFPN(body, layers, body.feature_info.channels(), 256),
        num_classes=1 + num_classes,  # 0 is what is no object
        image_mean=config["mean"],
        image_std=config["std"],
        min_size=side,
        max_size=2 * side,
        box_batch_size_per_image=regions,  # that a step looks at
        rpn_post_nms_top_n_test=2 * regions,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
    )


def train(detector: FasterRCNN, data: Boxes, options: argparse.Namespace) -> None:
    """Train every weight by AdamW, with a warm-up and a cosine."""
    loader = DataLoader(
        data, options.batch_size, shuffle=True, collate_fn=list, num_workers=options.workers
    )
    device = next(detector.parameters()).device
    optimizer = torch.optim.AdamW(detector.parameters(), lr=options.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, total_steps=options.steps, pct_start=0.1
    )
    detector.train()
    step = 0
    while step < options.steps:
        for batch in loader:
            pictures = [pixels.to(device) for pixels, _ in batch]
            targets = [{n: value.to(device) for n, value in target.items()} for _, target in batch]
            losses = detector(pictures, targets)
            loss = sum(losses.values())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            if step % max(1, options.steps // 20) == 0:
                parts = ", ".join(f"{name} {float(value):.3f}" for name, value in losses.items())
                print(f"step {step}: loss {float(loss):.3f} ({parts})", flush=True)
            if step == options.steps:
                break


@torch.no_grad()
def score(detector: FasterRCNN, data: Boxes, output: Path) -> dict[str, float]:
    """Return AP by COCO's rules, and write boxes and pictures into `output`."""
    device = next(detector.parameters()).device
    average = MeanAveragePrecision(class_metrics=True)
    results, ids = [], list(data.categories)
    detector.eval()
    for index in range(len(data)):
        pixels, target = data[index]
        found = {name: value.cpu() for name, value in detector([pixels.to(device)])[0].items()}
        average.update([found], [target])
        picture = data.pictures[index]
        corners = box_convert(found["boxes"], "xyxy", "xywh").tolist()
        for box, label, sure in zip(corners, found["labels"], found["scores"], strict=True):
            own = {"image_id": picture["id"], "category_id": ids[int(label) - 1]}
            results.append({**own, "bbox": box, "score": float(sure)})
        if index < PICTURES:
            shown = pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)
            shown = draw_bounding_boxes(shown, target["boxes"], colors="lime", width=2)
            likely = found["boxes"][found["scores"] > 0.5]
            shown = draw_bounding_boxes(shown, likely, colors="red", width=2)
            save_image(shown, output / f"boxes_{index}.png")
    (output / "detections.json").write_text(json.dumps(results), encoding="utf-8")
    values = average.compute()
    scores = {"AP": values["map"], "AP50": values["map_50"], "AP75": values["map_75"]}
    classes, of_class = values["classes"].reshape(-1), values["map_per_class"].reshape(-1)
    names = list(data.categories.values())
    scores |= {f"AP {names[int(c) - 1]}": v for c, v in zip(classes, of_class, strict=True)}
    return {name: round(float(value), 4) for name, value in scores.items()}


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder", type=Path, help="export/encoder-timm of a run")
parser.add_argument("train", type=Path, help="COCO JSON of the boxes to learn from")
parser.add_argument("val", type=Path, help="COCO JSON of the boxes to score with")
parser.add_argument("--images", type=Path, required=True, help="where file_name is found")
parser.add_argument("--output", type=Path, default=Path("runs/boxes"))
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--batch_size", type=int, default=8)
parser.add_argument("--side", type=int, help="px of the shorter side; default: the run's images")
parser.add_argument("--regions", type=int, default=512, help="per picture; fewer are faster")
parser.add_argument("--lr", type=float, default=2e-4)
parser.add_argument("--workers", type=int, default=0)
parser.add_argument("--scratch", action="store_true", help="random weights, to compare with")
options = parser.parse_args()

torch.manual_seed(0)
options.output.mkdir(parents=True, exist_ok=True)
reading = fcmae.load(options.folder).info.reading()
train_set = Boxes(options.train, options.images, reading, is_flipped=True)
val_set = Boxes(options.val, options.images, reading, is_flipped=False)
detector = create_detector(
    options.folder,
    len(train_set.categories),
    options.side,
    options.regions,
    is_pretrained=not options.scratch,
)
detector.to("cuda" if torch.cuda.is_available() else "cpu")
train(detector, train_set, options)
scores = score(detector, val_set, options.output)
(options.output / "scores.json").write_text(json.dumps(scores, indent=2), encoding="utf-8")
state = {name: value.cpu().contiguous() for name, value in detector.state_dict().items()}
save_file(state, options.output / "detector.safetensors")
print(", ".join(f"{name} {100 * value:.1f} %" for name, value in scores.items()))
print(f"{options.output}: scores, detections.json, detector.safetensors and pictures written.")
