"""The script that makes pictures with exact masks writes the same ones again, and says what is."""

from pathlib import Path

import numpy as np
import pytest
from example_scripts import run_script
from PIL import Image

# Flat colours, so that the class of a pixel can be seen in the picture.
COLOURS = {"animals": (250, 0, 0), "food": (0, 250, 0), "vehicles": (0, 0, 250)}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Stamps of one colour per kind, half of them transparent, and grey backgrounds."""
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(3)
    for folder, colour in COLOURS.items():
        (root / "stamps" / folder).mkdir(parents=True)
        for number in range(4):
            stamp = np.zeros((80, 100, 4), np.uint8)
            stamp[10:70, 20:60] = (*colour, 255)
            Image.fromarray(stamp).save(root / "stamps" / folder / f"{number}.png")
    (root / "grey").mkdir()
    for number in range(4):
        grey = rng.integers(0, 256, (160, 160, 1), dtype=np.uint8).repeat(3, axis=2)
        Image.fromarray(grey).save(root / "grey" / f"{number}.png")
    return root / "stamps", root / "grey"


def made(
    photographs: tuple[Path, Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, bytes]:
    stamps, grey = photographs
    run_script(
        monkeypatch,
        "pasted_photographs.py",
        *(out, "--stamps", stamps, "--backgrounds", grey, "--side", 64, "--train", 8, "--val", 3),
    )
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*.png")}


def test_the_same_command_writes_the_same_files(
    photographs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(photographs, tmp_path / "first", monkeypatch)
    assert first == made(photographs, tmp_path / "again", monkeypatch)
    assert {name for name in first if name.startswith("val")} == {
        f"val/{part}/{number:04d}.png" for part in ("images", "masks") for number in range(3)
    }
    assert len(first) == 2 * (8 + 3)


def test_masks_are_exact(
    photographs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grey pixels are background; a pixel of a stamp's colour has its kind, 1 to 3 by order."""
    made(photographs, tmp_path, monkeypatch)
    seen = set()
    for file in (tmp_path / "train" / "images").glob("*.png"):
        pixels = np.asarray(Image.open(file)).astype(int)
        mask = np.asarray(Image.open(tmp_path / "train" / "masks" / file.name))
        assert mask.shape == pixels.shape[:2]
        is_grey = pixels.max(axis=2) == pixels.min(axis=2)
        assert (mask[is_grey] == 0).all()
        is_pure = np.sort(pixels, axis=2)[..., :2].max(axis=2) == 0
        is_pure &= pixels.max(axis=2) > 100
        assert (mask[is_pure] == 1 + pixels.argmax(axis=2)[is_pure]).all()
        seen |= set(np.unique(mask).tolist())
    assert seen == {0, 1, 2, 3}
