"""Pictures with anything wrong beside their pixels are read, and transparency is told."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
from format_cases import bands, picture
from PIL import Image

from fcmae.data import Reading, UndecodableImageError, decode, to_float
from fcmae.data.readers import describe, kind_of

COLOURS = bands(3)


def chunk(name: bytes, content: bytes, *, is_whole: bool = True) -> bytes:
    checksum = zlib.crc32(name + content) if is_whole else 0
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def png_with(*chunks: bytes, at_the_end: bool = False) -> bytes:
    content = picture(COLOURS, "PNG")
    place = len(content) - 12 if at_the_end else 33  # before IEND, or behind IHDR
    return content[:place] + b"".join(chunks) + content[place:]


def webp_with_exif(exif: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).save(buffer, "WEBP", lossless=True, exif=exif)
    return buffer.getvalue()


def text(megabytes: int) -> bytes:
    return b"comment\0\0" + zlib.compress(b"a" * (megabytes * 2**20))


GOOD_PIXELS = {
    "a broken EXIF block": lambda: png_with(chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x05 nothing")),
    "EXIF of noise": lambda: png_with(chunk(b"eXIf", b"noise and nothing else")),
    "a text of 3 MB": lambda: png_with(chunk(b"zTXt", text(3))),
    "100 texts of 1 MB": lambda: png_with(*[chunk(b"zTXt", text(1))] * 100),
    "a text of 3 MB at the end": lambda: png_with(chunk(b"zTXt", text(3)), at_the_end=True),
    "a colour profile of 2 MB": lambda: png_with(chunk(b"iCCP", text(2))),
    "a colour profile of noise": lambda: png_with(chunk(b"iCCP", b"name\0\0noise")),
    "a damaged text": lambda: png_with(chunk(b"tEXt", b"a\0b", is_whole=False)),
    "a broken physical size": lambda: png_with(chunk(b"pHYs", b"\0")),
    "WebP with a broken EXIF block": lambda: webp_with_exif(b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"),
    "WebP with EXIF of noise": lambda: webp_with_exif(b"noise"),
}


@pytest.mark.parametrize("name", GOOD_PIXELS)
def test_what_lies_beside_the_pixels_refuses_no_picture(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(GOOD_PIXELS[name]())
    image, _ = decode(str(path), Reading(in_chans=3))
    assert torch.equal(image, torch.from_numpy(COLOURS).permute(2, 0, 1))


def test_a_choice_drawn_at_random_is_drawn_once_for_a_file_read_twice(tmp_path: Path) -> None:
    from fcmae.data.parts import Part

    path = tmp_path / "a"
    path.write_bytes(GOOD_PIXELS["a text of 3 MB at the end"]())
    calls = []

    def choose(height: int, width: int) -> Part:
        calls.append((height, width))
        return Part(len(calls), 2, 5, 7, (5, 7))

    image, _ = decode(str(path), Reading(in_chans=3), choose)
    assert len(calls) == 1
    assert torch.equal(image, torch.from_numpy(COLOURS[1:6, 2:9]).permute(2, 0, 1))


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_pixels_stay_damaged(damage: str, tmp_path: Path) -> None:
    content = png_with(chunk(b"zTXt", text(3)))
    if damage == "cut":
        content = content[:-500]
    else:
        content = content[:-500] + bytes(byte ^ 90 for byte in content[-500:-480]) + content[-480:]
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UndecodableImageError):
        decode(str(tmp_path / "a"), Reading(in_chans=3))


def drawing(mode: str, form: str) -> bytes:
    """Black on transparent: all that is seen is the transparency."""
    opacity = np.zeros((20, 30), np.uint8)
    opacity[5:9, 6:20] = 255
    black = Image.new("RGB" if mode == "RGBA" else "L", (30, 20))
    black.putalpha(Image.fromarray(opacity))
    buffer = io.BytesIO()
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    black.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize(("mode", "form"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP")])
def test_a_picture_of_transparency_alone_is_refused_or_laid_over_another_colour(
    mode: str, form: str, in_chans: int, tmp_path: Path
) -> None:
    path = str(tmp_path / "a")
    Path(path).write_bytes(drawing(mode, form))
    with pytest.raises(UndecodableImageError, match=r"whole content is its transparency.*\[1, 1"):
        decode(path, Reading(in_chans=in_chans))
    reading = Reading(in_chans=in_chans, background=(1, 1, 1))
    image, valid = decode(path, reading)
    assert valid is None  # the background is content
    assert image.min() == 0
    assert image.float().mean() == pytest.approx(255 * (1 - 4 * 14 / 600))


@pytest.mark.parametrize("value_range", [None, (0.0, 127.0)])
@pytest.mark.parametrize("background", [None, (1.0, 0.5, 0.25)])
@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_the_same_where_values_are_compared(
    mode: str,
    in_chans: int,
    background: tuple[float, float, float] | None,
    value_range: tuple[float, float] | None,
    tmp_path: Path,
) -> None:
    """Marks of holes need the file's own values; nothing has the one that is asked for here."""
    pixels = np.random.default_rng(0).integers(1, 120, (20, 30, len(mode)), np.uint8)
    pixels[..., -1] = np.linspace(1, 255, 30)
    Image.fromarray(pixels, mode).save(tmp_path / "a.png")
    reading = Reading(in_chans=in_chans, background=background, value_range=value_range)
    image, valid = decode(str(tmp_path / "a.png"), reading)
    asked, others = decode(str(tmp_path / "a.png"), dataclasses.replace(reading, invalid=255.0))
    assert (valid, others, asked.dtype) == (None, None, image.dtype)
    step = 1 if image.dtype == torch.uint8 else 1 / 127
    limit = 0 if in_chans == 3 and value_range is None else 1.01 * step  # luma rounds otherwise
    assert (asked.float() - image.float()).abs().max() <= limit
    opacity = pixels[..., -1:].astype(float) / 255
    below = np.array(background or (0, 0, 0))
    shown = np.minimum(1, pixels[..., :-1] / (255 if value_range is None else 127))
    laid = shown * opacity + below * (1 - opacity)
    expected = laid @ (0.299, 0.587, 0.114) if in_chans == 1 else laid
    scale = 255 if image.dtype == torch.uint8 else 1
    found = asked.permute(1, 2, 0).reshape(expected.shape).numpy()
    assert np.abs(found - scale * expected).max() <= 1.51 * step


