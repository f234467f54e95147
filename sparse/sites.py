"""Geometry of visible patches: which cells of a feature map are active, at every stage.

Visibility is an argument, never read from feature values, and every shape is explicit.
"""

# N images, K visible patches per image, R x Q patch grid (rows x columns), m patch side in cells
# of the stage at hand, H = R * m and W = Q * m cells, C channels

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_SIDE = 16  # of a patch on a whole map; with its ring its cells of 64 bytes fit a cache


@dataclass(frozen=True)
class VisiblePatches:
    """Where the visible patches of a batch lie on the patch grid.

    Attributes:
        image: [N, 1] index of the image, to broadcast against row and column.
        row: [N, K] patch row of each visible patch.
        column: [N, K] patch column of each visible patch.
        rows: patch rows of the grid, R.
        columns: patch columns of the grid, Q.
    """

    image: Tensor
    row: Tensor
    column: Tensor
    rows: int
    columns: int

    @classmethod
    def from_indices(cls, visible: Tensor, rows: int, columns: int) -> VisiblePatches:
        """Read row-major patch indices, LongTensor [N, K].

        Raises:
            ValueError: not int64 [N, K], no patch, or (checked on the CPU, where it needs no
                synchronisation) an index outside the grid or twice in one image.
        """
        if visible.dim() != 2 or visible.dtype != torch.int64 or visible.shape[1] == 0:
            raise ValueError(
                f"visible: got {visible.dtype} of shape {list(visible.shape)}, expected a "
                "LongTensor [N, K] of patch indices with K >= 1; "
                "fcmae.model.masking.draw_visible makes one."
            )
        if visible.device.type == "cpu" and not torch.compiler.is_compiling():
            ordered = visible.sort(dim=1).values
            if int(ordered[:, 0].min()) < 0 or int(ordered[:, -1].max()) >= rows * columns:
                raise ValueError(
                    f"visible: indices run from {int(ordered.min())} to {int(ordered.max())}, "
                    f"expected 0 to {rows * columns - 1} on a grid of {rows} x {columns} patches."
                )
            if bool((ordered.diff(dim=1) == 0).any()):
                raise ValueError(
                    "visible: a patch index stands twice in one image; "
                    "expected K different patches per image."
                )
        return cls.of_known(visible, rows, columns)

    @classmethod
    def of_known(cls, visible: Tensor, rows: int, columns: int) -> VisiblePatches:
        """Read patch indices as `from_indices`, of which it is known that they are right."""
        image = torch.arange(visible.shape[0], device=visible.device).unsqueeze(1)
        return cls(image, visible // columns, visible % columns, rows, columns)

    @property
    def num_images(self) -> int:
        """Images of the batch."""
        return self.row.shape[0]

    def gather(self, maps_NHWC: Tensor) -> Tensor:
        """Cut the visible patches out of feature maps: [N, H, W, C] -> [N, K, m, m, C]."""
        return self._patches_first(maps_NHWC)[self.image, self.row, :, self.column]

    def scatter(self, blocks: Tensor) -> Tensor:
        """Put visible patches onto maps of zeros: [N, K, m, m, C] -> [N, H, W, C]."""
        side, channels = blocks.shape[2], blocks.shape[4]
        maps_NHWC = blocks.new_zeros(
            self.num_images, self.rows * side, self.columns * side, channels
        )
        self._patches_first(maps_NHWC)[self.image, self.row, :, self.column] = blocks
        return maps_NHWC

    def is_active(self, side: int) -> Tensor:
        """Return bool [N, H, W]: True at the cells of visible patches, `side` cells each."""
        is_visible = torch.zeros(
            self.num_images, self.rows, self.columns, dtype=torch.bool, device=self.row.device
        )
        is_visible[self.image, self.row, self.column] = True
        return is_visible.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)

    def canvas(self, side: int) -> Canvas:
        """Return the maps of a stage whose patches are `side` cells wide."""
        line = torch.arange(side, device=self.row.device).view(1, 1, -1)  # of cells in a patch
        line = (self.image * self.rows + self.row).unsqueeze(-1) * side + line  # [N, K, m]
        runs = (line * self.columns + self.column.unsqueeze(-1)).flatten()
        place = self.row * self.columns + self.column
        number = torch.arange(self.row.shape[1], device=self.row.device, dtype=torch.int32)
        where = number.new_full((self.num_images, self.rows * self.columns), -1)
        where.scatter_(1, place, number.expand_as(place))
        return Canvas(
            runs,
            place.int(),
            where.unflatten(1, (self.rows, self.columns)),
            self.rows * side,
            self.columns * side,
            side,
        )

    def _patches_first(self, maps_NHWC: Tensor) -> Tensor:
        """View maps as [N, R, m, Q, m, C], to be indexed by patch row and column."""
        return maps_NHWC.unflatten(2, (self.columns, -1)).unflatten(1, (self.rows, -1))


@dataclass(frozen=True)
class Canvas:
    """Maps [N, H, W, C] of one stage as runs of m cells, one line of cells of one patch each.

    Visible patches are moved run by run, each a block of m * C values in memory.

    Attributes:
        runs: [N * K * m] indices of the visible runs.
        places: int32 [N, K], row-major place of each visible patch on the patch grid.
        where: int32 [N, R, Q], number of the visible patch at each place; -1 where it is hidden.
        height: H.
        width: W.
        side: m.
        is_whole: whether all patches are visible, in order: maps and blocks hold the same cells.
    """

    runs: Tensor
    places: Tensor
    where: Tensor
    height: int
    width: int
    side: int
    is_whole: bool = False

    @classmethod
    def whole(cls, num_images: int, height: int, width: int, device: torch.device) -> Canvas:
        """Return maps of so many cells of which nothing is hidden, in the largest square patches.

        A square map is one patch of its own, and cutting it moves nothing in memory.
        """
        both = math.gcd(height, width)
        side = max(m for m in range(1, min(both, LARGEST_SIDE) + 1) if both % m == 0)
        rows, columns = height // side, width // side
        everywhere = torch.arange(rows * columns, device=device).expand(num_images, -1)
        patches = VisiblePatches.of_known(everywhere, rows, columns)
        return dataclasses.replace(patches.canvas(side), is_whole=True)

    def scatter(self, blocks: Tensor) -> Tensor:
        """Put visible patches onto maps of zeros: [N, K, m, m, C] -> [N, H, W, C]."""
        if self.is_whole:
            rows = blocks.unflatten(1, (self.height // self.side, -1)).transpose(2, 3)
            return rows.reshape(len(blocks), self.height, self.width, -1)
        channels = blocks.shape[-1]
        maps_NHWC = blocks.new_zeros(len(self.places), self.height, self.width, channels)
        flat = maps_NHWC.view(-1, self.side * channels)
        flat.index_copy_(0, self.runs, blocks.reshape(-1, self.side * channels))
        return maps_NHWC

    def gather(self, maps_NHWC: Tensor) -> Tensor:
        """Cut the visible patches out of maps: [N, H, W, C] -> [N, K, m, m, C]."""
        if self.is_whole:
            cells = maps_NHWC.unflatten(2, (-1, self.side)).unflatten(1, (-1, self.side))
            return cells.transpose(2, 3).flatten(1, 2)
        channels = maps_NHWC.shape[-1]
        flat = maps_NHWC.reshape(-1, self.side * channels).index_select(0, self.runs)
        return flat.view(len(self.places), -1, self.side, self.side, channels)
