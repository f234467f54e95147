"""Every kind of file with what comes out of it: tests check it, docs/formats.md is made of it."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

HEIGHT, WIDTH = 24, 40
LUMA = np.array([0.299, 0.587, 0.114])
REFUSED = "refused"


def bands(count: int, bits: int = 8, seed: int = 0) -> np.ndarray:
    """Values [H, W, count] over all of the range."""
    rng = np.random.default_rng(seed)
    kind = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
    return rng.integers(0, 2**bits, (HEIGHT, WIDTH, count), dtype=kind)


def tiff(values: Any, **options: Any) -> bytes:
    """A TIFF as tifffile writes it."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def packed_tiff(values: np.ndarray, bits: int, **options: Any) -> bytes:
    """A TIFF of samples of `bits` bits without gaps, each row filled up to whole bytes.

    Packed here: few imagecodecs can, though all of them read it.
    """
    if "tile" not in options:
        options.setdefault("rowsperstrip", 16)
    content = tiff(values, **options)
    segments = []
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        for page in file.pages:
            samples_each = page.samplesperpixel if page.planarconfig == 1 else 1
            row = (page.tilewidth or page.imagewidth) * samples_each
            for start, size in zip(page.dataoffsets, page.databytecounts, strict=True):
                samples = np.frombuffer(content, f"{file.byteorder}u2", size // 2, start)
                high_first = samples.astype(">u2").view(np.uint8).reshape(-1, row, 2)
                each = np.unpackbits(high_first, axis=-1)[..., 16 - bits :]
                segments.append(np.packbits(each.reshape(len(each), -1), axis=-1).tobytes())
    return tiff(iter(segments), shape=values.shape, dtype=np.uint16, bitspersample=bits, **options)


def picture(values: np.ndarray, form: str, mode: str | None = None, **options: Any) -> bytes:
    """A picture as Pillow writes it."""
    buffer = io.BytesIO()
    image = Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
    if mode is not None:
        image = Image.frombytes(mode, (WIDTH, HEIGHT), values.tobytes())
    image.save(buffer, form, **options)
    return buffer.getvalue()


def array(values: np.ndarray) -> bytes:
    """A .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def over_black(values: np.ndarray, white: int) -> np.ndarray:
    """Colours in 0..1 of values with transparency last, over black."""
    scaled = values / white
    return scaled[..., :-1] * scaled[..., -1:]


def rgb_of_inks(values: np.ndarray) -> np.ndarray:
    """Colours in 0..1 of 8-bit CMYK."""
    light = 1 - values / 255
    return light[..., :3] * light[..., 3:]


@dataclass(frozen=True)
class Case:
    """A file and what it gives.

    Attributes:
        format, depth, bands: words for the table.
        make: its bytes.
        out: data.in_chans -> (words for the table, [H, W, 1 or C] in 0..1, or what the reason
            says).
        own: what `read_image` returns, or None where it is the same as no other.
        settings: of the Reading beside in_chans.
        tolerance: largest difference on the scale 0..1; 8 bits are rounded.
    """

    format: str
    depth: str
    bands: str
    make: Callable[[], bytes]
    out: dict[int, tuple[str, Any]]
    own: np.ndarray | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-6

    @property
    def name(self) -> str:
        """For the tests' names."""
        return f"{self.format}, {self.depth}, {self.bands}"


def _grey(values: np.ndarray, white: float) -> dict[int, tuple[str, Any]]:
    scaled = values / white
    return {1: ("the values", scaled), 3: ("grey, three times", scaled)}


def _rgb(values: np.ndarray, white: float) -> dict[int, tuple[str, Any]]:
    colours = values[..., :3] / white
    return {1: ("luma", (colours @ LUMA)[..., None]), 3: ("the colours", colours)}


def _same(values: np.ndarray, white: float) -> tuple[str, Any]:
    return "every band as it is", values / white


def _cases() -> list[Case]:
    g8, c8, a8 = bands(1), bands(3), bands(4)
    la8, g16, c16, a16 = bands(2), bands(1, 16), bands(3, 16), bands(4, 16)
    bit = bands(1, 1)
    palette = np.zeros((3, 256), np.uint16)
    palette[:, :] = np.random.default_rng(5).integers(0, 256, (3, 256)) * 257
    coloured = (palette.T >> 8)[g8[..., 0]]
    rounded = 0.51 / 255
    cases = [
        Case("PNG", "1 bit", "grey", lambda: picture(bit * 255, "PNG", mode=None), _grey(bit, 1)),
        Case("PNG", "8 bit", "grey", lambda: picture(g8, "PNG"), _grey(g8, 255), g8),
        Case("PNG", "16 bit", "grey", lambda: picture(g16, "PNG"), _grey(g16, 65535), g16),
        Case("PNG", "8 bit", "RGB", lambda: picture(c8, "PNG"), _rgb(c8, 255), c8, {}, rounded),
        Case(
            *("PNG", "16 bit", "RGB"),
            *(lambda: imagecodecs.png_encode(c16), _rgb(c16, 65535), c16),
        ),
        Case(
            *("PNG", "8 bit", "RGB, alpha", lambda: picture(a8, "PNG")),
            {
                1: ("luma over data.background", (over_black(a8, 255) @ LUMA)[..., None]),
                3: ("colours over data.background", over_black(a8, 255)),
                4: _same(a8, 255),
            },
            *(a8, {}, 2 * rounded),
        ),
        Case(
            *("PNG", "16 bit", "RGB, alpha", lambda: imagecodecs.png_encode(a16)),
            {
                1: ("luma over data.background", (over_black(a16, 65535) @ LUMA)[..., None]),
                3: ("colours over data.background", over_black(a16, 65535)),
                4: _same(a16, 65535),
            },
            a16,
        ),
        Case(
            *("PNG", "8 bit", "grey, alpha", lambda: picture(la8, "PNG", mode="LA")),
            {
                1: ("grey over data.background", over_black(la8, 255)),
                3: ("grey over data.background, three times", over_black(la8, 255)),
                2: _same(la8, 255),
            },
            *(la8, {}, 2 * rounded),
        ),
        Case(
            "WebP",
            "8 bit",
            "RGB",
            lambda: picture(c8, "WEBP", lossless=True),
            _rgb(c8, 255),
            c8,
            {},
            rounded,
        ),
        Case("GIF", "8 bit", "grey", lambda: picture(g8, "GIF"), _grey(g8, 255), None, {}, rounded),
        Case("BMP", "8 bit", "RGB", lambda: picture(c8, "BMP"), _rgb(c8, 255), c8, {}, rounded),
        Case("TGA", "8 bit", "RGB", lambda: picture(c8, "TGA"), _rgb(c8, 255), c8, {}, rounded),
        Case("PPM", "8 bit", "RGB", lambda: picture(c8, "PPM"), _rgb(c8, 255), c8, {}, rounded),
        Case(
            *("PPM", "12 bit", "RGB"),
            lambda: (
                b"P6\n# by hand\n%d %d\n4095\n" % (WIDTH, HEIGHT)
                + (c16 >> 4).astype(">u2").tobytes()
            ),
            *(_rgb(c16 >> 4, 4095), c16 >> 4),
        ),
        Case(
            "JPEG 2000",
            "8 bit",
            "RGB",
            lambda: picture(c8, "JPEG2000", irreversible=False),
            _rgb(c8, 255),
            c8,
            {},
            rounded,
        ),
        Case(
            *("JPEG 2000", "12 bit", "RGB"),
            lambda: imagecodecs.jpeg2k_encode(c16 >> 4, bitspersample=12, level=0),
            *(_rgb(c16 >> 4, 4095), c16 >> 4),
        ),
        Case(
            *("JPEG 2000", "8 bit", "four bands"),
            lambda: imagecodecs.jpeg2k_encode(a8, level=0),
            {3: ("the first three, never multiplied", a8[..., :3] / 255), 4: _same(a8, 255)},
            a8,
        ),
        Case(
            *("JPEG", "8 bit", "CMYK"),
            lambda: picture(np.full((HEIGHT, WIDTH, 4), 60, np.uint8), "JPEG", mode="CMYK"),
            {
                3: ("as RGB", rgb_of_inks(np.full((HEIGHT, WIDTH, 4), 60.0))),
                4: (REFUSED, "four inks"),
            },
            *(None, {}, 4 / 255),
        ),
        Case(
            "TIFF",
            "1 bit",
            "grey",
            lambda: tiff(bit[..., 0] > 0, photometric="minisblack"),
            _grey(bit, 1),
        ),
        Case("TIFF", "8 bit", "grey", lambda: tiff(g8[..., 0]), _grey(g8, 255), g8),
        Case(
            *("TIFF", "12 bit, packed", "grey"),
            lambda: packed_tiff(g16[..., 0] >> 4, 12, photometric="minisblack"),
            *(_grey(g16 >> 4, 4095), g16 >> 4),
        ),
        Case("TIFF", "16 bit", "grey", lambda: tiff(g16[..., 0]), _grey(g16, 65535), g16),
        Case(
            *("TIFF", "16 bit", "grey, 0 is white"),
            lambda: tiff(g16[..., 0], photometric="miniswhite"),
            {
                1: ("turned round: 0 is white", 1 - g16 / 65535),
                3: ("turned round: 0 is white", 1 - g16 / 65535),
            },
            g16,
        ),
        Case(
            *("TIFF", "8 bit", "grey, 0 is white"),
            lambda: tiff(g8[..., 0], photometric="miniswhite"),
            {1: ("turned round: 0 is white", 1 - g8 / 255)},
            g8,
        ),
        Case(
            *("TIFF", "16 bit signed", "grey"),
            lambda: tiff((g16[..., 0] >> 1).astype(np.int16)),
            _grey(g16 >> 1, 32767),
        ),
        Case(
            *("TIFF", "32 bit", "grey"),
            lambda: tiff(g16[..., 0].astype(np.uint32)),
            {1: (REFUSED + " without data.value_range", r"does not say which value is white")},
            g16.astype(np.uint32),
        ),
        Case(
            *("TIFF", "float 32", "grey"),
            lambda: tiff((g16[..., 0] / 65535).astype(np.float32)),
            _grey(g16, 65535),
        ),
        Case(
            "TIFF",
            "8 bit",
            "palette",
            lambda: tiff(g8[..., 0], photometric="palette", colormap=palette),
            _rgb(coloured, 255),
            coloured.astype(np.uint8),
            {},
            rounded,
        ),
        Case(
            "TIFF",
            "8 bit",
            "RGB",
            lambda: tiff(c8, photometric="rgb"),
            _rgb(c8, 255),
            c8,
            {},
            rounded,
        ),
        Case("TIFF", "16 bit", "RGB", lambda: tiff(c16, photometric="rgb"), _rgb(c16, 65535), c16),
        Case(
            *("TIFF", "16 bit", "RGB, one plane per band"),
            lambda: tiff(c16.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
            *(_rgb(c16, 65535), c16),
        ),
        Case(
            *("TIFF", "float 32", "RGB"),
            lambda: tiff((c16 / 65535).astype(np.float32), photometric="rgb"),
            _rgb(c16, 65535),
        ),
        Case(
            *("TIFF", "8 bit", "RGB and a fourth band, whatever it is marked as"),
            lambda: tiff(a8, photometric="rgb", extrasamples=["unassalpha"]),
            {3: ("the first three, never multiplied", a8[..., :3] / 255), 4: _same(a8, 255)},
            a8,
        ),
        Case(
            *("TIFF", "8 bit", "CMYK"),
            lambda: tiff(a8, photometric="separated"),
            {3: ("as RGB", rgb_of_inks(a8)), 4: (REFUSED, "four inks")},
            *(a8, {}, 2 * rounded),
        ),
        Case(
            *("TIFF", "8 bit", "CMYK, data.bands [0, 1, 2, 3]"),
            lambda: tiff(a8, photometric="separated"),
            {4: ("the inks", a8 / 255)},
            *(a8, {"bands": (0, 1, 2, 3)}),
        ),
    ]
    for count in (2, 4, 5, 13):
        many = bands(count, 16, seed=count)
        for planar, stored in (("contig", many), ("separate", many.transpose(2, 0, 1))):
            cases.append(
                Case(
                    *("TIFF", "16 bit", f"{count} bands, {planar}"),
                    lambda stored=stored, planar=planar: tiff(
                        stored, photometric="minisblack", planarconfig=planar
                    ),
                    {count: _same(many, 65535), 3: (REFUSED, f"has {count} channels where 3")},
                    many,
                )
            )
        cases.append(
            Case(
                *("TIFF", "16 bit", f"{count} pages"),
                lambda many=many: tiff(
                    many.transpose(2, 0, 1), photometric="minisblack", metadata=None
                ),
                {count: _same(many, 65535)},
                many,
            )
        )
    cyx = bands(3, seed=9)
    for words, options in (
        ("ImageJ, 3 channels", {"imagej": True, "metadata": {"axes": "CYX"}}),
        ("OME, 3 channels", {"ome": True, "metadata": {"axes": "CYX"}}),
        ("3 pages", {"metadata": None}),
    ):
        cases.append(
            Case(
                *("TIFF", "8 bit", words),
                lambda options=options: tiff(
                    cyx.transpose(2, 0, 1), photometric="minisblack", **options
                ),
                {3: _same(cyx, 255), 1: (REFUSED, "has 3 channels where 1|name some")},
                cyx,
            )
        )
    cases += [
        Case(
            *("TIFF", "8 bit", "13 bands, data.bands [7, 0, 3]"),
            lambda: tiff(bands(13), photometric="minisblack", planarconfig="contig"),
            {3: ("those, in that order", bands(13)[..., [7, 0, 3]] / 255)},
            *(bands(13), {"bands": (7, 0, 3)}),
        ),
        Case(
            *("TIFF", "16 bit", "grey, data.value_range [0, 4095]"),
            lambda: tiff(g16[..., 0] >> 4),
            *(_grey(g16 >> 4, 4095), g16 >> 4, {"value_range": (0.0, 4095.0)}),
        ),
        Case(
            *("PNG", "8 bit", "grey, data.value_range [0, 127]"),
            lambda: picture(g8 >> 1, "PNG"),
            *(_grey(g8 >> 1, 127), g8 >> 1, {"value_range": (0.0, 127.0)}),
        ),
        Case(".npy", "uint8", "(H, W, 3)", lambda: array(c8), _rgb(c8, 255), c8, {}, rounded),
        Case(
            ".npy",
            "uint16",
            "(5, H, W)",
            lambda: array(bands(5, 16).transpose(2, 0, 1)),
            {5: _same(bands(5, 16), 65535)},
            bands(5, 16),
        ),
        Case(".npy", "float64", "(H, W)", lambda: array(g16[..., 0] / 65535), _grey(g16, 65535)),
        Case(".npy", "bool", "(H, W)", lambda: array(bit[..., 0] > 0), _grey(bit, 1)),
        Case(
            *(".npy", "int64", "(H, W)", lambda: array(g8[..., 0].astype(np.int64))),
            {1: (REFUSED + " without data.value_range", "does not say which value is white")},
            g8.astype(np.int64),
        ),
        Case(
            *(".npy", "int64", "(H, W), data.value_range [0, 255]"),
            lambda: array(g8[..., 0].astype(np.int64)),
            *(_grey(g8, 255), g8.astype(np.int64), {"value_range": (0.0, 255.0)}),
        ),
    ]
    return cases


CASES = _cases()
