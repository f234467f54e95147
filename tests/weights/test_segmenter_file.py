"""The file of a segmenter: what goes in comes out, and other files are told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import real_runs  # noqa: F401  (registers convnextv2_speck)
import torch
from safetensors.torch import load_file, save_file

from fcmae.errors import CheckpointError
from fcmae.weights.files import read_metadata
from fcmae.weights.segmenter import BEST_FILE, SegmenterInfo, load_segmenter, save_segmenter

INFO = SegmenterInfo(
    model_name="convnextv2_speck",
    stem_stride=4,
    image_size=(64, 32),
    mean=(0.5, 0.4),
    std=(0.2, 0.3),
    in_chans=2,
    bands=(3, 1),
    value_range=(0.0, 4095.0),
    architecture="fpn",
    decoder_channels=32,
    classes=("ground", "crack"),
    mask_values=(0, (255, 0, 0)),
)


def write(path: Path) -> torch.nn.Module:
    """Write an untrained segmenter and return it."""
    torch.manual_seed(3)
    network = INFO.create_segmenter().eval()
    save_segmenter(network.state_dict(), path, INFO, {"val_mean_iou": "0.25"})
    return network


def test_a_segmenter_comes_back_as_it_was_with_all_that_is_known(tmp_path: Path) -> None:
    path = tmp_path / "export" / BEST_FILE
    network = write(path)
    images = torch.randn(1, 2, 64, 32)
    for source in (path, tmp_path, path.parent):
        loaded, info = load_segmenter(source)
        assert info == INFO
        assert not loaded.training
        assert torch.equal(loaded(images), network(images))
    assert read_metadata(path)["val_mean_iou"] == 0.25


def test_files_that_hold_no_segmenter_are_told(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors", metadata={"task": "detection"})
    for source in (tmp_path / "other.safetensors", tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError, match="holds no segmenter; name the folder of a run"):
            load_segmenter(source)


def test_weights_of_another_network_are_told(tmp_path: Path) -> None:
    path = tmp_path / BEST_FILE
    write(path)
    weights = load_file(path)
    del weights["segmentation_head.0.bias"]
    save_segmenter(weights, path, INFO)
    with pytest.raises(CheckpointError, match="does not fit what it says of itself"):
        load_segmenter(path)
