"""DICOM gives the values and colours that pydicom's own files are known to have."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from dicom_files import dicom
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut

import fcmae
from fcmae.data import Reading, UndecodableImageError, decode, to_float
from fcmae.data.readers import UnreadableError, describe, items, kind_of

FILES = sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm"))


def write(folder: Path, stored: np.ndarray, **elements: Any) -> str:
    path = folder / "a"
    path.write_bytes(dicom(stored, **elements))
    return str(path)


def last_frame(path: Path) -> tuple[str, np.ndarray] | str:
    """Return a file's last frame by name and value, or why it has none."""
    try:
        name = items(str(path))[-1]
        return name, fcmae.read_image(name)
    except UndecodableImageError as error:
        return error.reason
    except (UnreadableError, ValueError) as error:
        return str(error)


@pytest.mark.filterwarnings("ignore")  # of pydicom, about its damaged files
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_pydicoms_own_files_give_its_values_or_a_reason(path: Path) -> None:
    found = last_frame(path)
    assert found
    if isinstance(found, str):
        return
    name, values = found
    dataset = pydicom.dcmread(path, force=True)
    expected = dataset.pixel_array
    if name != str(path):
        expected = expected[-1]
    if dataset.PhotometricInterpretation.startswith("MONO"):
        expected = apply_modality_lut(expected, dataset)
        assert values.shape == (*expected.shape, 1)
        np.testing.assert_allclose(values[..., 0], expected, rtol=1e-6)
    elif dataset.PhotometricInterpretation == "RGB":
        assert np.array_equal(values, expected)
    else:
        assert values.shape[-1] == 3
    image, _ = decode(name, Reading(in_chans=1))
    assert 0 <= to_float(image).min() < to_float(image).max() <= 1


def test_most_of_pydicoms_pictures_are_read() -> None:
    found = [last_frame(path) for path in FILES]
    without = sum(reason == "is a DICOM without a picture" for reason in found)
    read = sum(not isinstance(reason, str) for reason in found)
    assert len(FILES) > 50
    assert read > 0.9 * (len(FILES) - without)


def test_values_are_rescaled_and_black_and_white_are_the_window(tmp_path: Path) -> None:
    stored = np.array([[0, 524, 1024, 1524, 2048, 4095]], np.uint16)
    scale = {"RescaleSlope": 1, "RescaleIntercept": -1024, "BitsStored": 12, "HighBit": 11}
    path = write(tmp_path, stored, **scale, WindowCenter=0.5, WindowWidth=1001)
    assert fcmae.read_image(path)[0, :, 0].tolist() == [-1024, -500, 0, 500, 1024, 3071]
    image, _ = decode(path, Reading(in_chans=1))
    assert image[0, 0].tolist() == pytest.approx([0, 0, 0.5, 1, 1, 1])
    image, _ = decode(path, Reading(in_chans=1, value_range=(-1024, 3071)))
    assert image[0, 0].tolist() == pytest.approx((stored[0] / 4095).tolist())
    path = write(tmp_path, stored, **scale)  # without a window, all that 12 bits can say
    image, _ = decode(path, Reading(in_chans=1))
    assert image[0, 0].tolist() == pytest.approx((stored[0] / 4095).tolist())


def test_monochrome1_is_turned_round(tmp_path: Path) -> None:
    stored = np.array([[0, 64, 255]], np.uint8)
    path = write(tmp_path, stored, PhotometricInterpretation="MONOCHROME1")
    assert fcmae.read_image(path)[0, :, 0].tolist() == [0, 64, 255]
    assert decode(path, Reading(in_chans=1)).image.tolist() == [[[255, 191, 0]]]
    image, _ = decode(path, Reading(in_chans=1, value_range=(0, 64)))
    assert image.tolist() == [[[1, 0, 0]]]


def test_signed_values_fill_their_range(tmp_path: Path) -> None:
    path = write(tmp_path, np.array([[-32768, 0, 32767]], np.int16))
    image, _ = decode(path, Reading(in_chans=1))
    assert image[0, 0].tolist() == pytest.approx([0, 0.5, 1], abs=1e-4)


def test_frames_are_images_of_their_own(tmp_path: Path) -> None:
    stored = np.arange(3 * 4 * 6, dtype=np.uint8).reshape(3, 4, 6)
    path = write(tmp_path, stored)
    assert kind_of(path) == "DICOM"
    assert describe(path).images == 3
    assert items(path) == [f"{path}::{number}" for number in range(3)]
    for number in range(3):
        assert np.array_equal(fcmae.read_image(f"{path}::{number}")[..., 0], stored[number])
    with pytest.raises(UndecodableImageError, match="several images: name one of its 3"):
        fcmae.read_image(path)


def test_padding_is_no_content(tmp_path: Path) -> None:
    stored = np.array([[5, 9, 200], [5, 5, 7]], np.uint8)
    _, valid = decode(write(tmp_path, stored, PixelPaddingValue=5), Reading(in_chans=1))
    assert valid is not None
    assert torch.equal(valid[0], torch.from_numpy(stored != 5))


def test_a_report_has_no_picture(tmp_path: Path) -> None:
    dataset = Dataset()
    dataset.PatientName = "a"
    path = tmp_path / "a"
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=False, little_endian=True, implicit_vr=False)
    path.write_bytes(b"\0" * 128 + b"DICM" + buffer.getvalue())
    with pytest.raises(UndecodableImageError, match="is a DICOM without a picture"):
        fcmae.read_image(path)
