"""Exports: equal to the encoder, loadable by timm alone, and nothing written when they are not."""

import dataclasses
import json
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from safetensors import safe_open
from tiny_run import STEP, make_run

from fcmae import __version__
from fcmae.errors import CheckpointError, ConfigError
from fcmae.model.autoencoder import FCMAE
from fcmae.model.backbones import create_backbone
from fcmae.settings.pretrain import PretrainConfig
from fcmae.weights import files
from fcmae.weights.encoder_info import EncoderInfo
from fcmae.weights.export import convert_file, export
from fcmae.weights.files import read_metadata

INFO = EncoderInfo(
    model_name="convnextv2_atto",
    in_chans=2,
    stem_stride=2,
    image_size=(64, 96),
    mean=(0.5, 0.4),
    std=(0.2, 0.3),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[PretrainConfig, FCMAE]:
    return make_run(tmp_path_factory.mktemp("runs") / "run")


def test_timm_loads_the_file_and_computes_the_same(
    run: tuple[PretrainConfig, FCMAE], tmp_path: Path
) -> None:
    config, model = run
    path = tmp_path / "new" / "encoder.safetensors"
    told = export(model.encoder, "timm", path, EncoderInfo.of_run(config, model, STEP))
    assert told == (
        f"{path}: written and loaded back into a fresh timm model; the largest difference of "
        "features on 2 random images is 0.0e+00 of the largest value."
    )
    images = torch.randn(2, 1, 224, 160, generator=torch.Generator().manual_seed(3))
    by_path = timm.create_model(
        "convnextv2_atto", num_classes=0, in_chans=1, checkpoint_path=str(path)
    )
    by_state = timm.create_model("convnextv2_atto", num_classes=0, in_chans=1)
    by_state.load_state_dict(safetensors.torch.load_file(path), strict=True)
    with torch.no_grad():
        expected = model.encoder.eval()(images)
        assert torch.equal(by_path.eval()(images), expected)
        assert torch.equal(by_state.eval()(images), expected)
    assert [item.name for item in path.parent.iterdir()] == ["encoder.safetensors"]


def test_the_printed_line_of_python_loads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    encoder = INFO.create_model()
    export(encoder, "timm", path, INFO)
    loaded = eval(INFO.timm_call(path), {"timm": timm})
    assert loaded.stem[0].stride == (2, 2)
    assert all(
        torch.equal(value, loaded.state_dict()[name])
        for name, value in encoder.state_dict().items()
    )


def test_metadata_says_how_to_use_the_weights(
    run: tuple[PretrainConfig, FCMAE], tmp_path: Path
) -> None:
    config, model = run
    path = tmp_path / "encoder.safetensors"
    info = EncoderInfo.of_run(config, model, STEP, "CC0, own images")
    export(model.encoder, "timm", path, info)
    with safe_open(path, framework="pt") as file:
        texts = file.metadata()
    assert texts["fcmae_version"] == __version__
    assert texts["model_name"] == "convnextv2_atto"
    assert texts["origin"] == "CC0, own images"
    values = {name: json.loads(texts[name]) for name in ("image_size", "in_chans", "steps", "std")}
    assert values == {
        "image_size": [64, 96],
        "in_chans": 1,
        "steps": STEP,
        "std": [pytest.approx(0.226, abs=1e-3)],
    }
    assert json.loads(texts["mask_ratio"]) == 0.5
    assert EncoderInfo.from_metadata(read_metadata(path)) == info


def test_metadata_of_others_is_not_taken_for_ours() -> None:
    assert EncoderInfo.from_metadata({}) is None
    assert EncoderInfo.from_metadata({"format": "pt", "model_name": "x"}) is None
    assert EncoderInfo.from_metadata({"fcmae_version": "9", "model_name": "x"}) is None


def test_export_changes_neither_the_encoder_nor_the_global_generator(tmp_path: Path) -> None:
    encoder = INFO.create_model().train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = torch.get_rng_state()
    export(encoder, "timm", tmp_path / "encoder.safetensors", INFO)
    assert torch.equal(torch.get_rng_state(), state)
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_a_file_that_differs_from_the_encoder_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(weights: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        # One channel alone: the norm behind the stem takes away what all of them share.
        shift = torch.zeros(40).index_fill_(0, torch.tensor([3]), 0.5)
        spoiled = {**weights, "stem.0.bias": weights["stem.0.bias"] + shift}
        safetensors.torch.save_file(spoiled, path, metadata=metadata)

    monkeypatch.setattr(files, "save_file", spoil)
    path = tmp_path / "encoder.safetensors"
    path.write_text("an older export")
    with pytest.raises(CheckpointError, match=r"reloaded convnextv2_atto differ.*not.* written"):
        export(INFO.create_model(), "timm", path, INFO)
    assert path.read_text() == "an older export"
    assert list(tmp_path.iterdir()) == [path]


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    encoder = INFO.create_model()
    with torch.no_grad():
        encoder.stages[0].blocks[0].conv_dw.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(
        CheckpointError,
        match=r"NaN or infinite values in stages.0.blocks.0.conv_dw.weight; nothing was w",
    ):
        export(encoder, "timm", tmp_path / "encoder.safetensors", INFO)
    assert not list(tmp_path.iterdir())


def test_an_encoder_of_another_model_is_an_error(tmp_path: Path) -> None:
    other = create_backbone("convnextv2_femto", in_chans=2, stem_stride=2)
    with pytest.raises(CheckpointError, match="export: the encoder is no convnextv2_atto with 2"):
        export(other, "timm", tmp_path / "encoder.safetensors", INFO)
    assert not list(tmp_path.iterdir())


def test_unknown_formats_and_unwritable_files_are_the_users_mistake(tmp_path: Path) -> None:
    encoder = INFO.create_model()
    with pytest.raises(ConfigError, match="--to: got 'tim', expected one of timm"):
        export(encoder, "tim", tmp_path / "a.pth", INFO)
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "encoder.safetensors"
    with pytest.raises(FileExistsError):  # a run says itself what follows from that
        export(encoder, "timm", target, INFO)
    export(encoder, "timm", tmp_path / "a.safetensors", INFO)
    with pytest.raises(
        ConfigError, match=r"encoder.safetensors: cannot be written.*name another file"
    ):
        convert_file(tmp_path / "a.safetensors", target, to="timm")


def test_v1_encoders_export_too(tmp_path: Path) -> None:
    info = dataclasses.replace(INFO, model_name="convnext_atto", stem_stride=4, in_chans=3,
                               mean=(0.5,) * 3, std=(0.2,) * 3)  # fmt: skip
    path = tmp_path / "encoder.safetensors"
    export(info.create_model(), "timm", path, info)
    assert info.timm_call(path) == (
        f'timm.create_model("convnext_atto", num_classes=0, checkpoint_path="{path}")'
    )
