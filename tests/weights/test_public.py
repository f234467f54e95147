"""Published weights by name: from a cache of the hub's layout, with their licence, or refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hub_cache import publish, published_by_timm
from huggingface_hub import constants
from pictures_on_disk import write_pictures
from tiny_run import make_pictures, make_run

from fcmae.__main__ import main
from fcmae.errors import DONE, MISTAKE, CheckpointError
from fcmae.model.autoencoder import FCMAE
from fcmae.runs.folder import RunFolder
from fcmae.weights import public
from fcmae.weights.files import read_metadata
from fcmae.weights.loading import load_encoder
from fcmae.weights.public import find_public, is_public
from fcmae.weights.sources import (
    licence_notices,
    load_decoder,
    load_described_encoder,
    open_source,
)

pytestmark = pytest.mark.usefixtures("undrawn")

CLASSIFIER = "convnextv2_atto.fcmae_ft_in1k"
ENCODER = "convnextv2_atto.fcmae"
TRANSFORMERS = "facebook/convnextv2-atto-1k-224"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    find_public.cache_clear()
    return folder


def images(channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(0))


def test_names_are_names_unless_such_a_path_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (f"timm/{ENCODER}", "hf-hub:owner/na.me-1@main"):
        assert is_public(name)
    for name in ("timm/a/b", "runs/mine", "a.pth"):
        assert not is_public(name)
    Path("timm").mkdir()
    Path(f"timm/{ENCODER}").touch()
    assert not is_public(f"timm/{ENCODER}")


def test_features_are_those_of_timms_own_loading(cache: Path, tmp_path: Path) -> None:
    published_by_timm(cache, CLASSIFIER, tmp_path, "cc-by-nc-4.0")
    encoder, info = load_described_encoder(f"timm/{CLASSIFIER}")
    theirs = timm.create_model(f"hf-hub:timm/{CLASSIFIER}", pretrained=True, num_classes=0).eval()
    with torch.no_grad():
        assert torch.equal(encoder(images()), theirs(images()))
    assert info.std == (0.2, 0.3, 0.4)
    assert info.image_size == (224, 224)
    assert info.origin == f"timm/{CLASSIFIER}, licence cc-by-nc-4.0"


def test_features_are_those_of_transformers_own_loading(cache: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ConvNextV2Config(
        hidden_sizes=[40, 80, 160, 320], depths=[2, 2, 6, 2], layer_norm_eps=1e-6, num_labels=3
    )
    model = transformers.ConvNextV2ForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]})
    )
    files = {file.name: file for file in (tmp_path / "model").iterdir()}
    publish(cache, TRANSFORMERS, {**files, "README.md": b"---\nlicense: apache-2.0\n---\n"})
    encoder, info = load_described_encoder(f"hf-hub:{TRANSFORMERS}")
    with torch.no_grad():
        theirs = model.convnextv2(images()).pooler_output
        torch.testing.assert_close(encoder(images()), theirs, rtol=1e-5, atol=1e-5)
    assert info.model_name == "convnextv2_atto"
    assert info.mean == (0.1, 0.2, 0.3)
    assert open_source(f"hf-hub:{TRANSFORMERS}").classes == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_a_folder_that_holds_a_repository_says_what_its_name_on_the_hub_would(
    cache: Path, tmp_path: Path
) -> None:
    published_by_timm(cache, ENCODER, tmp_path, "cc-by-nc-4.0")
    (snapshot,) = (cache / f"models--timm--{ENCODER}" / "snapshots").iterdir()
    folder = tmp_path / "copied"
    shutil.copytree(snapshot, folder)
    named, info = load_described_encoder(f"timm/{ENCODER}")
    copied, same = load_described_encoder(folder)
    with torch.no_grad():
        assert torch.equal(copied(images()), named(images()))
    assert same.origin == f"{folder}, licence cc-by-nc-4.0"
    assert dataclasses.replace(same, origin=info.origin) == info
    assert "no commercial use" in find_public(str(folder)).notice
    assert open_source(folder).info == dataclasses.replace(info, origin=same.origin)
    assert not is_public(tmp_path)


def test_a_folder_of_transformers_needs_no_name_of_the_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ConvNextV2Config(
        hidden_sizes=[40, 80, 160, 320], depths=[2, 2, 6, 2], layer_norm_eps=1e-6
    )
    model = transformers.ConvNextV2Model(config).eval()
    model.save_pretrained(tmp_path / "model")
    encoder, info = load_described_encoder(tmp_path / "model")
    with torch.no_grad():
        theirs = model(images()).pooler_output
        torch.testing.assert_close(encoder(images()), theirs, rtol=1e-5, atol=1e-5)
    assert info.model_name == "convnextv2_atto"
    assert info.origin == ""  # it may be one's own
    assert licence_notices(tmp_path / "model") == []


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("cc-by-nc-4.0", "licence cc-by-nc-4.0, no commercial use"),
        ("apache-2.0", "licence apache-2.0, which carries over"),
        (None, "licence cc-by-nc-4.0, no commercial use"),  # as timm knows it
    ],
)
def test_the_licence_is_the_cards_or_timms(
    cache: Path, tmp_path: Path, card: str | None, expected: str
) -> None:
    published_by_timm(cache, ENCODER, tmp_path, card)
    assert expected in find_public(f"timm/{ENCODER}").notice


def test_a_licence_that_nobody_says_is_said_to_be_unknown(cache: Path, tmp_path: Path) -> None:
    published_by_timm(cache, ENCODER, tmp_path)
    (cache / f"models--timm--{ENCODER}").rename(cache / "models--someone--mine")
    assert "not known" in find_public("hf-hub:someone/mine").notice


@pytest.mark.parametrize("name", [f"timm/{ENCODER}", "hf-hub:owner/name"])
def test_what_neither_cache_nor_network_has_is_told_with_what_to_do(cache: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"not in the cache, and HF_HUB_OFFLINE is set.*hf d"):
        find_public(name)


@pytest.fixture
def no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache on a machine without a network whose user has not said so."""
    with socket.socket() as taken:  # nobody listens there once it is closed
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def ask(*given: object, **more: object) -> str:
        raise AssertionError(f"the hub is asked for {given}, which takes half a minute")

    monkeypatch.setattr(public, "hf_hub_download", ask)
    return cache


