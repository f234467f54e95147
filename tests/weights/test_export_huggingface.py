"""Folders that transformers loads offline, from runs of pretraining and fine-tuning."""

from __future__ import annotations

import builtins
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from authors_weights import narrow, randomized
from PIL import Image
from speck import SPECK
from tiny_run import STEP, make_run

from fcmae.__main__ import main
from fcmae.data import EvaluationTransform
from fcmae.errors import MISTAKE, BackendUnavailableError, CheckpointError
from fcmae.weights.conversion import read_weights
from fcmae.weights.encoder_info import EncoderInfo
from fcmae.weights.export import convert_file, export, write_converted
from fcmae.weights.export_huggingface import build_model, import_transformers
from fcmae.weights.files import read_metadata
from fcmae.weights.sources import open_source

transformers = pytest.importorskip("transformers")
CLASSES = ("cell", "crack", "dust")


def images_of(height: int, width: int, in_chans: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(3)
    return torch.randn(2, in_chans, height, width, generator=rng)


def classifier_info(name: str = SPECK, in_chans: int = 3) -> EncoderInfo:
    return EncoderInfo(
        model_name=name,
        in_chans=in_chans,
        stem_stride=4,
        image_size=(64, 96),
        mean=(0.5,) * in_chans,
        std=(0.2,) * in_chans,
        classes=CLASSES,
    )


@torch.no_grad()
def test_auto_model_loads_a_runs_encoder_offline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, model = make_run(tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), "--to", "huggingface"]) == 0
    folder = tmp_path / "run" / "export" / "encoder-huggingface"
    assert f"{folder}: written in the huggingface layout; converted" in capsys.readouterr().out
    loaded = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
    assert type(loaded).__name__ == "ConvNextV2Model"
    images = images_of(64, 96, 1)
    encoder, output = model.encoder.eval(), loaded.eval()(pixel_values=images)
    expected = encoder.forward_features(images)
    scale = float(expected.abs().max())
    torch.testing.assert_close(output.last_hidden_state, expected, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(output.pooler_output, encoder(images), rtol=0, atol=1e-5)
    assert read_metadata(folder / "model.safetensors")["steps"] == STEP
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]


@torch.no_grad()
@pytest.mark.parametrize("version", [1, 2])
def test_a_classifier_keeps_its_classes_and_logits(tmp_path: Path, version: int) -> None:
    model = narrow(version=version, num_classes=3)
    info = classifier_info(in_chans=2)
    export(model, "huggingface", tmp_path / "hub", info)
    loaded = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "hub", local_files_only=True
    )
    assert loaded.config.id2label == dict(enumerate(CLASSES))
    images = images_of(64, 96, 2)
    expected = model(images)
    scale = float(expected.abs().max())
    logits = loaded.eval()(pixel_values=images).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("size", "picture"),
    [((64, 64), (90, 120)), ((384, 384), (90, 120)), ((384, 416), (50, 40)), ((64, 96), (80, 120))],
)
@pytest.mark.parametrize("in_chans", [1, 3])
def test_the_image_processor_prepares_as_the_runs_own_evaluation(
    tmp_path: Path, size: tuple[int, int], picture: tuple[int, int], in_chans: int
) -> None:
    """A picture of another aspect than images that are not square differs: see its docstring."""
    info = dataclasses.replace(classifier_info(in_chans=in_chans), image_size=size, crop_pct=0.8)
    export(narrow(num_classes=3, in_chans=in_chans), "huggingface", tmp_path / "hub", info)
    rng = torch.Generator().manual_seed(5)
    pixels = torch.randint(256, (in_chans, *picture), generator=rng, dtype=torch.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(
        tmp_path / "hub", local_files_only=True
    )
    found = processor(pixels.numpy(), return_tensors="pt", input_data_format="channels_first")
    transform = EvaluationTransform(size, mean=info.mean, std=info.std, crop_pct=0.8)
    expected = transform(pixels)
    # The processor keeps 8 bits between its steps, as this one does for 8-bit pictures.
    torch.testing.assert_close(found["pixel_values"][0], expected, rtol=0, atol=1e-5)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "hub", local_files_only=True)
    assert config.image_size == (size[0] if size[0] == size[1] else list(size))


