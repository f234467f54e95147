"""Which axes of a TIFF are rows, columns, bands, and which count images.

Bands are samples (S) and channels (C). Times, depths and other named axes count images. Of pages
about which a file says nothing the shape decides, as of arrays: see `layout.layout_of`.
"""

import math
from dataclasses import dataclass
from typing import Any

from fcmae.data.readers.contract import UnreadableError, Wanted
from fcmae.data.readers.layout import layout_of, number_of

UNNAMED = "IQ"  # tifffile's letters for pages of which the file says nothing
BAND_AXES = "CS"


@dataclass(frozen=True)
class Axes:
    """The axes of a series, by their place in its shape, for one image.

    Attributes:
        shape: of the series.
        rows, columns: axes.
        band_axes: in the order in which bands count, the last fastest.
        image_axes: likewise.
        number: of the image that is meant.
        is_samples: the bands are samples of a pixel, which the photometric tag is about.
    """

    shape: tuple[int, ...]
    rows: int
    columns: int
    band_axes: tuple[int, ...]
    image_axes: tuple[int, ...]
    number: int
    is_samples: bool

    @property
    def height(self) -> int:
        """Rows of an image as it is stored."""
        return self.shape[self.rows]

    @property
    def width(self) -> int:
        """Columns of an image as it is stored."""
        return self.shape[self.columns]

    @property
    def bands(self) -> int:
        """Values of a pixel."""
        return math.prod(self.shape[axis] for axis in self.band_axes)

    @property
    def images(self) -> int:
        """Images in the series."""
        return math.prod(self.shape[axis] for axis in self.image_axes)


def main_series(file: Any) -> Any:
    """Return the series of pages that are the picture, not its thumbnail.

    Raises:
        UnreadableError: there is none, or it lies in other files too.
    """
    found = file.series
    if any(page is None or page.parent is not file for page in (found[0].pages if found else ())):
        raise UnreadableError("is one file of several that make a picture together (OME-TIFF)")
    full = [series for series in found if not series.keyframe.is_reduced] or found
    if not full:
        raise UnreadableError("has no page with pixels")
    return full[0]


def axes_of(series: Any, item: str, wanted: Wanted) -> Axes:
    """Return the roles of a series' axes.

    Raises:
        UnreadableError: no rows and columns, too many axes, or no such image.
    """
    letters, shape = series.axes, tuple(series.shape)
    if 0 in shape or "Y" not in letters or "X" not in letters:
        raise UnreadableError(f"pages with the axes {letters!r} and shape {shape} are no pictures")
    band_axes = tuple(
        place for letter in BAND_AXES for place, name in enumerate(letters) if name == letter
    )
    others = tuple(place for place, name in enumerate(letters) if name not in "YX" + BAND_AXES)
    rows, columns = letters.index("Y"), letters.index("X")
    is_unnamed = bool(others) and all(letters[place] in UNNAMED for place in others)
    if is_unnamed and not band_axes and len(shape) in (3, 4) and not item:
        layout = layout_of(shape, wanted)
        first = 1 if layout.is_stack else 0
        if layout.bands_axis is not None:
            band = first + layout.bands_axis
            sides = [place for place in range(first, len(shape)) if place != band]
            return _numbered(
                Axes(shape, sides[0], sides[1], (band,), tuple(range(first)), 0, False), item
            )
    is_samples = all(letters[place] == "S" for place in band_axes)
    return _numbered(Axes(shape, rows, columns, band_axes, others, 0, is_samples), item)


def _numbered(axes: Axes, item: str) -> Axes:
    from dataclasses import replace

    # Pages are looked at one after another: of several images the first is meant, and told.
    return replace(axes, number=number_of(item or "0", axes.images))
