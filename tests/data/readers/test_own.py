"""A function of the user's reads files, and the built-in readers those that it leaves to them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from format_cases import CASES, Case
from PIL import Image

import fcmae
from fcmae.data import Reading, UndecodableImageError, decode
from fcmae.data.parts import Part
from fcmae.errors import ConfigError

EXAMPLE = f"{Path(__file__).resolve().parents[3] / 'examples' / 'own_reader.py'}:read"
ARRAYS = [case for case in CASES if case.own is not None and case.format == "TIFF"]


def write_reader(folder: Path, body: str) -> str:
    file = folder / "mine.py"
    file.write_text(f"import numpy as np\n\n\ndef read(path):\n    {body}\n")
    return f"{file}:read"


def test_the_example_reads_its_files_and_leaves_the_others(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (480, 640), dtype=np.uint16)
    (tmp_path / "a.raw").write_bytes(values.astype("<u2").tobytes())
    Image.fromarray(np.full((4, 5), 51, np.uint8)).save(tmp_path / "b.png")
    reading = Reading(in_chans=1, reader=EXAMPLE, value_range=(0, 255))
    image, _ = decode(str(tmp_path / "b.png"), reading)
    assert image.float().mean() in (51, pytest.approx(0.2))
    image, _ = decode(str(tmp_path / "a.raw"), Reading(in_chans=1, reader=EXAMPLE))
    torch.testing.assert_close(image[0], torch.from_numpy(values / 65535).float())
    assert np.array_equal(
        fcmae.read_image(tmp_path / "a.raw", reader=EXAMPLE), values[..., np.newaxis]
    )
    (tmp_path / "c.raw").write_bytes(b"\0\0")
    with pytest.raises(UndecodableImageError, match="has 1 values, where 480 x 640"):
        decode(str(tmp_path / "c.raw"), reading)


@pytest.mark.parametrize("case", ARRAYS, ids=lambda case: case.name)
def test_what_a_function_returns_is_read_like_an_array(case: Case, tmp_path: Path) -> None:
    assert case.own is not None
    np.save(tmp_path / "values.npy", case.own)
    name = write_reader(tmp_path, f"return np.load({str(tmp_path / 'values.npy')!r})")
    path = tmp_path / "anything"
    path.write_bytes(b"x")
    assert np.array_equal(fcmae.read_image(path, reader=name), case.own)
    count = case.own.shape[-1]
    reading = Reading(in_chans=count, value_range=(0.0, 65535.0), reader=name)
    image, valid = decode(str(path), reading)
    expected = torch.from_numpy(case.own.astype(np.float32) / 65535).permute(2, 0, 1)
    torch.testing.assert_close(image, expected.clip(0, 1))
    assert valid is None
    part, _ = decode(str(path), reading, lambda *_: Part(3, 5, 11, 17, (11, 17)))
    assert torch.equal(part, image[:, 3:14, 5:22])


def test_a_function_may_say_which_pixels_are_valid(tmp_path: Path) -> None:
    name = write_reader(tmp_path, "return np.ones((4, 6), np.uint8), np.eye(4, 6) > 0")
    image, valid = decode(str(tmp_path), Reading(in_chans=1, reader=name))
    assert image.shape == (1, 4, 6)
    assert valid is not None
    assert torch.equal(valid[0], torch.eye(4, 6) > 0)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return np.zeros(3)", r"returned an array of shape \(3,\), where \(H, W\)"),
        ("return np.zeros((2, 3), complex)", "complex128 is no image"),
        ("return np.zeros((2, 3)), np.ones((3, 2))", r"a mask of shape \(3, 2\) for pixels"),
        ("return 1, 2, 3", "returned 3 values"),
        ("raise KeyError('a')", "KeyError"),
    ],
)
def test_what_is_no_image_is_a_reason(body: str, reason: str, tmp_path: Path) -> None:
    name = write_reader(tmp_path, body)
    with pytest.raises(UndecodableImageError, match=reason):
        decode("x", Reading(in_chans=1, reader=name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "names no function"),
        ("no_such_module:read", "cannot be used .ModuleNotFoundError"),
        ("json:nothing", "cannot be used .AttributeError"),
        ("json:__name__", "is no function"),
        ("gone.py:read", "gone.py does not exist"),
    ],
)
def test_a_reader_that_is_none_is_a_mistake(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.reader: .*{message}.*MODULE:FUNCTION"):
        decode("x", Reading(in_chans=1, reader=name))


def test_the_example_can_be_imported_alone() -> None:
    spec = importlib.util.spec_from_file_location("example", EXAMPLE.removesuffix(":read"))
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
