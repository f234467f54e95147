"""Reads every TIFF with tifffile: bands, pages, planes, depths, BigTIFF, OME, ImageJ, GeoTIFF.

What the bands mean is decided here, by what the file says; `tiff_axes.py` finds them.
"""

import logging
from typing import Any

import numpy as np
from PIL import Image

from fcmae.data.readers.contract import Colour, Description, Pixels, Source, UnreadableError, Wanted
from fcmae.data.readers.layout import check_type
from fcmae.data.readers.orientation import EXIF_ORIENTATION, as_seen, stored_part, upright
from fcmae.data.readers.tiff_axes import Axes, axes_of, main_series
from fcmae.data.readers.tiff_masks import has_mask, mask_of, nodata_of
from fcmae.data.readers.tiff_pixels import read_part

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
COLOUR_MAP = 320
JPEGS = {6, 7, 34892, 33007}  # compressions whose YCbCr is decoded to RGB
GREYS = {"MINISBLACK", "MINISWHITE"}
UNKNOWN = {"CFA", "CIELAB", "ICCLAB", "ITULAB", "LOGL", "LOGLUV"}  # that nobody converts here

# tifffile reports damage through logging; the error says it once.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


class TiffReader:
    """Reads the main series of a TIFF, of its tiles or strips only what is wanted."""

    def kind_of(self, source: Source) -> str | None:
        """Return "TIFF" by the first bytes."""
        return "TIFF" if source.head[:4] in MAGICS else None

    def items(self, source: Source, wanted: Wanted) -> list[str]:
        """Return the numbers of the images in the pages, [""] where there is one."""
        images = self.describe(source, wanted).images
        return [""] if images == 1 else [str(number) for number in range(images)]

    def describe(self, source: Source, wanted: Wanted) -> Description:
        """Return what the tags say."""
        with _opened(source) as file:
            series = main_series(file)
            axes = axes_of(series, source.item, wanted)
            return _about(file, series, axes, source)

    def read(self, source: Source, wanted: Wanted) -> Pixels:
        """Return the part of one image that is wanted."""
        with _opened(source) as file:
            series = main_series(file)
            axes = axes_of(series, source.item, wanted)
            about, page = _about(file, series, axes, source), series.keyframe
            if page.is_subsampled and page.compression not in JPEGS:
                return _by_pillow(source, about, wanted)
            orientation = _orientation(page)
            part = None
            if wanted.choose is not None:
                part = stored_part(wanted.choose, axes.height, axes.width, orientation)
            with mask_of(file, page, source) as mask:
                values, valid = read_part(series, axes, part, about.nodata, mask)
            values = _colours(page, values)
            valid = None if valid is None else upright(valid, orientation)
            return Pixels(upright(values, orientation), valid, about)


def _opened(source: Source) -> Any:
    from tifffile import TiffFile

    source.opened().seek(0)
    return TiffFile(source.opened())


def _orientation(page: Any) -> object:
    tag = page.tags.get(EXIF_ORIENTATION)
    return 1 if tag is None else tag.value


def _photometric(page: Any) -> str:
    return getattr(page.photometric, "name", str(page.photometric))


def _about(file: Any, series: Any, axes: Axes, source: Source) -> Description:
    page, dtype = series.keyframe, series.dtype
    if dtype is None:
        raise UnreadableError(
            f"values of {page.bitspersample} bits in sample format {page.sampleformat} are not "
            "known"
        )
    check_type(dtype)
    bands, bits, photometric = axes.bands, page.bitspersample, _photometric(page)
    if photometric == "PALETTE" and bands == 1:
        bands = 3
        dtype = np.dtype("uint8") if _is_8_bit(page) else np.dtype("uint16")
        bits = 8 * dtype.itemsize
    black, white = _range(dtype, bits)
    if photometric == "MINISWHITE":
        black, white = white, black
    height, width = as_seen(axes.height, axes.width, _orientation(page))
    nodata = nodata_of(page, series.dtype)
    return Description(
        kind="TIFF",
        height=height,
        width=width,
        bands=bands,
        dtype=dtype.newbyteorder("="),
        bits=bits,
        colour=_meaning(page, bands, axes),
        black=black,
        white=white,
        nodata=nodata,
        has_mask=nodata is not None or dtype.kind == "f" or has_mask(file, page, source),
        images=axes.images,
        note=_note(file, series, axes),
        facts={
            "photometric": photometric.lower(),
            "compression": getattr(page.compression, "name", str(page.compression)).lower(),
            "stored in": f"tiles of {page.tilewidth} x {page.tilelength} px"
            if page.is_tiled
            else f"strips of {page.rowsperstrip} rows",
        },
    )


