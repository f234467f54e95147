"""What every reader of files answers: can it read this one, what is in it, which pixels.

Values are the file's own: nothing is scaled, inverted or multiplied here, `decoding.py` does that.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Literal, NamedTuple, Protocol

import numpy as np

from fcmae.data.parts import Choose

HEAD_BYTES = 1024  # of a file, by which its kind is told

# Pictures of grey, rgb and cmyk can be converted; bands mean nothing that is known, and other means
# something known that nobody converts here (Lab, the mosaic of a camera)
Colour = Literal["grey", "rgb", "cmyk", "bands", "other"]


class UnreadableError(Exception):
    """Why a file cannot be used, in plain words without its path."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What the header of a file says about one image in it.

    Attributes:
        kind: "JPEG", "PNG", "TIFF", "DICOM", "NPY", "HDF5", ...
        height, width: px, as the picture is seen: turned as EXIF says.
        bands: per pixel, transparency included; those that `read` returns.
        dtype: of the values that `read` returns.
        bits: of a value in the file: 12 of a packed TIFF or a DICOM whose dtype has 16.
        colour: what the first bands are: grey (1), rgb (3), cmyk (4), bands of unknown meaning, or
            other colours, which `data.bands` alone can ask for.
        alpha: the band that is transparency for certain, since its format says so; None without.
            A TIFF's is never certain.
        black, white: the values that mean them, where the file's type or header says so; black
            is above white where 0 is white. None: the file does not say, as for wide integers.
        clips: values beyond black and white are meant to be cut off (a DICOM's window).
        nodata: the value of pixels without content (GeoTIFF), or None.
        has_mask: whether `Pixels.valid` may say no: nodata, a mask, transparency, NaN.
        images: in the file; above 1 each is named `FILE::NUMBER`, see `items.py`.
        note: what is left out of the file, "the first of 7 frames", or "".
        facts: anything else worth showing, by name: "compression", "tile", "photometric".
    """

    kind: str
    height: int
    width: int
    bands: int
    dtype: np.dtype
    bits: int
    colour: Colour
    alpha: int | None = None
    black: float | None = None
    white: float | None = None
    clips: bool = False
    nodata: float | None = None
    has_mask: bool = False
    images: int = 1
    note: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


class Pixels(NamedTuple):
    """Pixels of one image, or of the part of it that was asked for.

    values: [h, w, bands] in the file's own type. It may be smaller than the part, never smaller
        than what the part is scaled to, where a format gives a reduced picture for less work.
    valid: bool [h, w], False where there is no content; None where all of it is.
    about: the description of the whole image, whose `bands` and `colour` those of `values` are.
    """

    values: np.ndarray
    valid: np.ndarray | None
    about: Description


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked of a file.

    Attributes:
        in_chans: channels that will be made of it, which decides what the shape of an array
            means, and lets a format convert colours to grey (1) or RGB (3) by itself, laid over
            `background` where they are transparent; None: everything as the file has it.
        bands: the bands that will be picked, from 0; None: by the rules. Then nothing is converted.
        background: red, green and blue in 0..1 below transparent pixels, which count as content
            then; None: they have none, and black lies below those that shine through.
        choose: the part of the picture that is needed; None: all.
        is_exact: values are compared: none is converted, and no picture comes reduced.
    """

    in_chans: int | None = None
    bands: tuple[int, ...] | None = None
    background: tuple[float, float, float] | None = None
    choose: Choose | None = None
    is_exact: bool = False

    @property
    def colours(self) -> int | None:
        """1 or 3 where any picture may be converted to grey or RGB, else None."""
        return self.in_chans if self.lays_over and not self.is_exact else None

    @property
    def lays_over(self) -> bool:
        """Whether a picture with transparency becomes one without, over a background."""
        return self.bands is None and self.in_chans in (1, 3)

    def clear_is_hole(self, alpha: int) -> bool:
        """Whether pixels have no content where the transparency, band `alpha`, is 0.

        They have some where it is a channel itself: it is data then, as any other band.
        """
        if self.lays_over:
            return self.background is None
        if self.bands is not None:
            return alpha not in self.bands
        return self.in_chans is None  # all bands become channels


@dataclass(frozen=True)
class Source:
    """An open file.

    Attributes:
        path: of the file or, for a Zarr store, the folder.
        item: which image in it, as after `::`; "" for the only one.
        head: its first HEAD_BYTES bytes, b"" of a folder.
        file: at position 0; None for a folder.
        size: bytes; 0 for a folder.
        is_on_disk: whether `path` is that of a file, beside which others may lie.
    """

    path: str
    item: str
    head: bytes
    file: BinaryIO | None
    size: int
    is_on_disk: bool = False

    @property
    def suffix(self) -> str:
        """The file name's suffix in lower case, with its dot."""
        return os.path.splitext(self.path)[1].lower()

    def opened(self) -> BinaryIO:
        """Return the file of a source that is one."""
        assert self.file is not None
        return self.file


class Reader(Protocol):
    """Reads some kinds of files. Raises UnreadableError or what its libraries raise."""

    def kind_of(self, source: Source) -> str | None:
        """Return the kind of a file by its content, None where it is not one of this reader's."""

    def items(self, source: Source, wanted: Wanted) -> list[str]:
        """Return the names of the images in the file, in their order; [""] for the only one."""

    def describe(self, source: Source, wanted: Wanted) -> Description:
        """Return what is in the file without decoding its pixels."""

    def read(self, source: Source, wanted: Wanted) -> Pixels:
        """Return the pixels of the part that is wanted."""


BLACK = (0.0, 0.0, 0.0)  # lies below transparency where no background is given


def only_transparency(background: tuple[float, float, float] | None) -> str:
    """Return the reason why a picture is refused that shows nothing on a background."""
    below = f"data.background {list(background)}" if background else "black"
    return (
        f"its whole content is its transparency: laid over {below} "
        "nothing is seen; set data.background to another colour, such as [1, 1, 1] for white"
    )
