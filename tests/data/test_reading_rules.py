"""What a run says about how it reads its files, from their headers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from fcmae.data import Reading
from fcmae.data.reading_rules import reading_sentences


@pytest.fixture
def clear(tmp_path: Path) -> list[str]:
    """A picture with transparency and one without."""
    Image.new("RGBA", (8, 6), (1, 2, 3, 0)).save(tmp_path / "a.png")
    Image.new("L", (8, 6)).save(tmp_path / "b.png")
    return [str(tmp_path / "a.png"), str(tmp_path / "b.png")]


def test_transparency_is_told_with_what_it_means(clear: list[str]) -> None:
    said = reading_sentences(Reading(in_chans=3), clear)
    assert said == [
        "bands: red, green and blue and grey three times; fully transparent pixels are no data, "
        "others are laid over black (give data.background, such as [1, 1, 1], to have all of them "
        "as content).",
        "values: 0 is black and 255 white of 8 bit (by type and header); pixels are no data where "
        "files say so (nodata, a mask, NaN or an alpha of 0).",
    ]
    laid, values = reading_sentences(Reading(in_chans=1, background=(1, 1, 1)), clear)
    assert laid.endswith("laid over data.background [1, 1, 1] and count as content.")
    assert laid.startswith("bands: grey and the luma of colours;")
    assert values.endswith("where files say so (nodata, a mask, NaN).")
    kept, _ = reading_sentences(Reading(in_chans=4), clear)
    assert kept == "bands: all 4 of each file, as they are; transparency is a band like the others."
    picked, values = reading_sentences(Reading(in_chans=2, bands=(0, 1)), clear)
    assert picked.endswith("as they are; where the transparency is 0 there is no data.")
    assert values.endswith("where files say so (nodata, a mask, NaN or an alpha of 0).")
    ignored, values = reading_sentences(Reading(in_chans=3, holes=False), clear)
    assert ignored.endswith("count as content (data.holes false).")
    assert values.endswith("every pixel counts (data.holes false).")


def test_bands_ranges_and_marks_are_told(tmp_path: Path) -> None:
    path = str(tmp_path / "a.tif")
    values = np.zeros((8, 6, 4), np.uint16)
    tifffile.imwrite(path, values, photometric="rgb", extrasamples=["unassalpha"])
    bands, said = reading_sentences(Reading(in_chans=3, invalid=0.0), [path])
    assert bands == (
        "bands: red, green and blue, the bands after these left out in 1 of the first 1 files, "
        "which multiply nothing."
    )
    assert "0 is black and 65535 white of 16 bit" in said
    assert said.endswith("or where all bands are 0.0 (data.invalid).")
    reading = Reading(
        in_chans=2, bands=(3, 0), value_range=(0, 4095), holes=False, valid_mask="{stem}_m.png"
    )
    assert reading_sentences(reading, [path, str(tmp_path / "gone.png")]) == [
        "bands: number 3, 0 of each file, from 0 (data.bands), as they are.",
        "values: 0 is black and 4095 white (data.value_range), others are cut off; pixels are no "
        "data where the mask {stem}_m.png beside is 0.",
    ]
