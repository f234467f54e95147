"""Pictures that other packages install: what comes out is their own reading of them.

pydicom's files are in test_dicom.py. Files that these packages fetch from the network are not.
"""

import warnings
from pathlib import Path

import numpy as np
import pytest

import fcmae
from fcmae.data import Reading, decode, to_float
from fcmae.data.readers import describe, items

skimage = pytest.importorskip("skimage")
iio = pytest.importorskip("imageio.v3")
matplotlib = pytest.importorskip("matplotlib")

PICTURES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp")
FOLDERS = [Path(skimage.__file__).parent / "data", Path(matplotlib.__file__).parent / "mpl-data"]
FILES = sorted(
    path for folder in FOLDERS for path in folder.rglob("*") if path.suffix.lower() in PICTURES
)
# Pillow, by which imageio reads PNG, cuts 16-bit colours to 8 bits.
DEEP = {"chessboard_RGB.png"}


def test_there_are_tiffs_and_pictures() -> None:
    assert {path.suffix for path in FILES} >= {".tif", ".png", ".jpg"}
    assert len(FILES) > 25


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_picture_of_another_package_has_the_values_that_it_reads(path: Path) -> None:
    named = items(str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.asarray(iio.imread(path))
    about = describe(named[0])
    values = fcmae.read_image(named[0])
    assert values.shape == (about.height, about.width, about.bands)
    if path.suffix == ".gif":
        expected = expected.reshape(-1, *values.shape[:2], 3)[0]  # the first frame
    elif path.name == "multipage.tif":
        expected = np.moveaxis(expected, 0, -1)  # two pages: bands
    elif path.name == "multipage_rgb.tif":
        expected = np.moveaxis(expected, 1, -1)[0]  # two pages of three planes: images
    if expected.ndim == 2:
        expected = expected[..., None]
    if path.name in DEEP:
        assert values.dtype == np.uint16
        values = (values >> 8).astype(np.uint8)
    colours = expected if expected.shape[2] == values.shape[2] else expected[..., : values.shape[2]]
    assert np.array_equal(values, colours)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_picture_of_another_package_is_an_image_for_a_model(path: Path) -> None:
    name = items(str(path))[0]
    about = describe(name)
    if about.bands == 2:
        image = decode(name, Reading(in_chans=2)).image
    elif about.black is None:
        image = decode(name, Reading(in_chans=3, value_range=(0, 255))).image
    else:
        image = decode(name, Reading(in_chans=3, value_range=None, background=(1, 1, 1))).image
    assert image.shape[1:] == (about.height, about.width)
    scaled = to_float(image)
    assert 0 <= float(scaled.min()) < float(scaled.max()) <= 1
