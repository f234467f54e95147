"""An exported folder below torchvision's detectors: Faster R-CNN, RetinaNet and Mask R-CNN.

python examples/torchvision_detection.py runs/mine/export/encoder-timm
"""

import sys

import timm
import torch
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN

name = f"local-dir:{sys.argv[1]}"
config = timm.create_model(name).pretrained_cfg
channels, height, width = config["input_size"]


def backbone() -> BackboneWithFPN:
    body = timm.create_model(name, pretrained=True, features_only=True)
    layers = {f"stages_{stage}": str(stage) for stage in range(4)}
    return BackboneWithFPN(body, layers, body.feature_info.channels(), 256)


options = {"image_mean": config["mean"], "image_std": config["std"], "min_size": height}
options |= {"max_size": 2 * max(height, width)}
box = torch.tensor([[4.0, 6.0, 40.0, 50.0]])  # x0, y0, x1, y1
mask = torch.zeros(1, height, width, dtype=torch.uint8)
mask[:, 6:50, 4:40] = 1
target = {"boxes": box, "labels": torch.tensor([1]), "masks": mask}
pixels = torch.rand(channels, height, width)  # values in 0..1: the detectors normalise
for detector in (FasterRCNN, RetinaNet, MaskRCNN):
    net = detector(backbone(), num_classes=2, **options)
    losses = net([pixels], [target])
    sum(losses.values()).backward()
    print(detector.__name__, {key: round(float(loss), 3) for key, loss in losses.items()})

images = net.eval().transform([pixels])[0].tensors
with torch.no_grad():
    features = net.backbone.body(images)["3"]
