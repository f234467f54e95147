"""An exported folder as mmpretrain's TIMMBackbone, which mmdetection and mmsegmentation build, too.

In their configurations: backbone=dict(type="mmpretrain.TIMMBackbone", **settings).

python examples/mmpretrain_backbone.py runs/mine/export/encoder-timm
"""

import sys

import timm
import torch

name = f"local-dir:{sys.argv[1]}"
config = timm.create_model(name).pretrained_cfg
settings = {
    "model_name": name,
    "features_only": True,
    "pretrained": True,
    "in_channels": config["input_size"][0],
    "out_indices": (0, 1, 2, 3),
}
try:
    from mmpretrain.models.backbones import TIMMBackbone
except ImportError:  # the call that it makes, for whoever has not built mmcv

    def TIMMBackbone(in_channels: int, **others: object) -> torch.nn.Module:  # noqa: N802
        return timm.create_model(in_chans=in_channels, checkpoint_path="", **others)


backbone = TIMMBackbone(**settings).eval()
mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
images = (torch.rand(2, *config["input_size"]) - mean) / std  # yours: values in 0..1
with torch.no_grad():
    maps = backbone(images)
features = maps[-1]
print([tuple(m.shape) for m in maps])
