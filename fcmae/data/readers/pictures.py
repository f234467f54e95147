"""Reads pictures with Pillow: JPEG, PNG, WebP, GIF, BMP, PPM, JPEG 2000, AVIF, TGA.

What Pillow would cut to 8 bits goes to `deep_pictures.py`. A picture whose pixels are good is read
whatever is wrong with the texts, profiles and EXIF beside them.
"""

import io
import logging
import re

import numpy as np
from PIL import Image, ImageMode

from fcmae.data.parts import Part
from fcmae.data.readers import deep_pictures
from fcmae.data.readers.contract import (
    BLACK,
    Description,
    Pixels,
    Source,
    UnreadableError,
    Wanted,
    only_transparency,
)
from fcmae.data.readers.orientation import as_seen, orientation_of, stored_part, upright

TGA_FOOTER = b"TRUEVISION-XFILE.\0"
MPO = "MPO"  # several JPEGs in one file, as some cameras write them: the first is the picture
# Formats whose last channel of two or four is transparency and nothing else
TRANSPARENT_KINDS = ("PNG", "WEBP", "GIF", "AVIF", "BMP")
PPM_BEGINNING = re.compile(rb"P[1-6fF]\s+(#[^\n]*\n\s*)*\d")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")  # of a PNG

# Pillow reports some damage through logging as well; the error says it once.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class PictureReader:
    """Reads what Pillow reads; see the rules in `decoding.decode`."""

    def kind_of(self, source: Source) -> str | None:
        """Return the format by its first bytes (a TGA's are its header)."""
        head = source.head
        for signature, kind in (
            (b"\xff\xd8\xff", "JPEG"),
            (PNG_SIGNATURE, "PNG"),
            (b"GIF87a", "GIF"),
            (b"GIF89a", "GIF"),
            (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG2000"),
            (b"\xff\x4f\xff\x51", "JPEG2000"),
        ):
            if head.startswith(signature):
                return kind
        if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            return "WEBP"
        if head[:2] == b"BM" and len(head) > 18 and head[14] in (12, 40, 52, 56, 64, 108, 124):
            return "BMP"
        if PPM_BEGINNING.match(head):
            return "PPM"
        if head[4:8] == b"ftyp" and (
            head[8:12] in (b"avif", b"avis") or b"avif" in head[16 : _box_end(head)]
        ):
            return "AVIF"
        return "TGA" if _is_targa(source) else None

    def items(self, source: Source, wanted: Wanted) -> list[str]:
        """Return [""]: of an animation the first frame is read."""
        return [""]

    def describe(self, source: Source, wanted: Wanted) -> Description:
        """Return what the header says."""
        kind = self.kind_of(source)
        assert kind is not None
        if (depth := deep_pictures.depth_of(source, kind)) is not None:
            return deep_pictures.describe(source, kind, depth)
        with _open(source, kind) as picture:
            size = as_seen(picture.height, picture.width, orientation_of(picture))
            frames = 1 if kind == "JPEG" else getattr(picture, "n_frames", 1)
            note = "" if frames == 1 else f"the first of {frames} frames"
            return _about(kind, _mode_wanted(picture, None), size, note)

    def read(self, source: Source, wanted: Wanted) -> Pixels:
        """Return the pixels, upright, of the part that is wanted."""
        kind = self.kind_of(source)
        assert kind is not None
        if (depth := deep_pictures.depth_of(source, kind)) is not None:
            return deep_pictures.read(source, kind, depth, wanted)
        if kind != "PNG":
            return _read(source, kind, wanted)
        try:
            return _read(source, kind, wanted)
        except UnreadableError:
            raise
        except Exception:  # perhaps of something beside the pixels
            content = _pixel_chunks_of(source)
            if content is None:
                raise
            bare = Source(source.path, source.item, source.head, io.BytesIO(content), len(content))
            return _read(bare, kind, wanted)


def _box_end(head: bytes) -> int:
    return int.from_bytes(head[:4], "big")


def _is_targa(source: Source) -> bool:
    """Whether the header is one of a TGA, which has no signature but perhaps a footer."""
    head = source.head
    if len(head) < 18 or head[1] > 1 or head[2] not in (1, 2, 3, 9, 10, 11):
        return False
    if head[16] not in (1, 8, 15, 16, 24, 32) or not any(head[12:14]) or not any(head[14:16]):
        return False
    if source.suffix == ".tga":
        return True
    file = source.opened()
    file.seek(max(0, source.size - 26))
    footer = file.read(26)
    file.seek(0)
    return footer.endswith(TGA_FOOTER)


def _open(source: Source, kind: str) -> Image.Image:
    return Image.open(source.opened(), formats=(kind,))


def _read(source: Source, kind: str, wanted: Wanted) -> Pixels:
    source.opened().seek(0)
    with _open(source, kind) as picture:
        (width, height), part, valid = picture.size, None, None
        if wanted.choose is not None and picture.format in ("JPEG", MPO):
            part = stored_part(wanted.choose, height, width, orientation_of(picture))
            if part.scaled_to is not None:
                part = _reduce(picture, part, wanted.colours)
        picture.load()
        orientation = orientation_of(picture)
        if wanted.choose is not None and part is None:
            part = stored_part(wanted.choose, height, width, orientation)
        laid = picture
        is_clear = picture.has_transparency_data and kind in TRANSPARENT_KINDS
        if is_clear and wanted.colours is not None:
            laid, transparency = _laid_over(picture, wanted)
            if part is not None:
                transparency = transparency.crop(_box(part))
            valid = np.asarray(transparency) > 0 if wanted.background is None else None
        if part is not None and _box(part) != (0, 0, *laid.size):
            laid = laid.crop(_box(part))
        mode = _mode_wanted(laid, wanted.colours)
        if laid.mode != mode:  # else Pillow would copy
            laid = laid.convert(mode)
        values = np.asarray(laid)  # bytes of its own, not Pillow's memory
        if values.ndim == 2:
            values = values[..., None]
        about = _about(kind, mode, as_seen(height, width, orientation))
        if about.alpha is not None and wanted.clear_is_hole(about.alpha):
            valid = values[..., about.alpha] > 0
        if valid is not None:
            valid = None if valid.all() else upright(valid, orientation)
        return Pixels(upright(values, orientation), valid, about)


def _box(part: Part) -> tuple[int, int, int, int]:
    return part.left, part.top, part.left + part.width, part.top + part.height


def _reduce(picture: Image.Image, part: Part, colours: int | None) -> Part:
    """Have a JPEG decoded as small as `part` allows; return where the part lies then."""
    width, height = picture.size
    factor = part.reduction()
    mode = "L" if colours == 1 and picture.mode == "RGB" else None  # its luma, without colours
    drafted = picture.draft(mode, (max(1, width // factor), max(1, height // factor)))
    factor_taken = width / drafted[1][2] if drafted is not None else 1
    return part.within(factor_taken, picture.height, picture.width)


def _laid_over(picture: Image.Image, wanted: Wanted) -> tuple[Image.Image, Image.Image]:
    """Return the picture laid over the background, and its transparency (0 is nothing there)."""
    coloured = picture.convert("RGBA")
    background = tuple(round(255 * value) for value in wanted.background or BLACK)
    below = Image.new("RGBA", picture.size, (*background, 255))
    laid = Image.alpha_composite(below, coloured)
    transparency = coloured.getchannel("A")
    lowest, highest = transparency.getextrema()
    if lowest != highest and laid.convert("RGB").getextrema() == tuple((v, v) for v in background):
        raise UnreadableError(only_transparency(wanted.background))
    return laid, transparency


def _mode_wanted(picture: Image.Image, colours: int | None) -> str:
    """Return the mode of Pillow that the values are taken from."""
    mode = picture.mode
    if colours is not None:
        is_exact = mode.startswith(("I", "F"))
        return mode if is_exact else "L" if colours == 1 else "RGB"
    is_clear = picture.has_transparency_data  # perhaps one clear colour, without a band of its own
    if mode in ("P", "PA"):  # numbers of colours are no values
        return "RGBA" if is_clear else "RGB"
    if mode == "YCbCr":
        return "RGB"
    return {"1": "LA", "L": "LA", "RGB": "RGBA"}.get(mode, mode) if is_clear else mode


def _about(kind: str, mode: str, size: tuple[int, int], note: str = "") -> Description:
    """Describe a picture whose values are the bands of `mode`, seen at `size`, (height, width)."""
    bands = len(ImageMode.getmode(mode).bands)
    is_clear = mode in ("LA", "RGBA") and kind in TRANSPARENT_KINDS
    bits = {"1": 1, "I": 32, "F": 32}.get(mode, 16 if mode.startswith("I;16") else 8)
    dtype = {"1": "bool", "I": "int32", "F": "float32"}.get(mode, f"uint{bits}")
    white = {"I": None, "F": 1.0}.get(mode, float(2**bits - 1))
    return Description(
        kind=kind,
        height=size[0],
        width=size[1],
        bands=bands,
        dtype=np.dtype(dtype),
        bits=bits,
        colour="cmyk" if mode == "CMYK" else "grey" if bands <= 2 else "rgb",
        alpha=bands - 1 if is_clear else None,
        black=None if white is None else 0.0,
        white=white,
        has_mask=is_clear,
        note=note,
    )


def _pixel_chunks_of(source: Source) -> bytes | None:
    """Return a PNG's signature and the chunks that decide its pixels; None if that is all."""
    file = source.opened()
    file.seek(0)
    content = file.read()
    kept, at = [content[: len(PNG_SIGNATURE)]], len(PNG_SIGNATURE)
    is_changed = False
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")  # length, name, data, CRC
        if content[at + 4 : at + 8] in PIXEL_CHUNKS:
            kept.append(content[at:end])
        else:
            is_changed = True
        at = end
    return b"".join(kept) if is_changed else None
