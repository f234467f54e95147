"""`fcmae convert`: files in and out, proved to be the same model, or nothing is written."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from authors_weights import (
    assert_same_state,
    dense_encoder,
    narrow,
    sparse_encoder,
    sparse_fcmae,
)
from safetensors.torch import load_file, save_file
from speck import SPECK
from tiny_run import make_run

from fcmae.__main__ import main
from fcmae.convert import convert_state_dict
from fcmae.errors import MISTAKE, BackendUnavailableError, CheckpointError
from fcmae.weights import export, formats, proof
from fcmae.weights.export import convert_file
from fcmae.weights.files import load_state_dict_file, read_metadata
from fcmae.weights.sources import open_source
from sparse.backends import minkowski


@pytest.fixture
def without_minkowski(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make MinkowskiEngine look as if it were not installed."""

    def refuse(dense: object) -> None:
        raise BackendUnavailableError("MinkowskiEngine is not installed.")

    monkeypatch.setattr(minkowski, "MinkowskiConvNeXt", refuse)


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run the command, which must fail as a user's mistake, and return its one sentence."""
    assert main(["convert", *map(str, arguments)]) == MISTAKE
    out, error = capsys.readouterr()
    assert not out
    assert error.startswith("fcmae: error: ")
    assert error.count("\n") == 1
    return error


def saved(folder: Path, state: dict[str, torch.Tensor], name: str = "in.pth") -> Path:
    """Save weights as the authors' training does."""
    path = folder / name
    torch.save({"model": state, "epoch": 3}, path)
    return path


@pytest.mark.usefixtures("without_minkowski")
def test_a_sparse_checkpoint_becomes_a_timm_file_and_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = narrow()
    sparse, timm_file, back = saved(tmp_path, sparse_encoder(model)), "w.safetensors", "back.pth"
    assert main(["convert", str(sparse), str(tmp_path / timm_file), "--to", "timm"]) == 0
    out = capsys.readouterr().out
    assert "in.pth: authors-sparse layout, 66 tensors." in out
    assert "written in the timm layout; converted back it is the same bit for bit" in out
    assert "2 random images of 64 x 96 px; the largest difference of features is" in out
    found = load_file(tmp_path / timm_file)
    expected = {n: t for n, t in model.state_dict().items() if not n.startswith("head.")}
    assert_same_state({n: t for n, t in found.items() if not n.startswith("head.")}, expected)
    arguments = [str(tmp_path / timm_file), str(tmp_path / back), "--to", "authors-sparse"]
    assert main(["convert", *arguments]) == 0
    out = capsys.readouterr().out
    assert "MinkowskiEngine is not installed, so its own layers did not run" in out
    assert_same_state(load_state_dict_file(tmp_path / back), sparse_encoder(model))
    assert sorted(path.name for path in tmp_path.iterdir()) == [back, "in.pth", timm_file]


@pytest.mark.usefixtures("without_minkowski")
def test_decoders_are_compared_or_left_out_and_said(tmp_path: Path) -> None:
    whole = saved(tmp_path, sparse_fcmae(narrow()))
    told = convert_file(whole, tmp_path / "ours.safetensors", to="fcmae")
    assert "the largest difference of features and predictions is" in told[1]
    (_, _, left_out) = convert_file(whole, tmp_path / "encoder.pt", to="authors-dense")
    assert left_out == "Left out, because authors-dense has no place for it: the decoder."


def test_trained_heads_that_are_left_out_are_said(tmp_path: Path) -> None:
    classifier = saved(tmp_path, narrow(num_classes=3).state_dict())
    (*_, told) = convert_file(classifier, tmp_path / "sparse.pth", to="authors-sparse")
    assert told.endswith("for it: the trained norm before the classifier, the classifier.")


