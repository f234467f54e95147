"""`fcmae embed`: features of a run or a weights file, with the names of their files."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import make_pictures, make_run

from fcmae.__main__ import main
from fcmae.data import EvaluationTransform, decode_image, default_mean_std
from fcmae.errors import MISTAKE
from fcmae.model.autoencoder import FCMAE


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FCMAE]:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, make_run(folder)[1]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_pictures(tmp_path / "images", 2)


def embed(*arguments: object) -> int:
    return main(["embed", *map(str, arguments), "--workers", "0", "--device", "cpu"])


def test_features_stand_beside_their_files_and_labels(
    run: tuple[Path, FCMAE], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, model = run
    (images / "dark" / "broken.png").write_bytes(b"no picture")
    output = tmp_path / "new" / "features.npz"
    assert embed(folder, images, "--output", output) == 0
    assert "broken.png': no picture" in capsys.readouterr().out
    with np.load(output) as arrays:
        content = dict(arrays)
    assert content["features"].shape == (4, 320)
    assert content["features"].dtype == np.float32
    assert [Path(name).name for name in content["files"]] == ["0.png", "1.png"] * 2
    assert [Path(name).name for name in content["skipped_files"]] == ["broken.png"]
    assert content["classes"].tolist() == ["bright", "dark"]
    assert content["labels"].tolist() == [0, 0, 1, 1]
    mean, std = default_mean_std(1)
    transform = EvaluationTransform((64, 96), mean=mean, std=std)
    image = transform(decode_image(content["files"][2], 1))[None]
    with torch.no_grad():
        expected = model.encoder.eval().forward_features(image).mean((2, 3))[0].numpy()
    np.testing.assert_allclose(content["features"][2], expected, rtol=1e-4, atol=1e-5)


def test_exported_weights_give_the_same_features_as_their_run(
    run: tuple[Path, FCMAE], images: Path, tmp_path: Path
) -> None:
    folder, _ = run
    weights = tmp_path / "encoder.safetensors"
    assert main(["export", str(folder), "--output", str(weights)]) == 0
    assert embed(folder, images, "--output", tmp_path / "a") == 0
    assert embed(weights, images, "--output", tmp_path / "b") == 0
    with np.load(tmp_path / "a") as a, np.load(tmp_path / "b") as b:
        np.testing.assert_array_equal(a["features"], b["features"])


def test_weights_of_others_need_their_model_named(
    run: tuple[Path, FCMAE],
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, model = run
    weights = tmp_path / "plain.pth"
    torch.save(model.encoder.state_dict(), weights)
    output = tmp_path / "features.npz"
    assert embed(weights, images, "--output", output) == MISTAKE
    assert "plain.pth: does not say which model its weights belong to; add --model.name" in (
        capsys.readouterr().err
    )
    named = ["--model.name", "convnextv2_atto", "--data.image_size", 64]
    assert embed(weights, images, "--output", output, *named) == MISTAKE
    assert "the weights are for data.in_chans 1" in capsys.readouterr().err
    named += ["--data.in_chans", 1]
    assert embed(weights, images, "--output", output, *named, "--data.image_size", 0) == MISTAKE
    assert "data.image_size: got 0, expected 1 to 16384 px" in capsys.readouterr().err
    assert embed(weights, images, "--output", output, *named) == 0
    with np.load(output) as arrays:
        assert arrays["features"].shape == (4, 320)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "{images}"], "arguments are required: output"),
        (["{run}", "nowhere", "--output", "x.npz"], "IMAGES: 'nowhere' does not exist"),
        (["nowhere", "{images}", "--output", "x.npz"], "nowhere: does not exist"),
        (["{images}", "{images}", "--output", "x.npz"], "has no config.yaml"),
        (["{run}", "{images}", "--output", "{images}"], "cannot be written"),
        (["{run}", "{images}", "--output", "x.npz", "--label", "type"], "data.label: 'type'"),
        (["{run}", "{images}", "--output", "x.npz", "--workers", "-1"], "--workers: got -1"),
        (
            ["{run}", "{images}", "--output", "x.npz", "--model.name", "convnextv2_atto"],
            "says itself what --model.name say; remove them.",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(
    arguments: list[str],
    message: str,
    run: tuple[Path, FCMAE],
    images: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [argument.format(run=run[0], images=images) for argument in arguments]
    assert main(["embed", "--workers", "0", "--device", "cpu", *filled]) == MISTAKE
    error = capsys.readouterr().err
    assert error.startswith("fcmae: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not Path("x.npz").exists()


def test_features_are_written_as_tables_with_a_row_for_every_file(
    run: tuple[Path, FCMAE], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = run
    (images / "dark" / "broken.png").write_bytes(b"no picture")
    assert embed(folder, images, "--output", tmp_path / "f.csv") == 0
    assert embed(folder, images, "--output", tmp_path / "f.npz") == 0
    with (tmp_path / "f.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with np.load(tmp_path / "f.npz") as arrays:
        assert [row["file"] for row in rows[:-1]] == arrays["files"].tolist()
        numbers = [[float(row[f"f{n}"]) for n in range(320)] for row in rows[:-1]]
        np.testing.assert_array_equal(np.array(numbers, np.float32), arrays["features"])
    assert [row["label"] for row in rows] == ["bright", "bright", "dark", "dark", ""]
    assert "no picture" in rows[-1]["problem"]
    assert rows[-1]["f0"] == ""
    output = tmp_path / "x"
    assert embed(folder, images, "--output", output, "--format", "xls") == MISTAKE
    assert "--format: got 'xls', expected one of npz, csv, parquet" in capsys.readouterr().err
    parquet = pytest.importorskip("pyarrow.parquet")
    assert embed(folder, images, "--output", output, "--format", "parquet") == 0
    table = parquet.read_table(output).to_pydict()
    assert table["f3"][:-1] == [pytest.approx(float(row["f3"])) for row in rows[:-1]]
    assert table["f3"][-1] is None
