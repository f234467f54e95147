"""A crop decoded by itself is the crop of the decoded picture, reduced where that is not seen."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fcmae.data import UndecodableImageError, decode_image
from fcmae.data.augmentation import resize_image
from fcmae.data.parts import Part, cut

ORIENTATION = 0x0112


def picture(height: int, width: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Blobs of many sizes, as photographs have, with no symmetry."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 4))
    for cells in (2, 5, 12, 30):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 4), dtype=np.uint8), "RGBA")
        pixels += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) / 4
    return Image.fromarray(pixels.astype(np.uint8), "RGBA").convert(mode)


def save(path: Path, image: Image.Image, orientation: int = 1, **options: Any) -> str:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(path, exif=exif, **options)
    return str(path)


class Asked:
    """Chooses a part away from the edges that begins on a grid of 8 px, and remembers of what."""

    def __init__(self, scaled_to: tuple[int, int] = (1000, 1000)) -> None:
        self.scaled_to = scaled_to
        self.sizes: list[tuple[int, int]] = []

    def __call__(self, height: int, width: int) -> Part:
        self.sizes.append((height, width))
        return Part(height // 64 * 8, width // 32 * 8, height // 2, width // 3, self.scaled_to)


def psnr(image: Tensor, reference: Tensor) -> float:
    return 10 * math.log10(255**2 / (image.float() - reference.float()).square().mean().item())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["jpg", "png", "tif", "webp"])
def test_a_part_of_a_turned_picture_is_that_part_of_what_is_seen(
    form: str, orientation: int, tmp_path: Path
) -> None:
    path = save(tmp_path / f"a.{form}", picture(90, 60), orientation)
    whole, asked = decode_image(path, 3), Asked()
    part = decode_image(path, 3, None, asked)
    assert asked.sizes == [tuple(whole.shape[1:])]
    assert torch.equal(part, cut(whole, Asked()))


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize(
    ("mode", "form"),
    [
        *[("1", "png"), ("L", "png"), ("LA", "png"), ("P", "png"), ("RGBA", "png"), ("P", "gif")],
        *[("L", "jpg"), ("CMYK", "jpg"), ("RGB", "mpo"), ("I;16", "png"), ("F", "tif")],
    ],
)
def test_a_part_of_any_kind_of_picture_has_its_pixels(
    mode: str, form: str, in_chans: int, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{form}"
    if mode == "I;16":
        Image.fromarray(np.asarray(picture(90, 60, "L")).astype(np.uint16) * 200).save(path)
    elif mode == "F":
        Image.fromarray(np.asarray(picture(90, 60, "L")).astype(np.float32) / 255).save(path)
    elif form == "mpo":
        extra = {"save_all": True, "append_images": [picture(90, 60, seed=1)]}
        picture(90, 60).save(path, "MPO", **extra)
    else:
        picture(90, 60, mode).save(path)
    asked = Asked()
    part, expected = (
        decode_image(str(path), in_chans, None, asked),
        cut(decode_image(str(path), in_chans), Asked()),
    )
    assert len(asked.sizes) == 1
    assert part.dtype == expected.dtype
    if mode == "RGB" and in_chans == 1:  # a JPEG's own luma is rounded once less
        torch.testing.assert_close(part, expected, rtol=0, atol=2)
    else:
        assert torch.equal(part, expected)


def test_a_part_of_an_array_and_of_pages_is_cut(tmp_path: Path) -> None:
    array, pages = tmp_path / "a.npy", tmp_path / "a.tif"
    np.save(array, np.random.default_rng(0).random((5, 40, 30), dtype=np.float32))
    grey = [picture(40, 30, "L", seed) for seed in range(5)]
    grey[0].save(pages, save_all=True, append_images=grey[1:])
    for path in (str(array), str(pages)):
        assert torch.equal(
            decode_image(path, 5, None, Asked()), cut(decode_image(path, 5), Asked())
        )


@pytest.mark.parametrize(
    ("scaled_to", "factor"), [(151, 1), (150, 2), (76, 2), (75, 4), (37, 8), (1, 8)]
)
def test_a_jpeg_is_decoded_as_small_as_the_crop_allows(
    scaled_to: int, factor: int, tmp_path: Path
) -> None:
    """The part has 300 x 300 px; what it is scaled to must be left."""
    path = save(tmp_path / "a.jpg", picture(600, 900), quality=95)
    part = decode_image(path, 3, None, Asked((scaled_to, scaled_to)))
    assert [abs(side - 300 / factor) <= 0.5 for side in part.shape[1:]] == [True, True]


@pytest.mark.parametrize("form", ["jpg", "mpo"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("in_chans", "scaled_to"), [(3, 128), (3, 64), (1, 32)])
def test_a_reduced_crop_looks_like_the_full_one(
    form: str, orientation: int, in_chans: int, scaled_to: int, tmp_path: Path
) -> None:
    """It begins on the grid of the reduction; others move by half a reduced pixel at most."""
    height, width = (800, 1200) if orientation < 5 else (1200, 800)
    source = picture(height, width)
    path = save(tmp_path / f"a.{form}", source, orientation, quality=95)
    asked = Asked((scaled_to, scaled_to))
    reduced = decode_image(path, in_chans, None, asked)
    full = cut(decode_image(path, in_chans), Asked())
    assert reduced.shape[1] * 2 <= full.shape[1]
    size = (scaled_to, scaled_to)
    assert psnr(resize_image(reduced, size), resize_image(full, size)) > 40


@pytest.mark.parametrize(("height", "width"), [(601, 903), (607, 905), (13, 4001)])
def test_odd_sizes_move_a_part_by_half_a_reduced_pixel_at_most(
    height: int, width: int, tmp_path: Path
) -> None:
    path = save(tmp_path / "a.jpg", picture(height, width))
    for side in (1, 3, 40, 150, 300):
        whole = decode_image(path, 3, None, lambda h, w, s=side: Part(0, 0, h, w, (s, s)))
        factor = round(width / whole.shape[2])
        assert abs(whole.shape[1] - height / factor) <= 0.5
        assert abs(whole.shape[2] - width / factor) <= 0.5
        corner = lambda h, w, s=side: Part(h - 1, w - 1, 1, 1, (s, s))  # noqa: E731
        assert decode_image(path, 3, None, corner).shape == (3, 1, 1)


def test_a_jpeg_that_is_cut_short_is_found_out_outside_the_part_too(tmp_path: Path) -> None:
    path = Path(save(tmp_path / "a.jpg", picture(600, 900)))
    path.write_bytes(path.read_bytes()[:-3000])
    for scaled_to in (8, 1000):
        top = lambda h, w, s=scaled_to: Part(0, 0, 50, 50, (s, s))  # noqa: E731
        with pytest.raises(UndecodableImageError, match="truncated"):
            decode_image(str(path), 3, None, top)