def _range(dtype: np.dtype, bits: int) -> tuple[float | None, float | None]:
    """Return the values that mean black and white by the bits of a value."""
    if dtype.kind in "fb":
        return 0.0, 1.0
    if bits > 16:
        return None, None
    return 0.0, float(2 ** (bits - (dtype.kind == "i")) - 1)


def _meaning(page: Any, bands: int, axes: Axes) -> Colour:
    """Return what the bands are. Only what the file states counts, and all samples are bands."""
    photometric = _photometric(page)
    if photometric in UNKNOWN:
        return "other"
    if photometric == "PALETTE":
        return "rgb"
    if not axes.is_samples:
        return "grey" if bands == 1 else "bands"
    if photometric in ("RGB", "YCBCR") and bands >= 3:
        return "rgb"
    if photometric == "SEPARATED" and bands >= 4:
        return "cmyk"
    extra = [getattr(kind, "name", "") for kind in page.extrasamples]
    if photometric in GREYS and (bands == 1 or extra[:1] in (["ASSOCALPHA"], ["UNASSALPHA"])):
        return "grey" if bands <= 2 else "bands"
    return "bands"


def _note(file: Any, series: Any, axes: Axes) -> str:
    if axes.images > 1:
        return f"one of {axes.images} images in its pages"
    kinds = {page.hash for page in file.pages[:2]} if len(file.pages) > 1 else set()
    if len(kinds) > 1 and len(file.series) > 1:
        return f"its {len(file.pages)} pages differ in size or type, and only the first is used"
    return ""


def _colours(page: Any, values: np.ndarray) -> np.ndarray:
    """Return numbers of palette colours as colours, and YCbCr as RGB; all else as it is."""
    photometric = _photometric(page)
    if photometric == "PALETTE" and values.shape[-1] == 1:
        palette = page.tags[COLOUR_MAP].value
        palette = np.asarray(palette, np.uint16).reshape(3, -1).T
        if _is_8_bit(page):
            palette = (palette if palette.max() < 256 else palette >> 8).astype(np.uint8)
        return palette[values[..., 0]]
    if photometric == "YCBCR" and page.compression not in JPEGS and values.dtype == np.uint8:
        return np.asarray(Image.fromarray(values, "YCbCr").convert("RGB"))
    return values


def _is_8_bit(page: Any) -> bool:
    """Whether a palette's colours have 8 bits, written as 0..255 or as their multiples of 257."""
    palette = np.asarray(page.tags[COLOUR_MAP].value, np.uint16)
    is_doubled = bool((palette >> 8 == palette & 255).all() or not (palette & 255).any())
    return palette.max(initial=0) < 256 or is_doubled


def _by_pillow(source: Source, about: Description, wanted: Wanted) -> Pixels:
    """Read YCbCr of fewer colour than brightness values, which tifffile leaves to others."""
    source.opened().seek(0)
    with Image.open(source.opened(), formats=("TIFF",)) as picture:
        values = np.asarray(picture.convert("RGB"))  # Pillow turns it upright
    if wanted.choose is not None:
        top, left, height, width, _ = wanted.choose(*values.shape[:2])
        values = values[top : top + height, left : left + width]
    return Pixels(values, None, about)