@pytest.mark.parametrize(
    "settings", [{"version": 1}, {"patch_size": 2}, {"kernel_sizes": 3}, {"num_classes": 3}]
)
def test_every_structure_is_proved(tmp_path: Path, settings: dict[str, object]) -> None:
    source = saved(tmp_path, narrow(**settings).state_dict())
    to = "authors-dense" if "num_classes" in settings else "authors-sparse"
    (_, told, *_) = convert_file(source, tmp_path / "out.pth", to=to)
    assert "both models ran" in told
    assert ("features and logits" in told) == ("num_classes" in settings)


def test_a_hugging_face_folder_keeps_classes_both_ways(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = narrow(num_classes=3)
    source, folder = saved(tmp_path, model.state_dict()), tmp_path / "hub"
    convert_file(source, folder, to="huggingface")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "cat", "1": "dog", "2": "emu"}
    (folder / "config.json").write_text(json.dumps(config))
    assert open_source(folder).classes == ("cat", "dog", "emu")
    told = convert_file(folder, tmp_path / "w.safetensors", to="timm")
    assert "features and logits" in told[1]
    assert_same_state(load_file(tmp_path / "w.safetensors"), model.state_dict())


def test_both_commands_write_every_format_of_a_run_and_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("transformers")
    run = tmp_path / "run"
    _, model = make_run(run, name=SPECK)
    assert main(["export", str(run)]) == 0
    file = run / "export" / "encoder.safetensors"
    for source in (run, file):
        for name, ending in formats.FILE_NAMES.items():
            if name == formats.SMP or (name == formats.ONNX and source == run):
                continue  # of segmenters only; test_export_onnx.py has that of a run
            path = run / "export" / f"encoder{ending}"
            command = ["export", str(source), "--to", name]
            if source == file:
                if name in ("fcmae", "authors-fcmae"):
                    continue  # no decoder in it
                path = tmp_path / f"out{ending}"
                command = ["convert", str(source), str(path), "--to", name]
            assert main(command) == 0
            assert path.exists()
            if name == formats.ONNX:
                continue
            found = open_source(path)
            assert found.layout == ("timm" if name == formats.TIMM_FOLDER else name)
            again = convert_state_dict(found.state, to="authors-dense")
            assert_same_state(again, convert_state_dict(model.state_dict(), to="authors-dense"))
            if path.suffix != ".pth":
                assert found.metadata["model_name"] == SPECK
    assert "in ONNX Runtime with 1 x 64 x 96, 3 x 32 x 64" in capsys.readouterr().out
    assert "no segmenter; smp.Unet" in complaint(capsys, file, tmp_path / "x", "--to", "smp")
    assert "no decoder" in complaint(capsys, file, tmp_path / "x.pth", "--to", "authors-fcmae")


