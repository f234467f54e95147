"""Every kind of file gives the right pixels, or its reason; docs/formats.md says the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from format_cases import CASES, Case
from format_table import formats_table

import fcmae
from fcmae.data import Reading, UndecodableImageError, decode, to_float
from fcmae.data.parts import Part

ROOT = Path(__file__).resolve().parents[3]
ASKED = [(case, in_chans) for case in CASES for in_chans in case.out]


def names(asked: list[tuple[Case, int]]) -> list[str]:
    return [f"{case.name} as {in_chans}" for case, in_chans in asked]


def written(case: Case, folder: Path) -> str:
    path = folder / "a file"  # its name says nothing
    path.write_bytes(case.make())
    return str(path)


@pytest.mark.parametrize(("case", "in_chans"), ASKED, ids=names(ASKED))
def test_the_pixels_are_right_or_the_file_is_refused(
    case: Case, in_chans: int, tmp_path: Path
) -> None:
    path, (_, expected) = written(case, tmp_path), case.out[in_chans]
    # Which values are right is asked here, not which pixels have data.
    reading = Reading(in_chans=in_chans, holes=False, **case.settings)
    if isinstance(expected, str):
        with pytest.raises(UndecodableImageError, match=expected):
            decode(path, reading)
        return
    image, _ = decode(path, reading)
    wanted = torch.from_numpy(np.asarray(expected, np.float32)).permute(2, 0, 1)
    wanted = wanted.expand(in_chans, -1, -1)
    torch.testing.assert_close(to_float(image), wanted, rtol=1e-6, atol=case.tolerance)
    # Where values are compared, other code converts them; none has the value that is asked for.
    compared, _ = decode(path, dataclasses.replace(reading, invalid=-7.25))
    assert compared.dtype == image.dtype
    luma = 0.51 / 255 if in_chans == 1 else 0  # Pillow's luma of 8 bits, or ours
    torch.testing.assert_close(
        to_float(compared), wanted, rtol=1e-6, atol=max(case.tolerance, luma)
    )
    part, _ = decode(path, reading, lambda height, width: Part(3, 5, 11, 17, (11, 17)))
    assert torch.equal(part, image[:, 3:14, 5:22])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_read_image_gives_the_values_of_the_file(case: Case, tmp_path: Path) -> None:
    path = written(case, tmp_path)
    values = fcmae.read_image(path)
    assert values.ndim == 3
    if case.own is not None:
        assert values.dtype == case.own.dtype
        assert np.array_equal(values, case.own)
    last = values.shape[-1] - 1
    assert np.array_equal(fcmae.read_image(path, bands=[last]), values[..., last:])
    with pytest.raises(UndecodableImageError, match=f"data.bands asks for number {last + 1}"):
        fcmae.read_image(path, bands=[last + 1])


def test_the_table_of_formats_is_what_is_tested() -> None:
    """Make it anew by `python tests/support/format_table.py > docs/formats.md`."""
    assert (ROOT / "docs" / "formats.md").read_text("utf-8") == formats_table()
