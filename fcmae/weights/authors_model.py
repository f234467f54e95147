"""Runs weights in the authors' layouts, dense or sparse, by their names alone.

A second reading of what the names mean, for the proof of conversions: written from the paper, it
shares nothing with the tables.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6  # of norms and GRN


class AuthorsModel:
    """A ConvNeXt as the authors' state dicts spell it: `state` is the whole description."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = {name.removeprefix("encoder."): t.float() for name, t in state.items()}

    def features(self, images: Tensor) -> Tensor:
        """Return the last feature map of images that are visible everywhere, [N, D, H, W]."""
        x = self._convolution("downsample_layers.0.0", images)
        x = self._norm("downsample_layers.0.1", x)
        for stage in range(4):
            for norm in (2,) if stage == 0 else (0,):  # 2: after a stem of stride 2
                if self._has(f"downsample_layers.{stage}.{norm}."):
                    x = self._norm(f"downsample_layers.{stage}.{norm}", x)
                    x = self._convolution(f"downsample_layers.{stage}.{norm + 1}", x)
            block = 0
            while self._has(f"stages.{stage}.{block}."):
                x = self._block(f"stages.{stage}.{block}", x)
                block += 1
        return self._norm("norm_pre", x) if self._has("norm_pre.") else x

    def logits(self, features: Tensor) -> Tensor | None:
        """Return what the classifier says of a feature map, None without a classifier."""
        if "head.weight" not in self.state:
            return None
        pooled = self._norm("norm", features.mean((2, 3))[:, :, None, None])
        return F.linear(pooled.flatten(1), self.state["head.weight"], self.state["head.bias"])

    def prediction(self, features: Tensor, is_masked: Tensor) -> Tensor | None:
        """Return the decoder's pixels of each cell [N, V, H, W], None without a decoder.

        Args:
            features: [N, D, H, W].
            is_masked: bool [N, 1, H, W].
        """
        if "mask_token" not in self.state:
            return None
        x = self._convolution("proj", features)
        x = torch.where(is_masked, self.state["mask_token"], x)
        block = 0
        while self._has(f"decoder.{block}."):
            x = self._block(f"decoder.{block}", x)
            block += 1
        return self._convolution("pred", x)

    def _block(self, name: str, x: Tensor) -> Tensor:
        depthwise, bias = self._weight(f"{name}.dwconv"), self._bias(f"{name}.dwconv")
        branch = F.conv2d(x, depthwise, bias, padding=depthwise.shape[2] // 2, groups=x.shape[1])
        branch = self._norm(f"{name}.norm", branch).permute(0, 2, 3, 1)
        branch = F.gelu(self._linear(f"{name}.pwconv1", branch))
        if f"{name}.grn.gamma" in self.state:
            gamma, beta = (self.state[f"{name}.grn.{part}"].flatten() for part in ("gamma", "beta"))
            response = branch.square().sum((1, 2), keepdim=True).sqrt()
            ratio = response / (response.mean(-1, keepdim=True) + EPS)
            branch = gamma * (branch * ratio) + beta + branch
        branch = self._linear(f"{name}.pwconv2", branch)
        return x + (branch * self.state.get(f"{name}.gamma", 1.0)).permute(0, 3, 1, 2)

    def _convolution(self, name: str, x: Tensor) -> Tensor:
        """A convolution whose kernel is as large as its stride."""
        weight = self._weight(name)
        return F.conv2d(x, weight, self._bias(name), stride=weight.shape[2])

    def _linear(self, name: str, x: Tensor) -> Tensor:
        name = name if f"{name}.weight" in self.state else f"{name}.linear"
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        name = name if f"{name}.weight" in self.state else f"{name}.ln"
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        x = F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, EPS)
        return x.permute(0, 3, 1, 2)

    def _weight(self, name: str) -> Tensor:
        """Return a dense kernel; a sparse one is laid out place by place, the row fastest."""
        if f"{name}.weight" in self.state:
            return self.state[f"{name}.weight"]
        kernel = self.state[f"{name}.kernel"]  # [places, in, out], or [places, C] if depthwise
        places = kernel.unsqueeze(1) if kernel.dim() == 2 else kernel
        side = round(len(places) ** 0.5)
        weight = places.new_zeros(places.shape[2], places.shape[1], side, side)
        for place, matrix in enumerate(places):
            weight[:, :, place % side, place // side] = matrix.T
        return weight

    def _bias(self, name: str) -> Tensor | None:
        bias = self.state.get(f"{name}.bias")
        return None if bias is None else bias.flatten()

    def _has(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.state)
