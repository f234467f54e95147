"""Folders that timm loads by name: what they hold, and what a run says of itself in them."""

import dataclasses
import json
from pathlib import Path

import pytest
import timm
import torch
from authors_weights import narrow
from pictures_on_disk import write_pictures
from safetensors.torch import load_file
from speck import SPECK
from tiny_run import STEP, make_run

from fcmae.__main__ import main
from fcmae.errors import MISTAKE, CheckpointError
from fcmae.runs.folder import RunFolder
from fcmae.weights import export_timm
from fcmae.weights.encoder_info import EncoderInfo
from fcmae.weights.export import convert_file, export
from fcmae.weights.files import read_metadata
from fcmae.weights.sources import load_described_encoder, open_source

INFO = EncoderInfo(
    model_name=SPECK,
    in_chans=2,
    stem_stride=4,
    image_size=(64, 96),
    mean=(0.5, 0.4),
    std=(0.2, 0.3),
    classes=("cell", "crack", "dust"),
    crop_pct=0.9,
)


def test_a_runs_folder_loads_by_name_with_its_size_and_channels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, model = make_run(tmp_path / "run", name=SPECK)
    assert main(["export", str(tmp_path / "run"), "--to", "timm-folder"]) == 0
    folder = tmp_path / "run" / "export" / "encoder-timm"
    out = capsys.readouterr().out
    assert f"{folder}: written and loaded by timm, also as feature maps; the largest diff" in out
    assert f'timm.create_model("local-dir:{folder}", pretrained=True)' in out
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    images = torch.randn(2, 1, 64, 96, generator=torch.Generator().manual_seed(3))
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded(images), model.encoder.eval()(images))
    config = json.loads((folder / "config.json").read_text())
    assert config["pretrained_cfg"]["first_conv"] is None
    assert config["pretrained_cfg"]["input_size"] == [1, 64, 96]
    assert read_metadata(folder / "model.safetensors")["steps"] == STEP


def test_the_transform_of_timm_is_the_runs_evaluation(tmp_path: Path) -> None:
    for size, crop_pct, mode in (((64, 96), 0.9, "center"), ((384, 384), 1.0, "squash")):
        info = dataclasses.replace(INFO, image_size=size, classes=None)
        export(info.create_model(), "timm-folder", tmp_path / mode, info)
        loaded = timm.create_model(f"local-dir:{tmp_path / mode}", pretrained=True)
        data = timm.data.resolve_model_data_config(loaded)
        assert (data["crop_pct"], data["crop_mode"]) == (crop_pct, mode)
        assert (tuple(data["input_size"]), data["interpolation"]) == ((2, *size), "bicubic")
        assert (*data["mean"], *data["std"]) == (*info.mean, *info.std)


@pytest.mark.parametrize("settings", [{"model_name": "convnext_atto"}, {"stem_stride": 2}])
def test_classifiers_of_every_stem_and_version_keep_their_classes(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    info = dataclasses.replace(INFO, **settings)  # type: ignore[arg-type]
    model = info.create_model(3).eval()
    export(model, "timm-folder", tmp_path / "a b#c?", info)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'a b#c?'}", pretrained=True).eval()
    images = torch.randn(2, 2, 64, 96, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
    assert loaded.pretrained_cfg["label_names"] == ["cell", "crack", "dust"]


def test_the_folder_is_read_back_as_what_it_is(tmp_path: Path) -> None:
    export(INFO.create_model(3), "timm-folder", tmp_path / "dir", INFO)
    found = open_source(tmp_path / "dir")
    assert found.classes == INFO.classes
    assert found.info == INFO
    encoder, info = load_described_encoder(tmp_path / "dir")
    assert info == INFO
    assert encoder.num_classes == 0
    told = convert_file(tmp_path / "dir", tmp_path / "w.safetensors", to="timm")
    assert "num_classes=3" in told[-1]


def test_a_folder_that_differs_from_the_model_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The map of the last stage alone would not show a wrong mean: config.json is looked at."""
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "config.json").write_text("an older one")
    config = export_timm.folder_config

    def spoil(info: EncoderInfo, model: object) -> dict[str, object]:
        return {**config(info, model), "architecture": "convnextv2_femto"}

    monkeypatch.setattr(export_timm, "folder_config", spoil)
    with pytest.raises(RuntimeError, match="size mismatch"):
        export(INFO.create_model(3), "timm-folder", tmp_path / "dir", INFO)
    assert [path.name for path in (tmp_path / "dir").iterdir()] == ["config.json"]
    assert (tmp_path / "dir" / "config.json").read_text() == "an older one"


def test_weights_of_an_unknown_model_and_names_of_files_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.pth"
    torch.save(narrow().state_dict(), source)
    with pytest.raises(CheckpointError, match=r"in.pth: does not say which model of timm its w"):
        convert_file(source, tmp_path / "dir", to="timm-folder")
    out = str(tmp_path / "x.safetensors")
    assert main(["convert", str(source), out, "--to", "timm-folder"]) == MISTAKE
    assert "is the name of a file, and timm-folder is a folder; expected a name without .safe" in (
        capsys.readouterr().err
    )


def small_run(folder: Path, *arguments: object) -> None:
    write_pictures(folder / "pictures", 80, channels=1)
    assert main(
        [
            *("pretrain", "--run.dir", str(folder / "run")),
            *("--data.path", str(folder / "pictures")),
            *("--data.image_size", "64", "--data.in_chans", "1", "--data.workers", "0"),
            *("--train.steps", "3", "--train.batch_size", "4", "--train.device", "cpu"),
            *("--model.name", SPECK, "--log.every_steps", "1"),
            *("--model.decoder_dim", "8", *map(str, arguments)),
        ]
    ) == 0  # fmt: skip


def test_pretraining_leaves_the_folder_with_a_card_that_says_what_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_card = "fcmae.pretraining.monitoring.draw_reconstructions"  # shows them
    monkeypatch.setattr(no_card, lambda *args, **how: None)
    start = tmp_path / "start.safetensors"
    info = dataclasses.replace(INFO, in_chans=1, mean=(0.5,), std=(0.2,), classes=None)
    told = "weights of others, licence CC-BY-NC 4.0: no commercial use"
    info = dataclasses.replace(info, origin=told)
    export(info.create_model(), "timm", start, info)
    small_run(tmp_path, "--model.init_from", start)
    folder = tmp_path / "run" / "export" / "encoder-timm"
    card = (folder / "README.md").read_text()
    for phrase in (
        "license: cc-by-nc-4.0",
        "# run\n",
        "pretrained for 3 steps without labels",
        "Trained on 76 images, and 4 held out.",
        "0.750 of the patches of 32 px were hidden",
        "Training loss: ",
        "Held-out loss: ",
        "![loss curve](loss_curve.png)",
        "![health](health.png)",
        "init_from: start.safetensors",
        f"Origin of the start weights or images: {told}.",
        'timm.create_model("local-dir:DIR", pretrained=True)',
    ):
        assert phrase in card, phrase
    assert str(tmp_path) not in card
    written = load_file(folder / "model.safetensors")
    file = load_file(tmp_path / "run" / "export" / "encoder.safetensors")
    assert all(torch.equal(tensor, file[name]) for name, tensor in written.items())
    assert (folder / "health.png").read_bytes() == RunFolder(tmp_path / "run").health.read_bytes()