def test_the_background_shows_through(tmp_path: Path) -> None:
    half = np.full((4, 6, 4), (100, 0, 200, 51), np.uint8)
    half[0, 0, 3] = 0
    Image.fromarray(half).save(tmp_path / "a.png")
    reading = Reading(in_chans=3, background=(1.0, 0.5, 0.0))
    image, valid = decode(str(tmp_path / "a.png"), reading)
    assert valid is None
    assert image[:, 0, 0].tolist() == [255, 128, 0]
    assert image[:, 1, 1].tolist() == pytest.approx([224, 102, 40], abs=1)
    image, valid = decode(str(tmp_path / "a.png"), dataclasses.replace(reading, background=None))
    assert valid is not None
    assert (~valid[0]).nonzero().tolist() == [[0, 0]]
    assert image[:, 0, 0].tolist() == [0, 0, 0]  # no data, and nothing below it


@pytest.mark.parametrize("depth", [8, 16])
def test_transparent_pixels_are_holes_unless_a_background_is_given(
    depth: int, tmp_path: Path
) -> None:
    white = 2**depth - 1
    values = np.full((4, 6, 4), white, f"uint{depth}")
    values[1, 2, 3] = 0
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(values))
    path = str(tmp_path / "a.png")
    for asked in ({"in_chans": 3}, {"in_chans": 1}, {"in_chans": 2, "bands": (0, 1)}):
        valid = decode(path, Reading(**asked)).valid
        assert valid is not None
        assert (~valid[0]).nonzero().tolist() == [[1, 2]]
    grey = Reading(in_chans=3, background=(0.5, 0.5, 0.5))
    for reading in (grey, dataclasses.replace(grey, invalid=3.0)):  # values are compared there
        image, valid = decode(path, reading)
        assert valid is None
        assert to_float(image)[:, 1, 2].tolist() == pytest.approx([0.5] * 3, abs=0.01)
    picked = decode(path, dataclasses.replace(grey, bands=(2, 1, 0)))  # nothing is laid over it
    assert picked.valid is not None


def test_suffixes_say_nothing(tmp_path: Path) -> None:
    for form, kind, suffix in (
        ("JPEG", "JPEG", ".jfif"),
        ("AVIF", "AVIF", ".avif"),
        ("JPEG2000", "JPEG2000", ".j2k"),
        ("TGA", "TGA", ".tga"),
        ("PNG", "PNG", ""),
        ("WEBP", "WEBP", ".txt"),
    ):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(picture(COLOURS, form))
        assert kind_of(str(path)) == kind
        about = describe(str(path))
        assert (about.height, about.width, about.bands) == COLOURS.shape
        assert decode(str(path), Reading(in_chans=3)).image.shape == (3, *COLOURS.shape[:2])


def test_text_and_programs_are_no_pictures(tmp_path: Path) -> None:
    for content in (b"hello", b"\0" * 5000, b"P4 is my favourite", b"BMW", b"\x7fELF"):
        path = tmp_path / "a"
        path.write_bytes(content)
        assert kind_of(str(path)) is None
