"""Tiles of pictures: every pixel once, the whole picture's result, and memory that stays."""

from __future__ import annotations

import itertools
import resource
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fcmae.data import Normalisation
from fcmae.data.decoding import Decoded
from fcmae.evaluation.tiles import Tiling, predict_bands, tile_starts
from fcmae.model.segmenter import SIDE_PX

NORMALISE = Normalisation((0.4, 0.5), (0.2, 0.3))
CPU = torch.device("cpu")


class Local(nn.Module):
    """Strided down and up again, as decoders are, where 4 px at a cut edge are wrong."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Conv2d(2, 6, 4, stride=4)
        self.middle = nn.Conv2d(6, 3, 3, padding=1)
        self.up = nn.Upsample(scale_factor=4, mode="nearest")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, 3, H, W]."""
        logits: Tensor = self.up(self.middle(self.down(images).tanh())) * 3
        return logits


def picture(height: int, width: int) -> Decoded:
    rng = torch.Generator().manual_seed(1)
    return Decoded(torch.randint(0, 256, (2, height, width), generator=rng, dtype=torch.uint8))


def predict(network: nn.Module, of: Decoded, tiling: Tiling) -> Tensor:
    """Return the probabilities of a picture, and check that each row comes once, in order."""
    row, bands = 0, []
    for band in predict_bands(network.eval(), of, NORMALISE, tiling, CPU):
        assert band.top == row
        row += band.probabilities.shape[1]
        bands.append(band.probabilities)
    assert row == of.image.shape[1]
    return torch.cat(bands, dim=1)


@pytest.mark.parametrize("length", [1, 31, 64, 65, 100, 351, 1000])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_tiles_cover_a_side_and_begin_where_the_strides_do(length: int, overlap: float) -> None:
    tile = 64
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0
    assert all(start % SIDE_PX == 0 for start in starts)
    assert 0 <= max(tile, starts[-1] + tile) - length < max(tile, length) + SIDE_PX
    assert starts[-1] + tile >= length
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    assert all(0 < gap <= tile * (1 - overlap) or gap == SIDE_PX for gap in gaps)


@pytest.mark.parametrize("size", [(200, 330), (97, 70), (40, 300), (64, 64), (33, 31)])
@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_tiles_give_the_whole_picture_s_result(size: tuple[int, int], overlap: float) -> None:
    """Everywhere: what a tile's cut edge falsifies weighs nothing, as the view is short."""
    network = Local()
    one = predict(network, picture(*size), Tiling((512, 512)))
    tiled = predict(network, picture(*size), Tiling((128, 96), overlap, 3))
    torch.testing.assert_close(tiled, one, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.sum(dim=0), torch.ones(size), atol=1e-5, rtol=0)


def test_a_picture_that_fits_into_a_tile_is_seen_as_a_whole() -> None:
    network = Local().eval()
    of = picture(50, 70)
    padded = torch.zeros(1, 2, 64, 96)
    padded[0, :, :50, :70] = NORMALISE(of.image)
    with torch.no_grad():
        expected = network(padded).softmax(dim=1)[0, :, :50, :70]
    torch.testing.assert_close(predict(network, of, Tiling((96, 96))), expected)


def test_pixels_without_data_are_0_as_in_training() -> None:
    of = picture(64, 64)
    valid = torch.ones(1, 64, 64, dtype=torch.bool)
    valid[:, 10:30, 5:50] = False
    seen: list[Tensor] = []

    class Watching(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            """Return no information."""
            seen.append(images)
            return images

    predict(Watching(), of._replace(valid=valid), Tiling((64, 64)))
    assert (seen[0][0, :, 10:30, 5:50] == 0).all()
    assert (seen[0][0, :, 40:] != 0).any()


def test_borders_of_tiles_cannot_be_seen() -> None:
    """A network that errs at the edge of what it sees leaves no line inside of the picture."""

    class Vignette(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            """Return logits that are wrong in the outermost px."""
            logits = torch.zeros(len(images), 2, *images.shape[2:])
            logits[:, 1] = 8.0
            for edge in (logits[..., :6, :], logits[..., -6:, :]):
                edge[:] = 0
            for edge in (logits[..., :6], logits[..., -6:]):
                edge[:] = 0
            return logits

    found = predict(Vignette(), picture(320, 320), Tiling((128, 128), 0.25, 4))[1]
    inside = found[8:-8, 8:-8]
    steps = [(inside.diff(dim=axis)).abs().max() for axis in (0, 1)]
    assert max(steps) < 0.02
    assert inside.min() > 0.95


@pytest.mark.slow
def test_a_picture_of_24_megapixels_takes_less_than_a_gigabyte() -> None:
    of = Decoded(torch.zeros(2, 4000, 6000, dtype=torch.uint8))
    network: Any = Local().eval()
    for _ in predict_bands(network, picture(512, 512), NORMALISE, Tiling((512, 512)), CPU):
        pass
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = 0
    for band in predict_bands(network, of, NORMALISE, Tiling((512, 512)), CPU):
        rows += band.probabilities.shape[1]
    assert rows == 4000
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 2**20  # KiB
