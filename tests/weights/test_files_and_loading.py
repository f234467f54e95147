"""Weights files are read without running code, and fit a model entirely or not at all."""

import argparse
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.models.convnext import ConvNeXt
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from fcmae.convert import convert_state_dict
from fcmae.errors import CheckpointError
from fcmae.runs.checkpoints import CheckpointStore
from fcmae.weights.files import load_state_dict_file, read_metadata
from fcmae.weights.loading import load_classifier, load_encoder, weights_file


def tiny(seed: int = 0, num_classes: int = 3, in_chans: int = 2, width: int = 4) -> ConvNeXt:
    """A ConvNeXt V2 of a few thousand parameters, all of them random."""
    model = ConvNeXt(
        in_chans=in_chans,
        num_classes=num_classes,
        depths=(1, 2, 1, 1),
        dims=(width, 6, 8, 10),
        use_grn=True,
        ls_init_value=None,
    )
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    return model


def in_authors_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's entries to those of the released dense models, written from their layout."""
    renamed = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "stem":
            new = ["downsample_layers", "0", *parts[1:]]
        elif "downsample" in parts:
            new = ["downsample_layers", parts[1], *parts[3:]]
        elif parts[0] == "head":
            new = ["norm" if parts[1] == "norm" else "head", parts[2]]
        else:
            inner = {"conv_dw": "dwconv", "fc1": "pwconv1", "fc2": "pwconv2"}
            rest = [inner.get(part, part) for part in parts[4:] if part != "mlp"]
            if rest[0] == "grn":
                rest[1] = {"weight": "gamma", "bias": "beta"}[rest[1]]
                tensor = tensor.view(1, 1, 1, -1)
            new = ["stages", parts[1], parts[3], *rest]
        renamed[".".join(new)] = tensor
    return renamed


def assert_same_encoder(model: ConvNeXt, other: ConvNeXt) -> None:
    expected = other.state_dict()
    for name, tensor in model.state_dict().items():
        if not name.startswith("head."):
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors", ".weights"])
def test_every_kind_of_file_gives_the_same_tensors(tmp_path: Path, suffix: str) -> None:
    state = tiny().state_dict()
    path = tmp_path / f"w{suffix}"
    if suffix in (".safetensors", ".weights"):  # the content decides, not the name
        save_file(state, path)
    else:
        torch.save(state, path)
    found = load_state_dict_file(path)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_ema", "state_dict_ema"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.module.", "module._orig_mod.", "module.module."]
)
def test_wrappers_and_prefixes_are_taken_off(tmp_path: Path, wrapper: str, prefix: str) -> None:
    state = tiny().state_dict()
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    content = {wrapper: wrapped, "epoch": 3, "args": argparse.Namespace(lr=1.0)}
    torch.save(content, tmp_path / "w.pth")
    assert load_state_dict_file(tmp_path / "w.pth").keys() == state.keys()


def test_wrappers_within_wrappers_are_taken_off(tmp_path: Path) -> None:
    content = {"model": {"state_dict": {"module.a": torch.ones(2)}, "rank": 0}, "epoch": 3}
    torch.save(content, tmp_path / "w.pth")
    assert load_state_dict_file(tmp_path / "w.pth").keys() == {"a"}


@pytest.mark.parametrize("is_wrapped", [True, False])
@pytest.mark.parametrize("numpy_name", [b"numpy._core", b"numpy.core"])
def test_numbers_beside_the_weights_are_left_out(
    tmp_path: Path, is_wrapped: bool, numpy_name: bytes
) -> None:
    """Training scripts keep the best accuracy there, as numpy gave it; averages count updates."""
    numbers = {"best": np.float64(81.5), "seen": np.int32(7), "done": np.bool_(True), "lr": 0.1}
    weights = {"module.a": torch.ones(2), "n_averaged": torch.tensor(5)}
    content = {**numbers, "model": weights} if is_wrapped else {**numbers, **weights}
    torch.save(content, tmp_path / "new.pth")
    with (
        zipfile.ZipFile(tmp_path / "new.pth") as old,
        zipfile.ZipFile(tmp_path / "w.pth", "w") as new,
    ):
        for item in old.infolist():
            data = old.read(item)
            if item.filename.endswith(".pkl"):
                data = data.replace(b"numpy._core", numpy_name)
            new.writestr(item.filename, data)
    found = load_state_dict_file(tmp_path / "w.pth")
    assert found.keys() == {"a"}
    assert torch.equal(found["a"], torch.ones(2))


