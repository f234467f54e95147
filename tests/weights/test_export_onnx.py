"""ONNX files compute in ONNX Runtime what the model computes, for any number and size of images."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import pytest
import torch
from authors_weights import narrow, randomized
from speck import SPECK
from tiny_graph import LARGEST, write_tiny_graph
from tiny_run import make_run

from fcmae.__main__ import main
from fcmae.convert import convert_state_dict
from fcmae.errors import BackendUnavailableError, CheckpointError
from fcmae.weights import export_onnx, proof
from fcmae.weights.encoder_info import EncoderInfo
from fcmae.weights.export import export

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def info_of(
    name: str, in_chans: int, classes: tuple[str, ...] | None, size: tuple[int, int] = (64, 96)
) -> EncoderInfo:
    return EncoderInfo(
        model_name=name,
        in_chans=in_chans,
        stem_stride=4,
        image_size=size,
        mean=(0.5,) * in_chans,
        std=(0.2,) * in_chans,
        classes=classes,
    )


def run_onnx(path: Path, images: torch.Tensor) -> dict[str, torch.Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    arrays = session.run(names, {"images": images.numpy()})
    return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Within 1e-5 of the largest value: float32, other kernels."""
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * scale)


# Neither the size of a run's images nor those of the export's own proof; the second is no multiple
# of a cell.
SIZES = [(1, 64, 64), (5, 75, 130), (2, 160, 32)]


@torch.no_grad()
def test_a_runs_encoder_has_feature_map_and_features_at_any_size_and_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, model = make_run(tmp_path / "run", name=SPECK)
    assert main(["export", str(tmp_path / "run"), "--to", "onnx"]) == 0
    path = tmp_path / "run" / "export" / "encoder.onnx"
    out = capsys.readouterr().out
    assert "input images [batch, 1, height, width], output feature_map and features" in out
    assert "with 1 x 64 x 96, 3 x 32 x 64 and 2 x 112 x 67 px of random images" in out
    encoder, rng = model.encoder.eval(), torch.Generator().manual_seed(4)
    for batch, height, width in SIZES:
        images = torch.randn(batch, 1, height, width, generator=rng)
        found = run_onnx(path, images)
        assert_close(found["feature_map"], encoder.forward_features(images))
        assert_close(found["features"], encoder(images))
    properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert properties["model_name"] == SPECK
    assert json.loads(properties["image_size"]) == [64, 96]
    assert [item.name for item in path.parent.iterdir()] == ["encoder.onnx"]


@torch.no_grad()
@pytest.mark.parametrize("name", [SPECK, pytest.param("convnextv2_tiny", marks=pytest.mark.slow)])
def test_one_classifier_has_the_same_logits_in_timm_transformers_and_onnx_runtime(
    tmp_path: Path, name: str
) -> None:
    transformers = pytest.importorskip("transformers")
    info = info_of(name, 3, ("a", "b", "c", "d"))
    model = randomized(info.create_model(4))
    theirs = convert_state_dict(model.state_dict(), to="authors-dense")
    converted = info.create_model(4).eval()
    converted.load_state_dict(convert_state_dict(theirs, to="timm"), strict=True)
    export(converted, "huggingface", tmp_path / "hub", info)
    export(converted, "onnx", tmp_path / "model.onnx", info)
    hub = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "hub", local_files_only=True
    )
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(4))
    expected = model(images)
    assert torch.equal(converted(images), expected)
    assert_close(hub.eval()(pixel_values=images).logits, expected)
    for batch, height, width in ((2, 64, 96), *SIZES):
        images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(4))
        assert_close(run_onnx(tmp_path / "model.onnx", images)["logits"], model(images))


def test_a_file_that_onnx_runtime_reads_differently_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "TOLERANCE", -1.0)
    path = tmp_path / "model.onnx"
    path.write_text("an older file")
    with pytest.raises(CheckpointError, match=r"mapped of ONNX Runtime differ by .* nothing"):
        write_tiny_graph(path)
    assert path.read_text() == "an older file"
    assert list(tmp_path.iterdir()) == [path]


def test_weights_of_a_large_model_lie_in_a_file_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_onnx, "LARGEST_SINGLE_FILE", 100)
    module = write_tiny_graph(tmp_path / "model.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    batch, height, width = LARGEST
    images = torch.randn(batch, 2, height, width, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        assert_close(run_onnx(tmp_path / "model.onnx", images)["mapped"], *module(images))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_without_a_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    def refuse(name: str, *arguments: object) -> object:
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *arguments)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(
        BackendUnavailableError, match=rf"onnx: {package} is not installed; run pip install 'fcmae"
    ):
        export(narrow(), "onnx", tmp_path / "model.onnx", info_of("narrow", 2, None))
    assert not list(tmp_path.iterdir())
