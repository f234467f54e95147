"""How fast crops of large TIFFs are read by their tiles, against decoding the whole file."""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fcmae.data import Reading, decode
from fcmae.data.parts import Part
from fcmae.machine.bench.timing import Times, time_in_turns

SIDE_PX, TILE_PX = 8000, 512
CROPS = 8  # of a round, at places of their own
GREY = Reading(in_chans=1)


@dataclass(frozen=True)
class TiffRates:
    """Seconds that a made TIFF of SIDE_PX x SIDE_PX grey pixels takes, in tiles, deflated.

    Attributes:
        crop_px: side of a crop.
        whole: decoding all of it.
        crops: decoding CROPS crops of it.
    """

    crop_px: int
    whole: Times
    crops: Times

    def describe(self) -> str:
        """Return the rate of crops and how many times that of whole files it is."""
        ratio = CROPS * self.whole.ratio(self.crops)
        return (
            f"crops of {self.crop_px} px of a TIFF of {SIDE_PX} x {SIDE_PX} px in tiles: "
            f"{CROPS / self.crops.median:.1f} images/s, {ratio:.0f} times the rate of decoding it "
            "whole."
        )


def measure_tiff(crop_px: int, repeats: int) -> TiffRates:
    """Make such a TIFF and read it in both ways, in turns."""
    with tempfile.TemporaryDirectory(prefix="fcmae-bench-") as folder:
        path = str(Path(folder) / "tiles.tif")
        _write(path)
        works: list[Callable[[], None]] = [
            partial(_read_whole, path),
            partial(_read_crops, path, crop_px),
        ]
        whole, crops = time_in_turns(works, repeats, torch.device("cpu"))
    return TiffRates(crop_px, whole, crops)


def _write(path: str) -> None:
    from tifffile import imwrite

    rng = np.random.default_rng(0)
    tile = rng.integers(0, 32, (TILE_PX, TILE_PX), dtype=np.uint8)  # deflate finds some order
    count = math.ceil(SIDE_PX / TILE_PX) ** 2
    imwrite(
        path,
        (np.roll(tile, number) for number in range(count)),
        shape=(SIDE_PX, SIDE_PX),
        dtype=np.uint8,
        tile=(TILE_PX, TILE_PX),
        compression="zlib",
        photometric="minisblack",
    )


def _read_whole(path: str) -> None:
    decode(path, GREY)


def _read_crops(path: str, crop_px: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(CROPS):
        top, left = (int(place) for place in rng.integers(0, SIDE_PX - crop_px, 2))
        part = Part(top, left, crop_px, crop_px, (crop_px, crop_px))
        decode(path, GREY, lambda *_, part=part: part)