def test_an_average_of_torch_loads_into_the_model(tmp_path: Path) -> None:
    source, model = tiny(seed=1), tiny(seed=2)
    torch.save(AveragedModel(source).state_dict(), tmp_path / "w.pth")
    load_classifier(model, tmp_path / "w.pth")
    assert_same_encoder(model, source)


def test_averaged_weights_win_over_plain_ones(tmp_path: Path) -> None:
    content = {"model": {"a": torch.zeros(2)}, "model_ema": {"a": torch.ones(2)}}
    torch.save(content, tmp_path / "w.pth")
    assert torch.equal(load_state_dict_file(tmp_path / "w.pth")["a"], torch.ones(2))


class Malicious:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("is_zip", [True, False])
def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path, is_zip: bool) -> None:
    witness, path = tmp_path / "witness", tmp_path / "w.pth"
    content = {"model": {"a": torch.zeros(2)}, "x": Malicious(witness)}
    if is_zip:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(Malicious(witness), protocol=2))
    with pytest.raises(CheckpointError, match=r"w.pth: refused, because reading it would run code"):
        load_state_dict_file(path)
    assert not witness.exists()


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (pickle.dumps({"a": 1}, protocol=4), "w.pth", r"w.pth: .*not a weights file"),
        (b"", "w.pth", r"w.pth: the file is empty"),
        (b"", "w.safetensors", r"w.safetensors: the file is empty"),
        (b"not weights at all", "w.pth", r"w.pth: .*not a weights file"),
        (b"\x80\x02}q\x00.", "w.pth", r"w.pth: .*not a weights file"),
        (b"not weights at all", "w.safetensors", r"not a complete safetensors file"),
        (b"GIF89a" + bytes(64), "w.bin", r"w.bin: .*not a weights file"),
    ],
)
def test_what_is_no_weights_file_is_said(
    tmp_path: Path, content: bytes, name: str, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_state_dict_file(tmp_path / name)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_files_are_errors(tmp_path: Path, name: str, share: float) -> None:
    state = tiny().state_dict()
    path = tmp_path / name
    save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"truncated|not a complete safetensors file"):
        load_state_dict_file(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"holds no named tensors"),
        ([torch.zeros(2)], r"holds no named tensors"),
        ({"model": {"a": 3}}, r"entry 'a' is a int, not a tensor"),
        ({1: torch.zeros(2)}, r"entry 1 is a Tensor, not a tensor"),
        ({"a": torch.tensor([1.0, float("nan")]), "b": torch.zeros(1)}, r"infinite values in a;"),
    ],
)
def test_content_without_usable_tensors_is_said(
    tmp_path: Path, content: object, message: str
) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=message):
        load_state_dict_file(tmp_path / "w.pth")


