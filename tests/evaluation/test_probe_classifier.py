"""The linear probe as a classifier: its predictions, in every format."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from said import without_progress
from speck import SPECK
from tiny_run import make_pictures, make_run

from fcmae.__main__ import main
from fcmae.data import open_images
from fcmae.errors import MISTAKE
from fcmae.evaluation import (
    evaluation_loader,
    extract_features,
    fit_linear_probe,
    linear_probe_predict,
)
from fcmae.evaluation.probe_classifier import normed
from fcmae.weights.encoder_info import EncoderInfo
from fcmae.weights.files import read_metadata


def clouds(num_classes: int, width: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Return overlapping training and test vectors, of differing scales, and the labels."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(90) % num_classes
    centres = torch.randn(num_classes, width, generator=rng)
    vectors = centres[labels] + 1.5 * torch.randn(90, width, generator=rng)
    vectors = 100 * vectors * torch.rand(width, generator=rng) + 7
    return vectors[:60], labels[:60], vectors[60:]


@pytest.mark.parametrize(("num_classes", "width"), [(2, 5), (2, 200), (3, 7), (5, 100)])
def test_the_folded_weights_predict_as_the_probe(num_classes: int, width: int) -> None:
    train, labels, test = clouds(num_classes, width)
    probe = fit_linear_probe(train, labels)
    assert probe.weight.shape == (num_classes, width)
    expected = linear_probe_predict(train, labels, test)
    assert len(expected.unique()) == num_classes
    assert torch.equal(probe.predict(test), expected)
    in_float32 = (test @ probe.weight.float().T + probe.bias.float()).argmax(dim=1)
    assert torch.equal(probe.classes[in_float32], expected)


def test_two_classes_keep_the_probability_of_the_regression() -> None:
    train, labels, test = clouds(2, 5)
    probe = fit_linear_probe(train, labels)
    torch.testing.assert_close(probe.weight[0], -probe.weight[1])
    margin = (test.double() @ (probe.weight[1] - probe.weight[0])) + probe.bias[1] - probe.bias[0]
    soft = (test.double() @ probe.weight.T + probe.bias).softmax(dim=1)[:, 1]
    torch.testing.assert_close(soft, margin.sigmoid())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, pictures, and probe.safetensors."""
    folder = tmp_path_factory.mktemp("saved")
    make_run(folder / "run", name=SPECK)
    make_pictures(folder / "data", 8)
    assert main([*command(folder), "--save", str(folder / "probe.safetensors")]) == 0
    return folder


def command(folder: Path) -> list[str]:
    where = ["probe", str(folder / "run"), str(folder / "data"), "--labels", "8", "--draws", "3"]
    return [*where, "--workers", "0", "--device", "cpu"]


def test_the_saved_classifier_predicts_as_the_probe_of_normed_features(saved: Path) -> None:
    file = saved / "probe.safetensors"
    metadata = read_metadata(file)
    info = EncoderInfo.from_metadata(metadata)
    assert info is not None
    assert info.classes == ("bright", "dark")
    assert metadata["crop_pct"] == 0.875
    model = timm.create_model(
        info.model_name, num_classes=2, in_chans=1, checkpoint_path=str(file)
    ).eval()
    images = open_images(str(saved / "data"))
    features = normed(model, extract_features(model, evaluation_loader(images, info)))
    expected = linear_probe_predict(features.vectors, features.labels, features.vectors)
    with torch.no_grad():
        logits = torch.cat([model(batch["image"]) for batch in evaluation_loader(images, info)])
    assert torch.equal(logits.argmax(dim=1), expected)
    assert len(expected.unique()) == 2


def test_the_saved_classifier_becomes_onnx_and_scores_as_a_fine_tuned_one(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    file = saved / "probe.safetensors"
    assert main(["convert", str(file), str(tmp_path / "probe.onnx"), "--to", "onnx"]) == 0
    assert "in ONNX Runtime with 1 x 64 x 96, 3 x 32 x 64" in capsys.readouterr().out
    session = runtime.InferenceSession(str(tmp_path / "probe.onnx"))
    images = torch.randn(2, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with safe_open(str(file), framework="pt") as opened:
        assert opened.get_tensor("head.fc.weight").shape == (2, 20)
    model = timm.create_model(SPECK, num_classes=2, in_chans=1, checkpoint_path=str(file)).eval()
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(images).numpy(), rtol=1e-3, atol=1e-4)
    only = ["finetune", "--evaluate.only=true", f"--model.weights={file}", "--data.workers=0"]
    only += [f"--data.path={saved / 'data'}", f"--run.dir={tmp_path / 'run'}", "--train.steps=1"]
    only += [f"--model.name={SPECK}", "--data.in_chans=1", "--data.image_size=[64, 96]"]
    capsys.readouterr()
    assert main([*only, "--train.device=cpu"]) == 0
    assert "balanced" in capsys.readouterr().out


def test_probe_says_what_the_saved_classifier_is_and_how_it_scores(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    file = tmp_path / "new" / "probe.safetensors"
    assert main([*command(saved), "--save", str(file)]) == 0
    said = capsys.readouterr().out
    assert "\npretrained, normed" in said
    assert "trained on all 16 labelled images" in said
    assert f'checkpoint_path="{file}")' in said
    assert file.is_file()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("probe.onnx", "--save: got 'probe.onnx', expected a name that ends in .safetensors"),
        ("/proc/none/probe.safetensors", "probe.safetensors cannot be written ("),
    ],
)
def test_a_name_that_cannot_be_written_is_one_sentence(
    name: str, message: str, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main([*command(saved), "--save", name]) == MISTAKE
    error = without_progress(capsys.readouterr().err)
    assert message in error
    # A slow machine is told how far the draws are.
    said = [line for line in error.splitlines() if not line.startswith("fcmae: probing: ")]
    assert len(said) == 1
