"""Whole pictures of any size through a network that sees tiles: overlapping, blended, in bands.

Tiles begin at multiples of SIDE_PX, so that strided layers see the pixels that they would see in
the whole picture. Memory depends on a picture's width and on the tile, not on its height.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcmae.data import Normalisation
from fcmae.data.decoding import Decoded
from fcmae.data.holes import fill
from fcmae.model.segmenter import SIDE_PX
from sparse.whole import native_blocks

EDGE_SHARE = 0.25  # of the overlap at a tile's inner edge counts nothing: its view is cut there


class Band(NamedTuple):
    """Finished rows of a picture: the first one, and probabilities float32 [classes, h, W]."""

    top: int
    probabilities: Tensor


class Tiling(NamedTuple):
    """How pictures are cut.

    Attributes:
        size: (height, width) of a tile, px, multiples of SIDE_PX.
        overlap: share of a tile that overlaps the next one.
        batch_size: tiles that the network sees together.
    """

    size: tuple[int, int]
    overlap: float = 0.25
    batch_size: int = 8


def whole(side: int) -> int:
    """Return the px of a side padded to a multiple of SIDE_PX."""
    return math.ceil(side / SIDE_PX) * SIDE_PX


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Return where tiles begin along a side, which they cover and may exceed by less than SIDE_PX.

    Args:
        length: of the side, px.
        tile: length of a tile, px, a multiple of SIDE_PX.
        overlap: least share of a tile that overlaps the next one.
    """
    last = max(0, whole(length) - tile)
    step = max(SIDE_PX, int(tile * (1 - overlap)) // SIDE_PX * SIDE_PX)
    return [*range(0, last, step), last]


def _ramp(tile: int, start: int, starts: list[int]) -> Tensor:
    """Return the weight of each px of a tile along a side: falls to 0 where another goes on."""
    weight = torch.ones(tile)
    place = starts.index(start)
    for neighbour, is_end in ((place - 1, False), (place + 1, True)):
        if not 0 <= neighbour < len(starts):
            continue
        overlap = tile - abs(starts[neighbour] - start)
        if overlap <= 0:
            continue
        edge = int(EDGE_SHARE * overlap)
        position = (torch.arange(overlap) + 0.5 - edge) / (overlap - 2 * edge)
        rise = 0.5 - 0.5 * torch.cos(math.pi * position.clamp(0, 1))
        if is_end:
            weight[tile - overlap :] *= rise.flip(0)
        else:
            weight[:overlap] *= rise
    return weight


def predict_bands(
    network: nn.Module,
    picture: Decoded,
    normalise: Normalisation,
    tiling: Tiling,
    device: torch.device,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Iterator[Band]:
    """Yield the probabilities of a picture's pixels, from top to bottom, every row once.

    A picture that fits into one tile is seen as a whole. Pixels without data, and those that pad
    the picture below and to the right, are 0 after normalisation, as in training.

    Args:
        network: on `device`, in evaluation mode; images [N, C, H, W] -> logits [N, K, H, W].
        picture: [C, H, W], uint8 or float32 in 0..1, on the CPU.
        normalise: of the network's input, on the CPU.
        tiling: how it is cut.
        device: of the network.
        autocast: context of the forward pass.
    """
    image, valid = picture
    height, width = image.shape[-2:]
    tile_height, tile_width = (
        min(tile, whole(side)) for tile, side in zip(tiling.size, (height, width), strict=True)
    )
    tops = tile_starts(height, tile_height, tiling.overlap)
    lefts = tile_starts(width, tile_width, tiling.overlap)
    columns = [_ramp(tile_width, left, lefts) for left in lefts]
    covered = lefts[-1] + tile_width
    sums: Tensor | None = None  # [K, tile_height, covered], of rows from the current top on
    weights = torch.zeros(tile_height, covered)

    def cut(top: int, left: int) -> Tensor:
        rows, cols = slice(top, top + tile_height), slice(left, left + tile_width)
        part = normalise(image[:, rows, cols])
        part = fill(part, None if valid is None else valid[:, rows, cols])
        short = (0, tile_width - part.shape[2], 0, tile_height - part.shape[1])
        return F.pad(part, short)

    for place, top in enumerate(tops):
        row = _ramp(tile_height, top, tops)
        waiting = iter(range(len(lefts)))
        while batch := list(itertools.islice(waiting, tiling.batch_size)):
            tiles = torch.stack([cut(top, lefts[column]) for column in batch]).to(device)
            with torch.no_grad(), autocast(), native_blocks(network):
                logits = network(tiles)
            shares = logits.float().softmax(dim=1).cpu()
            if sums is None:
                sums = torch.zeros(shares.shape[1], tile_height, covered)
            for column, share in zip(batch, shares, strict=True):
                weight = row[:, None] * columns[column]
                cols = slice(lefts[column], lefts[column] + tile_width)
                sums[:, :, cols] += share * weight
                weights[:, cols] += weight
        assert sums is not None
        done = tops[place + 1] - top if place + 1 < len(tops) else tile_height
        rows = min(done, height - top)
        yield Band(top, sums[:, :rows, :width] / weights[:rows, :width])
        kept = tile_height - done
        sums = torch.cat([sums[:, done:], sums.new_zeros(len(sums), done, covered)], dim=1)
        weights = torch.cat([weights[done:], weights.new_zeros(done, covered)])
        assert len(weights) == kept + done