def test_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none.pth: cannot be read \(No such file"):
        load_state_dict_file(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match=r"none.pth: does not exist; name a weights file"):
        load_encoder(tiny(), tmp_path / "none.pth")


def test_metadata_is_decoded_and_other_files_have_none(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "w.st", {"name": "x y", "mean": "[0.5, 0.25]"})
    assert read_metadata(tmp_path / "w.st") == {"name": "x y", "mean": [0.5, 0.25]}
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pth")
    assert read_metadata(tmp_path / "w.pth") == {}


def test_authors_dense_names_give_the_same_model(tmp_path: Path) -> None:
    source, model = tiny(seed=1), tiny(seed=2)
    torch.save({"model": in_authors_names(source.state_dict())}, tmp_path / "w.pt")
    assert load_encoder(model, tmp_path / "w.pt") == []
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


def test_released_encoder_without_head_leaves_the_head_alone(tmp_path: Path) -> None:
    source, model = tiny(seed=1), tiny(seed=2)
    before = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    state = {n: t for n, t in source.state_dict().items() if not n.startswith("head.")}
    torch.save(in_authors_names(state), tmp_path / "w.pt")
    load_encoder(model, tmp_path / "w.pt")
    assert_same_encoder(model, source)
    for name, tensor in model.head.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_sparse_layout_is_converted_and_what_it_lacks_is_listed(tmp_path: Path) -> None:
    source, model = tiny(seed=1, num_classes=0), tiny(seed=2)
    sparse = convert_state_dict(source.state_dict(), to="authors-sparse")
    torch.save({"model": sparse}, tmp_path / "w.pth")
    load_encoder(model, tmp_path / "w.pth")
    assert_same_encoder(model, source)
    del sparse["stages.1.1.dwconv.kernel"]
    torch.save(sparse, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w.pth: .*1 missing: stages.1.1.dwconv.kernel\)"):
        load_encoder(model, tmp_path / "w.pth")


@pytest.mark.parametrize("num_classes", [0, 3])
def test_classifier_for_other_classes_is_left_out_and_said(
    tmp_path: Path, num_classes: int
) -> None:
    source, model = tiny(seed=1, num_classes=7), tiny(seed=2, num_classes=num_classes)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    (told,) = load_encoder(model, tmp_path / "w.safetensors")
    wanted = "3 are needed" if num_classes else "none is needed"
    assert told.endswith(f"its classifier of 7 classes is left out: {wanted}.")
    assert_same_encoder(model, source)


def test_classifier_for_as_many_classes_is_taken(tmp_path: Path) -> None:
    source, model = tiny(seed=1), tiny(seed=2)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    assert load_encoder(model, tmp_path / "w.safetensors") == []
    assert torch.equal(model.head.fc.weight, source.head.fc.weight)


def test_every_entry_that_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    model = tiny(seed=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = tiny(seed=1).state_dict()
    missing = [name for name in state if name.startswith("stages.1.blocks.1.")]
    for name in missing:
        del state[name]
    state["stages.9.extra"] = torch.zeros(1)
    state["stages.2.blocks.0.norm.weight"] = torch.zeros(5)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as caught:
        load_encoder(model, tmp_path / "w.pth")
    message = str(caught.value)
    assert all(name in message for name in missing)
    assert f"{len(missing)} missing" in message
    assert "1 unexpected: stages.9.extra" in message
    assert "stages.2.blocks.0.norm.weight ([5] there, [8] here)" in message
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_other_channel_count_is_named(tmp_path: Path) -> None:
    save_file(tiny(in_chans=5).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"the weights are for data.in_chans 5"):
        load_encoder(tiny(), tmp_path / "w.safetensors")


def test_other_width_in_authors_names_is_an_error(tmp_path: Path) -> None:
    torch.save(in_authors_names(tiny(width=12).state_dict()), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w.pth: .*model.name"):
        load_encoder(tiny(), tmp_path / "w.pth")


def test_loading_a_classifier_needs_the_classifier(tmp_path: Path) -> None:
    source, model = tiny(seed=1), tiny(seed=2)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_classifier(model, tmp_path / "w.safetensors")
    assert torch.equal(model.head.fc.bias, source.head.fc.bias)
    save_file(tiny(num_classes=0).state_dict(), tmp_path / "e.safetensors")
    with pytest.raises(CheckpointError, match=r"2 missing: head.fc.weight, head.fc.bias"):
        load_classifier(model, tmp_path / "e.safetensors")


def test_run_folder_means_its_export_else_its_newest_checkpoint(tmp_path: Path) -> None:
    trained = tiny(seed=5, num_classes=0)
    state = {f"encoder.{name}": tensor for name, tensor in trained.state_dict().items()}
    state["decoder.pred.weight"] = torch.zeros(2)
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(4, {"model": state, "step": 4})
    assert weights_file(tmp_path) is None
    model = tiny(seed=2)
    load_encoder(model, tmp_path)
    assert_same_encoder(model, trained)

    exported = tiny(seed=6, num_classes=0)
    (tmp_path / "export").mkdir()
    save_file(exported.state_dict(), tmp_path / "export" / "encoder.safetensors")
    load_encoder(model, tmp_path)
    assert_same_encoder(model, exported)


def test_folder_without_weights_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds neither export/encoder.safetensors nor"):
        load_encoder(tiny(), tmp_path)
