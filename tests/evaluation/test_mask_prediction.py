"""Masks of new pictures: of any size, in their order, with those that cannot be read."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fcmae
from fcmae.__main__ import main
from fcmae.errors import ConfigError, DataError
from fcmae.evaluation.mask_prediction import output_names
from fcmae.weights.segmenter import SegmenterInfo, save_segmenter

pytest.importorskip("segmentation_models_pytorch", reason="the extra segmentation")

CLASSES = ("background", "crack", "spot")
SIZES = [(50, 70), (64, 64), (90, 200)]  # the last one is larger than a tile


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmenter whose answers differ from pixel to pixel."""
    folder = tmp_path_factory.mktemp("run")
    info = SegmenterInfo(
        model_name="convnextv2_atto",
        in_chans=3,
        stem_stride=4,
        image_size=(64, 96),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        classes=CLASSES,
        architecture="fpn",
        decoder_channels=32,
        mask_values=(0, 1, 2),
    )
    network, rng = info.create_segmenter(), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.05)
    save_segmenter(network.state_dict(), folder / "export" / "segmenter.safetensors", info)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    for number, size in enumerate(SIZES):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "1b.png").write_bytes(b"no picture")
    return folder


def network_of(run: Path) -> torch.nn.Module:
    from fcmae.weights.segmenter import load_segmenter

    return load_segmenter(run)[0]


@torch.no_grad()
def test_a_mask_is_what_the_network_says_of_the_picture(run: Path, pictures: Path) -> None:
    """Of pictures that fit into a tile; padded below and to the right, then cut."""
    found = fcmae.load(run, device="cpu").predict(pictures)
    network = network_of(run)
    assert [Path(file).name for file in found.files] == ["0.png", "1.png", "1b.png", "2.png"]
    for number in (0, 1):
        pixels = np.asarray(Image.open(pictures / f"{number}.png"))
        image = (torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255 - 0.5) / 0.25
        height, width = pixels.shape[:2]
        padded = torch.nn.functional.pad(image, (0, -width % 32, 0, -height % 32))
        expected = network(padded[None])[0, :, :height, :width].argmax(dim=0).numpy()
        mask = found.masks[number]
        assert mask is not None
        assert (mask != expected).mean() < 0.001  # ties of floats
        assert found.shares[number] == pytest.approx(
            np.bincount(mask.ravel(), minlength=3) / mask.size
        )
    assert found.masks[3] is not None
    assert found.masks[3].shape == SIZES[2]
    assert found.masks[2] is None
    assert "no picture" in found.problems[found.files[2]]
    assert len(np.unique(found.masks[1])) > 1, "a mask of one class proves nothing"


def test_the_command_writes_masks_overlays_and_a_row_per_picture(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", str(run), str(pictures), "--output", str(tmp_path), "--device", "cpu"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "masks and overlays of 3 of 4 pictures" in out
    assert "values of the masks: 0 background, 1 crack, 2 spot" in out
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["file"]).name for row in rows] == ["0.png", "1.png", "1b.png", "2.png"]
    assert "no picture" in rows[2]["problem"]
    assert rows[2]["mask"] == ""
    arrays = fcmae.load(run, device="cpu").predict(pictures).masks
    for row, array in zip(rows, arrays, strict=True):
        if array is None:
            continue
        with Image.open(tmp_path / row["mask"]) as mask:
            assert mask.mode == "P"
            assert (np.asarray(mask) == array).all()
        with Image.open(tmp_path / row["overlay"]) as overlay:
            assert overlay.size == mask.size
        shares = [float(row[f"share_{name}"]) for name in CLASSES]
        assert sum(shares) == pytest.approx(1)


def test_arrays_and_pictures_of_pillow_are_taken_too(run: Path, pictures: Path) -> None:
    with Image.open(pictures / "0.png") as opened:
        picture = opened.copy()
    model = fcmae.load(run / "export" / "segmenter.safetensors", device="cpu")
    found = model.predict([picture])
    again = model.predict(np.asarray(picture), workers=2)
    assert found.files == ("0",)
    assert (found.masks[0] == again.masks[0]).all()


def test_what_does_not_fit_is_one_sentence(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", str(run), str(pictures), "--device", "cpu", "--output"]
    assert main([*command, str(tmp_path / "x.csv")]) == 2
    assert "expected a folder for them" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "x"), "--top", "2"]) == 2
    assert "is for classifiers" in capsys.readouterr().err
    with pytest.raises(DataError, match="none of the 1 images can be used"):
        fcmae.load(run, device="cpu").predict(pictures / "1b.png")
    with pytest.raises(ConfigError, match="name the run of its encoder"):
        fcmae.load(run, device="cpu").embed(pictures)


def test_every_file_has_an_output_of_its_own() -> None:
    files = ["/d/a/x.jpg", "/d/a/x.png", "/d/b/x.png", "/d/s.tif::0", "/d/s.tif::1"]
    names = output_names(files)
    assert names[:3] == ["a/x.jpg.png", "a/x.png.png", "b/x.png"]
    assert len(set(names)) == len(names)
    assert output_names(["0", "1"]) == ["0.png", "1.png"]
