"""Reads the pictures that Pillow cuts to 8 bits: deep colours in PNG, JPEG 2000, AVIF and PPM."""

import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fcmae.data.readers.contract import Colour, Description, Pixels, Source, UnreadableError, Wanted
from fcmae.data.readers.orientation import as_seen, orientation_of, stored_part, upright

JPEG_2000_START = b"\xff\x4f\xff\x51"
PPM_HEADER = re.compile(
    rb"P([2356])(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)\s"
)
SEARCHED_BYTES = 65536  # for what says the depth of JPEG 2000 and AVIF


@dataclass(frozen=True)
class Depth:
    """What the header of a deep picture says: size, bands and bits of a value."""

    height: int
    width: int
    bands: int
    bits: int
    white: int


def depth_of(source: Source, kind: str) -> Depth | None:
    """Return what is known of a picture that Pillow would cut to 8 bits, else None."""
    find = {"PNG": _png, "JPEG2000": _jpeg_2000, "AVIF": _avif, "PPM": _ppm}.get(kind)
    return None if find is None else find(source)


def describe(source: Source, kind: str, depth: Depth) -> Description:
    """Return the description of a picture of that depth."""
    is_clear = kind in ("PNG", "AVIF") and depth.bands in (2, 4)
    colour: Colour = "grey" if depth.bands <= 2 else "rgb"
    height, width = as_seen(depth.height, depth.width, _orientation(source, kind))
    return Description(
        kind=kind,
        height=height,
        width=width,
        bands=depth.bands,
        dtype=np.dtype("uint16"),
        bits=depth.bits,
        colour=colour if depth.bands <= 4 else "bands",
        alpha=depth.bands - 1 if is_clear else None,
        black=0.0,
        white=float(depth.white),
        has_mask=is_clear,
    )


def read(source: Source, kind: str, depth: Depth, wanted: Wanted) -> Pixels:
    """Return the part that is wanted; the whole file is decoded."""
    import imagecodecs

    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and depth.height * depth.width > limit:
        raise Image.DecompressionBombError(f"{depth.height} x {depth.width} px")
    file = source.opened()
    file.seek(0)
    content = file.read()
    if kind == "PPM":
        values = _ppm_values(content, depth)
    else:
        decode = {
            "PNG": imagecodecs.png_decode,
            "JPEG2000": imagecodecs.jpeg2k_decode,
            "AVIF": imagecodecs.avif_decode,
        }[kind]
        values = decode(content)
    values = values.reshape(*values.shape[:2], -1)
    about = describe(source, kind, depth)
    if values.shape != (depth.height, depth.width, depth.bands) and kind != "AVIF":
        raise UnreadableError(f"holds {values.shape} values where its header says otherwise")
    orientation = _orientation(source, kind)
    if wanted.choose is not None:
        top, left, height, width, _ = stored_part(
            wanted.choose, values.shape[0], values.shape[1], orientation
        )
        values = values[top : top + height, left : left + width]
    values = upright(values, orientation)
    if about.alpha is None or not wanted.clear_is_hole(about.alpha):
        return Pixels(values, None, about)
    opaque = values[..., about.alpha] > 0
    return Pixels(values, None if opaque.all() else opaque, about)


def _orientation(source: Source, kind: str) -> object:
    """Return the EXIF orientation, as Pillow reads it from the header."""
    file = source.opened()
    file.seek(0)
    try:
        return orientation_of(Image.open(file, formats=(kind,)))
    except Exception:  # something beside the pixels, which are read by others
        return 1


def _png(source: Source) -> Depth | None:
    head = source.head
    width, height = (int.from_bytes(head[at : at + 4], "big") for at in (16, 20))
    bits, colour_type = head[24:25], head[25:26]
    bands = {b"\2": 3, b"\4": 2, b"\6": 4}.get(colour_type)
    if bits != b"\x10" or bands is None:  # Pillow reads 16-bit grey as it is
        return None
    return Depth(height, width, bands, 16, 65535)


def _jpeg_2000(source: Source) -> Depth | None:
    start = _beginning(source)
    at = start.find(JPEG_2000_START)
    if at < 0:
        return None
    numbers = np.frombuffer(start[at + 8 : at + 24], ">u4")
    bands = int.from_bytes(start[at + 40 : at + 42], "big")
    depths = [(byte & 0x7F) + 1 for byte in start[at + 42 : at + 42 + 3 * bands : 3]]
    if len(numbers) < 4 or not depths or max(depths) <= 8:
        return None
    width, height = int(numbers[0] - numbers[2]), int(numbers[1] - numbers[3])
    return Depth(height, width, bands, max(depths), 2 ** max(depths) - 1)


def _avif(source: Source) -> Depth | None:
    start = _beginning(source)
    configuration, extent = start.find(b"av1C"), start.find(b"ispe")
    if configuration < 0 or extent < 0:
        return None
    flags = start[configuration + 6]
    if not flags & 0x40:  # high bit depth
        return None
    bits = 12 if flags & 0x20 else 10
    width, height = (int.from_bytes(start[extent + at : extent + at + 4], "big") for at in (8, 12))
    bands = 4 if b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha" in start else 3
    return Depth(height, width, bands, bits, 2**bits - 1)


def _ppm(source: Source) -> Depth | None:
    found = PPM_HEADER.match(source.head)
    if found is None:
        return None
    kind, width, height, white = (int(text) for text in found.groups())
    if white <= 255 or white > 65535:
        return None
    return Depth(height, width, 1 if kind in (2, 5) else 3, white.bit_length(), white)


def _ppm_values(content: bytes, depth: Depth) -> np.ndarray:
    found = PPM_HEADER.match(content)
    assert found is not None
    count = depth.height * depth.width * depth.bands
    if found[1] in (b"2", b"3"):
        text = re.sub(rb"#[^\n]*", b"", content[found.end() :])
        values = np.array(text.split()[:count], dtype=np.uint16)
    else:
        values = np.frombuffer(content[found.end() :][: 2 * count], ">u2").astype(np.uint16)
    if values.size < count:
        raise UnreadableError(f"the file is truncated: it has {values.size} of {count} values")
    return values.reshape(depth.height, depth.width, depth.bands)


def _beginning(source: Source) -> bytes:
    file = source.opened()
    file.seek(0)
    return file.read(SEARCHED_BYTES)
