"""An exported folder as the encoder of segmentation_models_pytorch: one step of a U-Net.

python examples/smp_segmentation.py runs/mine/export/encoder-timm
"""

import sys

import segmentation_models_pytorch as smp
import timm
import torch

name = f"local-dir:{sys.argv[1]}"
config = timm.create_model(name).pretrained_cfg
channels = config["input_size"][0]
# encoder_weights=True loads them, None leaves random ones; in_channels must be said.
net = smp.Unet(f"tu-{name}", encoder_weights=True, in_channels=channels, classes=2)

pixels = torch.rand(2, *config["input_size"])  # yours: values in 0..1, [N, C, H, W]
masks = (pixels.mean(dim=1) > 0.5).long()  # yours: class numbers, [N, H, W]
mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
images = (pixels - mean) / std

with torch.no_grad():
    features = net.encoder.eval()(images)[-1]

optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
loss = smp.losses.DiceLoss("multiclass")(net.train()(images), masks)
loss.backward()
optimizer.step()
print(f"Dice loss {loss.item():.3f}, logits {tuple(net(images).shape)}")
