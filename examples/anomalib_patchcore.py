"""An exported folder in anomalib's PatchCore: a memory of good pictures, and how odd others are.

python examples/anomalib_patchcore.py runs/mine/export/encoder-timm
"""

import sys

import timm
import torch
from anomalib.models.image.patchcore.torch_model import PatchcoreModel

name = f"local-dir:{sys.argv[1]}"
config = timm.create_model(name).pretrained_cfg
model = PatchcoreModel(layers=["stages.1", "stages.2"], backbone=name, pre_trained=True)
# As a whole: anomalib.models.Patchcore(backbone=name, layers=[...], pre_processor=...), where the
# transform of pre_processor must have the mean and deviation of config.json, not ImageNet's.

mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
good = (torch.rand(4, *config["input_size"]) - mean) / std  # yours: values in 0..1, [N, C, H, W]
images = good[:2]

model.train()
memory = model(good)
model.subsample_embedding(sampling_ratio=0.2, embeddings=memory)
model.eval()
with torch.no_grad():
    features = model.feature_extractor(images)["stages.2"]
    odd = model(images)
print(f"scores {odd.pred_score.flatten().tolist()}, map {tuple(odd.anomaly_map.shape)}")
