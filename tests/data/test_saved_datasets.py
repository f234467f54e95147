"""Data sets that Hugging Face's `datasets` saved on disk: rows are images with labels."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fcmae.data import (
    Reading,
    UndecodableImageError,
    decode,
    find_images,
    open_train_and_validation,
)
from fcmae.errors import ConfigError

datasets = pytest.importorskip("datasets")

RGB = Reading(in_chans=3)


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """No bars, and caches nowhere but in the folders of the tests."""
    datasets.disable_progress_bars()
    return None


def picture(number: int) -> Image.Image:
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (12, 15, 3), dtype=np.uint8))


def labelled(count: int, first: int = 0) -> Any:
    """Rows of pictures, classes b, a, b, a, ... and a column of texts."""
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["b", "a"]),
        }
    )
    rows = {
        "text": ["words"] * count,
        "image": [picture(first + number) for number in range(count)],
        "label": [number % 2 for number in range(count)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def pixels(number: int) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture(number)).copy()).permute(2, 0, 1)


def test_rows_are_images_with_the_names_of_their_classes(tmp_path: Path) -> None:
    labelled(7).save_to_disk(tmp_path / "set")
    images = find_images(str(tmp_path / "set"))
    assert images.paths == tuple(f"{tmp_path}/set::{number}" for number in range(7))
    assert images.classes == ("a", "b")
    assert images.labels == (1, 0, 1, 0, 1, 0, 1)
    assert images.accounting is not None
    assert (images.accounting.num_files, images.accounting.in_stacks) == (1, 7)
    for number in (6, 0, 3):
        assert torch.equal(decode(images.paths[number], RGB).image, pixels(number))
    with pytest.raises(UndecodableImageError, match=r"holds no image '7': name one of its 7 by"):
        decode(f"{tmp_path}/set::7", RGB)


def test_splits_are_parts_of_the_set(tmp_path: Path) -> None:
    splits = {"test": labelled(2, 20), "train": labelled(8), "validation": labelled(4, 10)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "set")
    path = str(tmp_path / "set")
    images = find_images(path)
    assert len(images) == 14
    train, validation = open_train_and_validation(path, None, 0.5, seed=0)
    assert train.paths == tuple(f"{path}::train::{number}" for number in range(8))
    assert validation.paths == tuple(f"{path}::validation::{number}" for number in range(4))
    assert validation.labels == (1, 0, 1, 0)
    assert torch.equal(decode(validation.paths[3], RGB).image, pixels(13))
    alone = find_images(f"{path}/train")
    assert alone.labels == train.labels


@pytest.mark.parametrize("kind", ["bytes", "paths", "arrays", "lists"])
def test_images_are_bytes_paths_or_arrays(kind: str, tmp_path: Path) -> None:
    expected = [np.asarray(picture(number)) for number in range(3)]
    column: list[Any]
    feature: Any
    if kind == "bytes":
        column, feature = [], datasets.Value("binary")
        for number in range(3):
            buffer = io.BytesIO()
            picture(number).save(buffer, "PNG")
            column.append(buffer.getvalue())
    elif kind == "paths":
        column, feature = [], datasets.Image()
        for number in range(3):
            picture(number).save(tmp_path / f"{number}.png")
            column.append(str(tmp_path / f"{number}.png"))
    elif kind == "arrays":
        feature = datasets.Array3D((12, 15, 3), "uint8")
        column = expected
    else:
        expected = [array.astype(np.uint16)[..., 0] * 200 for array in expected]
        feature = datasets.Sequence(datasets.Sequence(datasets.Value("uint16")))
        column = [array.tolist() for array in expected]
    features = datasets.Features({"image": feature})
    datasets.Dataset.from_dict({"image": column}, features=features).save_to_disk(tmp_path / "set")
    images = find_images(str(tmp_path / "set"))
    assert images.labels is None
    assert images.why_unlabelled == "has no column of class labels"
    white = 65535 if kind == "lists" else 255
    for path, array in zip(images.paths, expected, strict=True):
        image = decode(path, Reading(in_chans=3)).image
        scaled = image.float() if image.is_floating_point() else image.float() / 255
        wanted = torch.from_numpy(np.atleast_3d(array) / white).permute(2, 0, 1).float()
        torch.testing.assert_close(scaled, wanted.expand(3, -1, -1))


def test_a_set_without_images_is_told_with_its_columns(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"], "label": [3]}).save_to_disk(tmp_path / "set")
    with pytest.raises(ConfigError, match=r"set' has the columns text, label, and none of images"):
        find_images(str(tmp_path / "set"))


def test_a_saved_set_below_a_folder_is_one_file_of_it(tmp_path: Path) -> None:
    labelled(5).save_to_disk(tmp_path / "all" / "set")
    picture(9).save(tmp_path / "all" / "z.png")
    images = find_images(str(tmp_path / "all"))
    assert len(images) == 6
    assert images.accounting is not None
    assert images.accounting.num_files == 2
