"""A ViT-MAE of timm's blocks: what a user might pretrain instead of a ConvNet."""

import math

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from fcmae.model.loss import normalize_patches, reconstruction_loss
from fcmae.model.masking import is_masked_from_visible
from fcmae.model.patches import patchify

PATCH = 16
# Width and depth of timm's ViTs by their millions of parameters; heads are 64 wide.
SIZES = {5.5: (192, 12), 22.0: (384, 12), 86.0: (768, 12), 303.0: (1024, 24), 631.0: (1280, 32)}
DECODER_WIDTH, DECODER_DEPTH, DECODER_HEADS = 512, 8, 16  # of the MAE paper (arXiv 2111.06377)


class VitMae(nn.Module):
    """Masked autoencoder with a ViT of about `num_parameters`, as in arXiv 2111.06377."""

    def __init__(self, num_parameters: int, image_size: int) -> None:
        super().__init__()
        nearest = min(SIZES, key=lambda size: abs(math.log(size * 1e6 / num_parameters)))
        width, depth = SIZES[nearest]
        self.num_patches = (image_size // PATCH) ** 2
        values = PATCH**2 * 3
        self.embed = nn.Linear(values, width)
        self.position = nn.Parameter(torch.randn(self.num_patches, width) * 0.02)
        self.blocks = nn.Sequential(
            *(Block(width, width // 64, qkv_bias=True) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, DECODER_WIDTH)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, DECODER_WIDTH))
        self.decoder_position = nn.Parameter(torch.randn(self.num_patches, DECODER_WIDTH) * 0.02)
        self.decoder = _blocks(DECODER_WIDTH, DECODER_HEADS, DECODER_DEPTH)
        self.predict = nn.Sequential(nn.LayerNorm(DECODER_WIDTH), nn.Linear(DECODER_WIDTH, values))

    def forward(self, images: Tensor, visible: Tensor) -> Tensor:
        """Return the loss at hidden patches: images [N, 3, H, W], visible LongTensor [N, K]."""
        patches = patchify(images, PATCH)  # [N, L, 16 * 16 * 3]
        index = visible.unsqueeze(-1)
        seen = patches.gather(1, index.expand(-1, -1, patches.shape[-1]))
        tokens = self.norm(self.blocks(self.embed(seen) + self.position[visible]))
        tokens = self.project(tokens)
        whole = self.mask_token.to(tokens.dtype).repeat(len(images), self.num_patches, 1)
        whole = whole.scatter(1, index.expand_as(tokens), tokens)
        prediction = self.predict(self.decoder(whole + self.decoder_position))
        is_masked = is_masked_from_visible(visible, self.num_patches)
        return reconstruction_loss(prediction, normalize_patches(patches), is_masked)


def _blocks(width: int, heads: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))