@pytest.mark.slow
def test_a_classifier_of_others_becomes_onnx(tmp_path: Path) -> None:
    """Nobody says the size of its images: the graph takes 7 x 7 cells."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = narrow(num_classes=3)
    source = saved(tmp_path, convert_state_dict(model.state_dict(), to="authors-dense"))
    (_, told) = convert_file(source, tmp_path / "x.onnx", to="onnx")
    assert "input images [batch, 2, height, width], output logits" in told
    session = onnxruntime.InferenceSession(str(tmp_path / "x.onnx"))
    images = torch.randn(2, 2, 224, 224, generator=torch.Generator().manual_seed(0))
    (found,) = session.run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        expected = model.eval()(images)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)


def test_a_run_folder_stands_for_its_newest_checkpoint(tmp_path: Path) -> None:
    _, model = make_run(tmp_path / "run", name=SPECK)
    convert_file(tmp_path / "run", tmp_path / "whole.pth", to="authors-fcmae")
    found = convert_state_dict(load_state_dict_file(tmp_path / "whole.pth"), to="fcmae")
    assert_same_state(found, dict(model.state_dict()))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_weights_are_written_by_suffix(tmp_path: Path, suffix: str) -> None:
    model = narrow(num_classes=2)
    convert_file(saved(tmp_path, model.state_dict()), tmp_path / f"o{suffix}", to="authors-dense")
    found = load_state_dict_file(tmp_path / f"o{suffix}")
    assert_same_state(found, convert_state_dict(model.state_dict(), to="authors-dense"))
    if suffix != ".safetensors":  # what the authors' loader expects
        content = torch.load(tmp_path / f"o{suffix}", weights_only=True)
        assert content.keys() == {"model", "metadata"}


def test_the_licence_note_of_a_known_origin_travels(tmp_path: Path) -> None:
    source = saved(tmp_path, dense_encoder(narrow()))
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    convert_file(source, first, to="timm", origin="https://github.com/facebookresearch/ConvNeXt-V2")
    note = read_metadata(first)["origin"]
    assert "CC-BY-NC 4.0: no commercial use" in note
    convert_file(first, second, to="authors-dense", origin="our own scans, 2026")
    assert read_metadata(second)["origin"] == f"{note}; our own scans, 2026"
    convert_file(source, tmp_path / "c.safetensors", to="timm")
    assert "origin" not in read_metadata(tmp_path / "c.safetensors")


def test_metadata_of_an_export_are_kept(tmp_path: Path) -> None:
    texts = {"fcmae_version": "1", "model_name": "convnextv2_atto", "mean": "[0.5]"}
    save_file(narrow().state_dict(), tmp_path / "in.safetensors", metadata=texts)
    convert_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors", to="authors-dense")
    found = read_metadata(tmp_path / "out.safetensors")
    assert found["model_name"] == "convnextv2_atto"
    assert found["mean"] == [0.5]
    assert found["layout"] == "authors-dense"


@pytest.mark.usefixtures("without_minkowski")
def test_a_converter_that_forgets_to_turn_kernels_is_caught_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(tensor: torch.Tensor, layout: formats.Layout, shape: formats.Shape) -> torch.Tensor:
        if layout is formats.Layout.KERNEL:
            return restore(tensor, layout, shape).transpose(2, 3).contiguous()
        return restore(tensor, layout, shape)

    restore = formats.restore
    monkeypatch.setattr("fcmae.weights.conversion.restore", forget)
    source, target = saved(tmp_path, sparse_encoder(narrow())), tmp_path / "out.pth"
    target.write_text("an older file")
    with pytest.raises(
        CheckpointError, match=r"features of the timm model differ .* not.* written"
    ):
        convert_file(source, target, to="timm")
    assert target.read_text() == "an older file"
    assert len(list(tmp_path.iterdir())) == 2


def test_values_that_change_on_the_way_are_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def round_off(weights: object, to: str) -> dict[str, torch.Tensor]:
        state = convert_state_dict(narrow().state_dict(), to=to)
        return state | {"norm.bias": state["norm.bias"] + 1e-7}

    monkeypatch.setattr(export, "write_weights", round_off)
    with pytest.raises(CheckpointError, match=r"head.norm.bias differ after converting back"):
        convert_file(saved(tmp_path, narrow().state_dict()), tmp_path / "o.pt", to="authors-dense")
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]


def test_the_second_reading_of_the_authors_names_sees_swapped_weights() -> None:
    """The proof itself must be able to fail: it does for every pair of equal shape."""
    model = narrow(num_classes=2)
    before = model.state_dict()
    after = convert_state_dict(before, to="authors-dense")
    assert "largest difference" in proof.compare_models(before, "timm", after, "authors-dense")
    for one, other in (
        ("stages.1.0.grn.gamma", "stages.1.0.grn.beta"),
        ("stages.1.0.dwconv.bias", "stages.1.0.pwconv2.bias"),
        ("stages.1.0.norm.weight", "stages.1.1.norm.weight"),
    ):
        swapped = after | {one: after[other], other: after[one]}
        with pytest.raises(CheckpointError, match="features of the authors-dense model differ"):
            proof.compare_models(before, "timm", swapped, "authors-dense")
    swapped = after | {"norm.weight": after["norm.bias"], "norm.bias": after["norm.weight"]}
    with pytest.raises(CheckpointError, match="logits of the authors-dense model differ"):
        proof.compare_models(before, "timm", swapped, "authors-dense")


class Harmful:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_is_refused_and_does_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trap, harmful = tmp_path / "trap", {"model": Harmful(tmp_path / "trap")}
    torch.save(harmful, tmp_path / "zip.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(harmful, protocol=2))
    (tmp_path / "new.pth").write_bytes(pickle.dumps(harmful))  # torch reads no such protocol
    for name in ("zip.pth", "old.pth", "new.pth"):
        error = complaint(capsys, tmp_path / name, tmp_path / "out.pth", "--to", "timm")
        reason = (
            "not a weights file" if name == "new.pth" else "reading it would run code (posix.mk"
        )
        assert reason in error
    assert not trap.exists()
    assert not (tmp_path / "out.pth").exists()
    pickle.loads((tmp_path / "new.pth").read_bytes())
    assert trap.exists(), "the pickle of this test does no harm, so nothing was tested"


def test_bad_files_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = saved(tmp_path, narrow().state_dict())
    save_file(narrow().state_dict(), tmp_path / "good.safetensors")
    contents = {
        "empty.pth": (b"", "the file is empty"),
        "text.pth": (b"hello, world\n", "not a weights file"),
        "cut.pth": (good.read_bytes()[:2000], "damaged, truncated or not a weights file"),
        "cut.safetensors": (
            (tmp_path / "good.safetensors").read_bytes()[:-50],
            "not a complete safetensors file",
        ),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        out = tmp_path / "out.pth"
        assert message in complaint(capsys, tmp_path / name, out, "--to", "timm")
        assert not out.exists()
    out = tmp_path / "out.pth"
    assert "No such file" in complaint(capsys, tmp_path / "none.pth", out, "--to", "timm")
    empty = tmp_path / "folder"
    empty.mkdir()
    error = complaint(capsys, empty, out, "--to", "timm")
    assert "holds neither model.safetensors nor a checkpoint" in error


def test_bad_arguments_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = saved(tmp_path, narrow().state_dict())
    out = tmp_path / "out.pth"
    assert "--to: got 'tim', expected one of" in complaint(capsys, good, out, "--to", "tim")
    error = complaint(capsys, good, out, "--to", "timm", "--from", "x")
    assert "--from: got 'x', expected one of" in error
    error = complaint(capsys, good, out, "--to", "timm", "--from", "authors-sparse")
    assert "has the names of the timm layout, not of --from authors-sparse" in error
    error = complaint(capsys, good, tmp_path / "out.txt", "--to", "timm")
    assert "does not say how to write it; expected a name that ends in .safetensors" in error
    error = complaint(capsys, good, good / "out.pth", "--to", "timm")
    assert "cannot be written" in error
    assert "convert" in complaint(capsys, good, out)


def test_an_incomplete_file_is_named_with_its_entries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = sparse_encoder(narrow())
    del state["stages.2.0.dwconv.bias"]
    error = complaint(capsys, saved(tmp_path, state), tmp_path / "out.pth", "--to", "timm")
    assert "in.pth: not a complete authors-sparse layout (1 missing: stages.2.0.dwconv" in error


def test_minkowski_engines_own_layers_are_asked_when_it_is_installed(tmp_path: Path) -> None:
    import minkowski_engine

    minkowski_engine.need()
    source = saved(tmp_path, narrow().state_dict())
    (_, told, *_) = convert_file(source, tmp_path / "sparse.pth", to="authors-sparse")
    assert "MinkowskiEngine's own layers on masked images differ by" in told
    whole = saved(tmp_path, sparse_fcmae(narrow()))
    (_, told, *_) = convert_file(whole, tmp_path / "whole.pth", to="authors-fcmae")
    assert "MinkowskiEngine's own layers on masked images differ by" in told
