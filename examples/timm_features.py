"""An exported folder in timm: features, maps of every stage, and a classifier to train.

python examples/timm_features.py runs/mine/export/encoder-timm
"""

import sys

import timm
import torch

name = f"local-dir:{sys.argv[1]}"
model = timm.create_model(name, pretrained=True, num_classes=0).eval()
backbone = timm.create_model(name, pretrained=True, features_only=True).eval()
classifier = timm.create_model(name, pretrained=True, num_classes=5)  # its head is new

config = model.pretrained_cfg  # what config.json says: size, mean and deviation of the run
pixels = torch.rand(2, *config["input_size"])  # yours: values in 0..1, [N, C, H, W]
mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
images = (pixels - mean) / std

with torch.no_grad():
    maps = backbone(images)  # strides 4, 8, 16 and 32
    vectors = model(images)
features = maps[-1]
print([tuple(m.shape) for m in maps], tuple(vectors.shape))

loss = classifier(images).logsumexp(dim=1).mean()
loss.backward()
