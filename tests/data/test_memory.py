"""Pictures of any size are read in little memory, whatever reads them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

SIDE, TILE = 12_000, 512
READ = """
import sys
from pathlib import Path
from fcmae.data import EvaluationDataset, EvaluationTransform, PretrainAugmentation
from fcmae.data import PretrainDataset, Reading, find_images

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

reading = Reading(in_chans=1)
small, large = (find_images(path, wanted=reading.wanted()) for path in sys.argv[1:])
def read(images):
    samples = PretrainDataset(images, PretrainAugmentation((224, 224)), seed=0, reading=reading,
                              num_patches=49, mask_ratio=0.6)
    for epoch in range(6):
        for index in range(len(images)):
            assert not samples[epoch, index]["skipped"]
    transform = EvaluationTransform((224, 224), mean=(0.5,), std=(0.25,))
    scored = EvaluationDataset(images, transform, reading=reading)
    for index in range(len(images)):
        assert not scored[index]["skipped"]
read(small)
before = peak()
read(large)
print(peak() - before)
"""


@pytest.mark.slow
def test_strips_and_tiles_of_any_size_take_less_than_300_mb(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("small", "large"):
        (tmp_path / name).mkdir()
    tile = rng.integers(0, 256, (TILE, TILE), dtype=np.uint8)
    Image.fromarray(tile).save(tmp_path / "small" / "a.png")
    tifffile.imwrite(tmp_path / "small" / "b.tif", tile, tile=(128, 128), compression="zlib")
    strip = rng.integers(0, 256, (1, 65_000), dtype=np.uint8)
    Image.fromarray(strip).save(tmp_path / "large" / "wide.png")
    Image.fromarray(np.tile(strip.T[:20_000], 2)).save(tmp_path / "large" / "high.png")
    tifffile.imwrite(
        tmp_path / "large" / "huge.tif",
        (np.roll(tile, number) for number in range((-(-SIDE // TILE)) ** 2)),
        shape=(SIDE, SIDE),
        dtype=np.uint8,
        tile=(TILE, TILE),
        compression="zlib",
    )
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "small"), str(tmp_path / "large")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 300
