"""The light decoder: projection, mask tokens, ConvNeXt V2 blocks on the grid, pixel head."""

import torch
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from sparse.backends.native import run_block
from sparse.ops.linear import linear
from sparse.sites import Canvas

INIT_STD = 0.02  # truncated normal, of every weight of FCMAE; the encoder's is timm's own


class Decoder(nn.Module):
    """Predicts the pixels of every cell of the encoder's last stage.

    Attributes:
        projection: 1x1 convolution from the encoder's width to the decoder's.
        mask_token: [1, C, 1, 1], stands at every hidden cell.
        blocks: ConvNeXt V2 blocks on the whole grid.
        head: 1x1 convolution to `cell_size**2 * in_chans` values, ordered (row, column, channel).

    Source: ConvNeXt V2, section 3.1 and table 1(b-d): one block of width 512.
    """

    def __init__(
        self, encoder_dim: int, decoder_dim: int, depth: int, cell_size: int, in_chans: int
    ) -> None:
        super().__init__()
        self.projection = nn.Conv2d(encoder_dim, decoder_dim, 1)
        self.mask_token = nn.Parameter(torch.empty(1, decoder_dim, 1, 1))
        self.blocks = nn.Sequential(
            *(ConvNeXtBlock(decoder_dim, use_grn=True, ls_init_value=None) for _ in range(depth))
        )
        self.head = nn.Conv2d(decoder_dim, cell_size**2 * in_chans, 1)
        self._initialize()

    def _initialize(self) -> None:
        """Draw each weight once: truncated normal; biases, GRN weights 0; norms 1.

        Deviation: the released code initialises twice and leaves most weights at std 1, so that
        its first loss is 17 and not 1. Held by test_first_loss_is_one_on_photographs.
        """
        nn.init.trunc_normal_(self.mask_token, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Tensor, is_masked: Tensor) -> Tensor:
        """Predict pixels: features [N, D, H, W], is_masked bool [N, 1, H, W] -> [N, H, W, S*S*C].

        Features at hidden cells are ignored: the mask token replaces them.
        """
        cells = self.project(features.permute(0, 2, 3, 1))
        is_masked = is_masked.permute(0, 2, 3, 1)
        return self.predict(self.decode(torch.where(is_masked, self.token(cells.dtype), cells)))

    def project(self, features: Tensor) -> Tensor:
        """Return visible cells in the decoder's width, wherever they lie: [..., D] -> [..., C]."""
        return linear(features, self.projection.weight.flatten(1), self.projection.bias)

    def token(self, dtype: torch.dtype) -> Tensor:
        """Return the mask token, [C], as it stands among cells of this type."""
        return self.mask_token.flatten().to(dtype)

    def decode(self, cells_NHWC: Tensor) -> Tensor:
        """Run the blocks on visible cells and mask tokens: [N, H, W, C] -> same.

        That is the encoder's own arithmetic, with nothing hidden.
        """
        num_images, height, width = cells_NHWC.shape[:3]
        canvas = Canvas.whole(num_images, height, width, cells_NHWC.device)
        blocks = canvas.gather(cells_NHWC)
        for block in self.blocks:
            blocks = run_block(block, blocks, canvas)
        return canvas.scatter(blocks)

    def predict(self, cells: Tensor) -> Tensor:
        """Return the pixels of cells, wherever they lie: [..., C] -> [..., S*S*C]."""
        return linear(cells, self.head.weight.flatten(1), self.head.bias)
