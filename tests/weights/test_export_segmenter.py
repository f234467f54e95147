"""Segmenters leave as smp's folder and as ONNX, computing what they compute here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from fcmae.__main__ import main
from fcmae.weights.export_segmenter import AnySize
from fcmae.weights.segmenter import SegmenterInfo, save_segmenter

pytest.importorskip("segmentation_models_pytorch", reason="the extra segmentation")

ARCHITECTURES = ("upernet", "unet", "deeplabv3plus", "fpn")
SIZES = [(1, 64, 96), (3, 77, 50), (2, 33, 161)]


def info_of(architecture: str, norm: str = "group") -> SegmenterInfo:
    return SegmenterInfo(
        model_name="convnextv2_atto",
        in_chans=2,
        stem_stride=4,
        image_size=(64, 96),
        mean=(0.4, 0.5),
        std=(0.2, 0.3),
        classes=("background", "crack", "spot"),
        architecture=architecture,  # type: ignore[arg-type]
        norm=norm,  # type: ignore[arg-type]
        decoder_channels=32,
        mask_values=(0, 1, 2),
    )


def saved(folder: Path, info: SegmenterInfo) -> torch.nn.Module:
    """Write a segmenter whose weights are random as a run does, and return it."""
    network = info.create_segmenter().eval()
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.02)
    save_segmenter(network.state_dict(), folder / "export" / "segmenter.safetensors", info)
    return network


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_spelt_out_pooling_and_padding_change_nothing(architecture: str) -> None:
    network = info_of(architecture).create_segmenter().eval()
    images = torch.randn(2, 2, 96, 64, generator=torch.Generator().manual_seed(1))
    expected = network(images)
    torch.testing.assert_close(AnySize(network)(images)[0], expected, rtol=1e-4, atol=1e-5)
    padded = torch.nn.functional.pad(images[:, :, :70, :50], (0, 14, 0, 26))
    torch.testing.assert_close(
        AnySize(network)(images[:, :, :70, :50])[0],
        network(padded)[:, :, :70, :50],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_a_segmenter_has_its_logits_in_onnx_runtime_at_any_size(
    tmp_path: Path, architecture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = saved(tmp_path, info_of(architecture))
    assert main(["export", str(tmp_path), "--to", "onnx"]) == 0
    assert "1 x 64 x 96, 2 x 64 x 97 and 3 x 125 x 64 px" in capsys.readouterr().out
    path = tmp_path / "export" / "segmenter.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng = torch.Generator().manual_seed(4)
    for batch, height, width in SIZES:
        images = torch.randn(batch, 2, height, width, generator=rng)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        expected = AnySize(network)(images)[0]
        assert found.shape == (batch, 3, height, width)
        # Other kernels, float32, two deep networks.
        scale = float(expected.abs().max())
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=5e-5 * scale)
    known = session.get_modelmeta().custom_metadata_map
    assert json.loads(known["classes"]) == ["background", "crack", "spot"]


@pytest.mark.parametrize(("architecture", "norm"), [("unet", "batch"), ("upernet", "group")])
@torch.no_grad()
def test_the_lines_of_smps_folder_load_it_without_this_package(
    tmp_path: Path, architecture: str, norm: str
) -> None:
    network = saved(tmp_path, info_of(architecture, norm))
    assert main(["export", str(tmp_path), "--to", "smp"]) == 0
    folder = tmp_path / "export" / "segmenter-smp"
    card = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    assert "fcmae" not in code.replace(str(folder), "")
    names: dict[str, torch.nn.Module] = {}
    exec(code, names)  # as a reader of the card does
    images = torch.randn(2, 2, 64, 96, generator=torch.Generator().manual_seed(1))
    assert torch.equal(names["network"](images), network(images))


def test_other_formats_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, info_of("fpn"))
    assert main(["export", str(tmp_path)]) == 2
    assert "which is a segmenter; expected smp or onnx" in capsys.readouterr().err