def test_what_is_cached_is_taken_at_once_where_no_hub_answers(
    no_network: Path, tmp_path: Path
) -> None:
    published_by_timm(no_network, ENCODER, tmp_path)
    (no_network / f"models--timm--{ENCODER}").rename(no_network / "models--someone--mine")
    assert find_public("hf-hub:someone/mine").licence == public.UNKNOWN  # there is no card


def test_what_is_not_cached_is_told_at_once_where_no_hub_answers(no_network: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not in the cache, and the hub is not reached; "):
        find_public(f"timm/{ENCODER}")


def test_weights_that_are_damaged_in_the_cache_are_told(cache: Path, tmp_path: Path) -> None:
    published_by_timm(cache, ENCODER, tmp_path)
    file = find_public(f"timm/{ENCODER}").file
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load_described_encoder(f"timm/{ENCODER}")


def test_another_architecture_is_told(cache: Path, tmp_path: Path) -> None:
    published_by_timm(cache, ENCODER, tmp_path)
    model = timm.create_model("convnextv2_femto", num_classes=0)
    with pytest.raises(CheckpointError, match=rf"timm/{ENCODER}: does not fit the model"):
        load_encoder(model, f"timm/{ENCODER}")


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_a_stem_for_other_channels_is_drawn_or_made(
    cache: Path, tmp_path: Path, channels: int
) -> None:
    published = published_by_timm(cache, ENCODER, tmp_path)
    name = f"timm/{ENCODER}"
    model = timm.create_model("convnextv2_atto", in_chans=channels, num_classes=0)
    drawn = model.stem[0].weight.detach().clone()
    (told,) = load_encoder(model, name)
    assert f"its stem is for 3 channels and is drawn anew for {channels}" in told
    assert torch.equal(model.stem[0].weight, drawn)
    assert torch.equal(model.stages[0].blocks[0].mlp.fc1.weight,
                       published.stages[0].blocks[0].mlp.fc1.weight)  # fmt: skip
    load_encoder(model, name, inflate="mean")
    # A picture whose channels are all alike gives what it gave.
    flat = torch.ones(1, 1, 4, 4)
    expected = published.stem[0](flat.expand(1, 3, 4, 4))
    torch.testing.assert_close(model.stem[0](flat.expand(1, channels, 4, 4)), expected)
    load_encoder(model, name, inflate="tile")
    assert not torch.equal(model.stem[0].weight, drawn)


def test_weights_of_ones_own_for_other_channels_stay_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    model = timm.create_model("convnextv2_atto", in_chans=3, num_classes=0)
    with pytest.raises(CheckpointError, match=r"data.in_chans 1; model.inflate takes others"):
        load_encoder(model, tmp_path / "run")
    assert load_encoder(model, tmp_path / "run", inflate="tile")


def test_a_run_from_published_weights_says_their_licence_and_carries_it_on(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published_by_timm(cache, ENCODER, tmp_path, "cc-by-nc-4.0")
    data = tmp_path / "data"
    write_pictures(data, 12)
    run = tmp_path / "run"
    arguments = [
        *("pretrain", "--run.dir", str(run), "--data.path", str(data), "--data.image_size", "64"),
        *("--data.workers", "0", "--model.name", "convnextv2_atto", "--model.decoder_dim", "8"),
        *("--model.init_from", f"timm/{ENCODER}", "--train.batch_size", "4"),
        *("--log.tensorboard", "false", "--train.steps", "1"),
    ]
    assert main(arguments) == DONE
    told = "".join(capsys.readouterr())
    assert "no commercial use" in told
    assert "was trained with data.std [0.2,0.3,0.4], which this run has not" in told
    origin = f"timm/{ENCODER}, licence cc-by-nc-4.0"
    assert RunFolder(run).read_origin() == origin
    assert read_metadata(run / "export" / "encoder.safetensors")["origin"] == origin
    assert "cc-by-nc-4.0" in (run / "export" / "encoder-timm" / "README.md").read_text()
    labelled = make_pictures(tmp_path / "labelled")
    tuned = tmp_path / "tuned"
    assert main(
        ["finetune", "--run.dir", str(tuned), "--data.path", str(labelled), "--data.workers", "0",
         "--data.image_size", "64", "--model.name", "convnextv2_atto", "--model.weights", str(run),
         "--train.batch_size", "4", "--log.tensorboard", "false", "--train.steps", "1"]
    ) == DONE  # fmt: skip
    assert read_metadata(tuned / "export" / "classifier.safetensors")["origin"] == origin
    assert f"{run}: made of {origin}: no commercial use" in "".join(capsys.readouterr())


def test_what_is_made_of_published_weights_by_a_command_says_their_licence_and_keeps_it(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published_by_timm(cache, ENCODER, tmp_path, "cc-by-nc-4.0")
    name, pictures = f"timm/{ENCODER}", make_pictures(tmp_path / "pictures", per_class=2)
    origin = f"{name}, licence cc-by-nc-4.0"
    commands = [
        ["embed", name, str(pictures), "--output", str(tmp_path / "f.npz"), "--workers", "0"],
        ["convert", name, str(tmp_path / "own.safetensors"), "--to", "timm"],
        ["curate", name, str(pictures), "--output", str(tmp_path / "out"), "--workers", "0"],
    ]
    for words in commands:
        assert main(words) == DONE
        assert capsys.readouterr().out.startswith(f"{name}: licence cc-by-nc-4.0, no commercial")
    with np.load(tmp_path / "f.npz") as file:
        assert str(file["origin"]) == origin
    assert read_metadata(tmp_path / "own.safetensors")["origin"] == origin
    assert "no commercial use" in (tmp_path / "out" / "curation.html").read_text()
    words = ["embed", str(tmp_path / "own.safetensors"), *commands[0][2:]]
    assert main(words) == DONE
    assert f"own.safetensors: made of {origin}: no commercial use" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("", []),
        ("timm/a, licence apache-2.0", ["w: made of timm/a, licence apache-2.0."]),
        ("facebookresearch/x, licence mit", ["w: made of facebookresearch/x, licence mit."]),
        ("x, licence CC-BY-NC 4.0", ["w: made of x, licence CC-BY-NC 4.0: no commercial use, "
                                     "which carries over."]),
    ],
)  # fmt: skip
def test_the_licence_of_what_weights_were_made_of_is_told(origin: str, expected: list[str]) -> None:
    assert licence_notices("w", {"origin": origin}) == expected


def test_a_name_that_is_not_to_be_had_starts_nothing(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    write_pictures(data, 12)
    arguments = [
        *("pretrain", "--run.dir", str(tmp_path / "run"), "--data.path", str(data)),
        *("--model.init_from", f"timm/{ENCODER}", "--train.steps", "1"),
        *("--model.name", "convnextv2_atto", "--train.batch_size", "4", "--data.workers", "0"),
    ]
    assert main(arguments) == MISTAKE
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert ENCODER in told
    assert not (tmp_path / "run").exists()


def test_a_decoder_starts_from_a_run_or_is_refused_whole(tmp_path: Path) -> None:
    _, model = make_run(tmp_path / "run")
    own = {"image_size": (64, 96), "in_chans": 1, "patch_size": 32, "mask_ratio": 0.5}
    fresh = FCMAE("convnextv2_atto", decoder_dim=8, **own)
    load_decoder(fresh, tmp_path / "run")
    for name, tensor in model.decoder.state_dict().items():
        assert torch.equal(fresh.decoder.state_dict()[name], tensor)
    with pytest.raises(CheckpointError, match="its decoder does not fit"):
        load_decoder(FCMAE("convnextv2_atto", decoder_dim=16, **own), tmp_path / "run")
