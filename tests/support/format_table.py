"""Prints docs/formats.md, from the cases that the tests check."""

from __future__ import annotations

from format_cases import CASES

BEFORE = """# What comes out of which file

Made from the list that the tests check (`tests/support/format_cases.py`); the content of a file
decides what it is,
not its name. "As" is `data.in_chans`. `fcmae.read_image(path)` gives the file's own values in
every case.

| format | depth | bands | as | what comes out |
|---|---|---|---|---|
"""
AFTER = """
Beside these:

- DICOM (extra `dicom`): grey, colour and palette, rescaled to its unit; black and white are
  `data.value_range`, else the
  file's window, else all its stored bits; MONOCHROME1 is turned round. Frames are images of
  their own, `FILE::3`.
- `.npz`, HDF5 and Zarr (extra `arrays`) as `.npy`. (H, W) is one image; (H, W, C) and (C, H, W)
  are one where C fits
  `data.in_chans`, or is at most 16 and the smallest; other (N, H, W), (N, H, W, C) and (N, C,
  H, W) are N images.
  One of them is named `FILE::3`, `FILE::NAME` or `FILE::NAME::3`.
- AVIF, animated pictures (the first frame), raw PNM; EXIF and TIFF orientation are applied.
- TIFF compressed by LZW, Deflate, Zstandard, PackBits, LZMA, JPEG, JPEG 2000, WebP, LERC and
  others, tiled or in strips,
  BigTIFF, either byte order.
- Any other file by a function of your own: `data.reader`, see `examples/own_reader.py`.

No colour of a TIFF or JPEG 2000 is multiplied by a band that might be transparency.
Transparency is composited only in
PNG, WebP, GIF, AVIF and BMP, for 1 and 3 channels: over `data.background`, and all pixels are
content then; without
it over black, and pixels with an alpha of 0 are holes (`data.holes`). An alpha that is a channel
itself is data like
the other bands. A run says at its start which of these rules its files meet.
"""


def formats_table() -> str:
    """Return the page."""
    rows = [
        f"| {case.format} | {case.depth} | {case.bands} | {in_chans} | {words} |\n"
        for case in CASES
        for in_chans, (words, _) in case.out.items()
    ]
    return BEFORE + "".join(rows) + AFTER


if __name__ == "__main__":
    print(formats_table(), end="")
