"""The model by itself, in a loop of your own."""

# [model]
import torch

from fcmae import FCMAE

model = FCMAE("convnextv2_atto", image_size=224, in_chans=3, patch_size=32, mask_ratio=0.6)
images = torch.randn(8, 3, 224, 224)  # normalised
out = model(images)  # draws which patches are visible
out.loss.backward()
pictures = model.reconstruct(out, images)  # [8, 3, 224, 224]
encoder = model.encoder  # the dense timm model: export it, fine-tune it
