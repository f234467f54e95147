"""A model that starts and pools as the released PyTorch code does, on purpose."""

# [start]
import torch
from torch import nn

from fcmae import FCMAE

torch.manual_seed(0)
model = FCMAE("convnextv2_atto", grn_scope="batch")
for name, module in model.named_modules():
    if ".downsample.1" in name:  # the 2x2 convolutions keep 0.02
        continue
    if name.startswith("decoder.") and isinstance(module, nn.Linear):
        module.reset_parameters()  # PyTorch's default
    elif isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight)  # std 1, cut at 2
