"""Predictions for new images: every file accounted for, and the numbers those of timm."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tiny_run import make_run

import fcmae
from fcmae.__main__ import main
from fcmae.data import EvaluationTransform
from fcmae.errors import MISTAKE, ConfigError, DataError
from fcmae.weights.encoder_info import EncoderInfo
from fcmae.weights.export import export

CLASSES = ("ash", "file", "cedar")
INFO = EncoderInfo(
    model_name="convnextv2_atto",
    in_chans=3,
    stem_stride=4,
    image_size=(32, 48),
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.25),
    crop_pct=0.8,
    classes=CLASSES,
)
NUM_FILES, NUM_BAD = 500, 20


def write_classifier(folder: Path, info: EncoderInfo = INFO) -> torch.nn.Module:
    """Write what fine-tuning leaves in its run folder, and return the model."""
    model = info.create_model(len(CLASSES)).eval()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.05)
    export(model, "timm", folder / "export" / "classifier.safetensors", info)
    return model


def pixels_of(number: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def predict(*arguments: object) -> int:
    return main(["predict", *map(str, arguments), "--workers", "0", "--device", "cpu"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_classifier(folder)
    return folder


@torch.no_grad()
def test_a_folder_of_500_mixed_files_with_20_bad_ones_is_accounted_for(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The probabilities are those of timm, loaded by itself, on the same crops."""
    folder, bad = tmp_path / "images", set(range(7, NUM_FILES, NUM_FILES // NUM_BAD))
    folder.mkdir()
    assert len(bad) == NUM_BAD
    for number in range(NUM_FILES):
        suffix = ("png", "bmp", "tif", "npy")[number % 4]
        path = folder / f"{number:03d}.{suffix}"
        pixels = pixels_of(number, 20 + number % 9, 60 - number % 7)
        if number in bad:
            path.write_bytes(b"no picture")
        elif suffix == "npy":
            np.save(path, pixels)
        else:
            Image.fromarray(pixels[..., 0] if number % 3 == 0 else pixels).save(path)
    (folder / "notes.txt").write_text("about them")
    output = tmp_path / "new" / "out.csv"
    assert predict(run, folder, "--output", output, "--batch_size", 64) == 0
    out = capsys.readouterr().out
    assert f"{output}: 480 of 500 images classified, 20 that cannot be used" in out
    assert out.count("no prediction for ") == NUM_BAD
    rows = rows_of(output)
    assert [Path(row["file"]).name[:3] for row in rows] == [f"{n:03d}" for n in range(NUM_FILES)]
    assert {n for n, row in enumerate(rows) if row["problem"]} == bad
    model = timm.create_model(
        "convnextv2_atto",
        num_classes=3,
        checkpoint_path=str(run / "export" / "classifier.safetensors"),
    ).eval()
    transform = EvaluationTransform((32, 48), mean=INFO.mean, std=INFO.std, crop_pct=0.8)
    for number in (1, 2, 3, 9, 498):
        pixels = pixels_of(number, 20 + number % 9, 60 - number % 7)
        pixels = pixels[..., :1].repeat(3, axis=2) if number in (9, 498) else pixels
        pixels = pixels_of(number, 20 + number % 9, 60 - number % 7) if number == 3 else pixels
        image = transform(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
        expected = model(image[None]).softmax(dim=1)[0]
        found = torch.tensor([float(rows[number][f"p_{name}"]) for name in CLASSES])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        assert rows[number]["class"] == CLASSES[int(expected.argmax())]


def test_the_table_opens_in_pandas(run: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    Image.fromarray(pixels_of(0, 40, 50)).save(tmp_path / 'a, "b".png')
    (tmp_path / "c.png").write_bytes(b"")
    assert predict(run, tmp_path, "--output", tmp_path / "out.csv") == 0
    table = pandas.read_csv(tmp_path / "out.csv")
    assert table.shape == (2, 3 + len(CLASSES))
    assert table["p_ash"].isna().tolist() == [False, True]
    assert table["file"][0] == str(tmp_path / 'a, "b".png')


def test_top_names_the_most_probable_classes_in_a_folder(run: Path, tmp_path: Path) -> None:
    Image.fromarray(pixels_of(0, 40, 50)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    out = tmp_path / "out"
    assert predict(run, tmp_path / "a.png", tmp_path / "b.png", "--output", out, "--top", 2) == 0
    good, bad = rows_of(out / "predictions.csv")
    assert list(good) == [
        *("file", "class_1", "probability_1", "class_2", "probability_2", "problem")
    ]
    found = fcmae.load(run, "cpu").predict(tmp_path / "a.png")
    assert good["class_1"] == found.labels[0]
    assert float(good["probability_1"]) == pytest.approx(found.probabilities.max(), rel=1e-6)
    assert float(good["probability_1"]) >= float(good["probability_2"])
    assert (bad["class_1"], bad["probability_2"]) == ("", "")
    assert "empty" in bad["problem"]


def test_files_arrays_and_pictures_of_pillow_give_the_same(run: Path, tmp_path: Path) -> None:
    model = fcmae.load(run, "cpu")
    arrays = [pixels_of(number, 40 + number, 50) for number in range(3)]
    pictures = [Image.fromarray(pixels) for pixels in arrays]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    of_files = model.predict(paths, batch_size=2)
    assert of_files.files == tuple(map(str, paths))
    for given in (arrays, pictures, [arrays[0], pictures[1], arrays[2]]):
        found = model.predict(given)
        np.testing.assert_allclose(found.probabilities, of_files.probabilities, atol=1e-6)
        assert (found.files, found.labels) == (("0", "1", "2"), of_files.labels)
    one = model.predict(arrays[1])
    np.testing.assert_allclose(one.probabilities, of_files.probabilities[1:2], atol=1e-6)
    stack = model.predict(np.stack([arrays[0], arrays[0][::-1]]))
    assert stack.probabilities.shape == (2, 3)
    assert one.problems == {}
    vectors = model.embed(pictures).vectors
    assert vectors.shape == (3, 320)
    np.testing.assert_allclose(vectors, model.embed(paths).vectors, atol=1e-5)


def test_pictures_that_do_not_fit_are_named_by_their_number(run: Path) -> None:
    model = fcmae.load(run, "cpu")
    found = model.predict([pixels_of(0, 40, 50), pixels_of(0, 40, 50, channels=7)])
    assert np.isnan(found.probabilities[1]).all()
    assert found.labels[1] is None
    assert "7" in found.problems["1"]
    with pytest.raises(TypeError, match="IMAGES: number 1 is a int, expected paths, arrays or p"):
        model.predict([pixels_of(0, 40, 50), 3])
    with pytest.raises(DataError, match="IMAGES: an empty list"):
        model.predict([])


def test_values_of_another_range_than_the_models_are_refused(tmp_path: Path) -> None:
    info = dataclasses.replace(INFO, value_range=(0.0, 4095.0))
    write_classifier(tmp_path / "run", info)
    model = fcmae.load(tmp_path / "run", "cpu")
    deep = np.random.default_rng(0).integers(0, 4096, (40, 50, 3)).astype(np.uint16)
    found = model.predict([deep, pixels_of(0, 40, 50)])
    assert found.problems == {"1": "its values end at 255, and the model was trained on 0 to 4095"}
    assert found.probabilities[0].sum() == pytest.approx(1, abs=1e-6)
    with pytest.raises(DataError, match=r"none of the 1 images can be used.*its values end at 255"):
        model.predict(pixels_of(0, 40, 50))


def test_mistakes_are_one_sentence(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "encoder")
    Image.fromarray(pixels_of(0, 40, 50)).save(tmp_path / "a.png")
    torch.save(INFO.create_model(3).state_dict(), tmp_path / "plain.pth")
    image, csv_file = tmp_path / "a.png", tmp_path / "x.csv"
    for arguments, message in (
        ((tmp_path / "encoder", image), "these weights are an encoder's, which has no classes"),
        ((tmp_path / "plain.pth", image), "plain.pth: does not say how images become its input"),
        ((run, "nowhere"), "IMAGES: 'nowhere' does not exist"),
        ((run, image, "--top", 0), "--top: got 0, expected 1 or more classes"),
        ((run, image, "--topp", 1), "unknown argument '--topp'. Did you mean --top?"),
    ):
        assert predict(*arguments, "--output", csv_file) == MISTAKE
        error = capsys.readouterr().err
        assert message in error
        assert error.count("fcmae: error: ") == 1
        assert "Traceback" not in error
        assert not csv_file.exists()
    (tmp_path / "file").write_text("")
    assert predict(run, image, "--output", tmp_path / "file" / "x.csv") == MISTAKE
    assert "cannot be written" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"`fcmae embed` or embed\(\) gives its features"):
        fcmae.load(tmp_path / "encoder", "cpu").predict(image)