def test_a_pipeline_names_the_class_of_a_picture_offline(tmp_path: Path) -> None:
    info = dataclasses.replace(classifier_info(), image_size=(64, 64), crop_pct=0.8)
    model = randomized(info.create_model(3))
    export(model, "timm", tmp_path / "classifier.safetensors", info)
    command = ["convert", str(tmp_path / "classifier.safetensors"), str(tmp_path / "hub")]
    assert main([*command, "--to", "huggingface"]) == 0
    pixels = torch.randint(256, (3, 90, 120), generator=torch.Generator().manual_seed(2))
    picture = Image.fromarray(pixels.permute(1, 2, 0).to(torch.uint8).numpy())
    classify = transformers.pipeline("image-classification", model=str(tmp_path / "hub"))
    found = {entry["label"]: entry["score"] for entry in classify(picture)}
    transform = EvaluationTransform((64, 64), mean=info.mean, std=info.std, crop_pct=0.8)
    with torch.no_grad():
        expected = model(transform(pixels.to(torch.uint8))[None]).softmax(dim=1)[0].tolist()
    assert found == pytest.approx(dict(zip(CLASSES, expected, strict=True)), abs=1e-4)


def test_class_names_survive_every_way_round(tmp_path: Path) -> None:
    """Also through a pickle, and from a folder of Hugging Face to a file of timm and back."""
    info = classifier_info()
    export(info.create_model(3), "timm", tmp_path / "a.safetensors", info)
    way = [("b.pth", "authors-dense"), ("c", "huggingface"), ("d.safetensors", "timm")]
    source = tmp_path / "a.safetensors"
    for name, to in [*way, ("e", "huggingface")]:
        convert_file(source, tmp_path / name, to=to)
        source = tmp_path / name
        assert open_source(source).classes == CLASSES, name


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "README.md").write_text("mine")
    for _ in range(2):  # written again, too
        export(narrow(), "huggingface", tmp_path / "hub", classifier_info(in_chans=2))
    assert (tmp_path / "hub" / "README.md").read_text() == "mine"
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["depths"] == [1, 2, 1, 1]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"kernel_sizes": 3}, r"kernels of \(3, 3, 3, 3\), not 7"),
        ({"conv_bias": False}, "no biases in convolutions"),
        ({"head_norm_first": True}, "its last norm before pooling"),
        ({"patch_size": 2}, "a stem of stride 2"),
        ({"ls_init_value": 1.0}, "neither V1's nor V2's blocks"),
    ],
)
def test_models_that_transformers_has_not_are_refused(
    tmp_path: Path, settings: dict[str, object], reason: str
) -> None:
    state = narrow(**settings).state_dict()
    with pytest.raises(CheckpointError, match=f"transformers has no ConvNeXt with {reason}"):
        write_converted(state, "timm", tmp_path / "hub", "huggingface", {})
    assert not list(tmp_path.iterdir())


def test_converting_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    weights = narrow().state_dict()
    state = torch.get_rng_state()
    build_model(read_weights(weights, "timm").structure)
    assert torch.equal(torch.get_rng_state(), state)
    write_converted(weights, "timm", tmp_path / "hub", "huggingface", {})
    write_converted(weights, "timm", tmp_path / "a.pth", "authors-sparse", {})
    assert torch.equal(torch.get_rng_state(), state)


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *arguments: object) -> object:
        if name == "transformers":
            raise ImportError("No module named 'transformers'")
        return original(name, *arguments)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(BackendUnavailableError, match=r"run pip install 'fcmae\[huggingface\]'"):
        import_transformers()


def test_authors_layouts_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The authors' atto has 12 blocks, so that its files hold 80 tensors more."""
    make_run(tmp_path / "run", name=SPECK)
    for name, count in (("dense", 56), ("sparse", 56), ("fcmae", 71)):
        assert main(["export", str(tmp_path / "run"), "--to", f"authors-{name}"]) == 0
        path = tmp_path / "run" / "export" / f"encoder-authors-{name}.pth"
        content = torch.load(path, weights_only=True)
        assert len(content["model"]) == count
        assert content["metadata"]["model_name"] == SPECK
        assert f"written in the authors-{name} layout" in capsys.readouterr().out


def test_a_fine_tuning_run_exports_its_classifier_and_has_no_decoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = classifier_info(in_chans=1)
    model = randomized(info.create_model(3))
    path = tmp_path / "run" / "export" / "classifier.safetensors"
    export(model, "timm", path, info)
    run = str(tmp_path / "run")
    assert main(["export", run, "--to", "authors-dense"]) == 0
    written = torch.load(path.parent / "classifier-authors-dense.pth", weights_only=True)
    assert torch.equal(written["model"]["head.bias"], model.head.fc.bias)
    before = path.read_bytes()
    assert main(["export", run]) == 0
    assert path.read_bytes() == before
    out = capsys.readouterr().out
    assert "classifier.safetensors: is a file of timm already" in out
    assert 'timm.create_model("convnextv2_speck", num_classes=3, in_chans=1,' in out
    assert main(["export", run, "--to", "authors-fcmae"]) == MISTAKE
    assert (
        "authors-fcmae is a whole FCMAE, and these weights have no decoder"
        in capsys.readouterr().err
    )
