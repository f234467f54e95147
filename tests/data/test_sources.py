"""The built-in reader, labels, and cutting a set into training and validation."""

import collections
import dataclasses
from pathlib import Path

import pytest
from pictures_on_disk import write_pictures

from fcmae.data import ImageList, find_images, open_images
from fcmae.data.splits import hold_out, open_train_and_validation, parts_sentence, split
from fcmae.errors import ConfigError, DataError
from fcmae.settings.pretrain import HealthConfig

TABLE = """images/1.png  1.0                 mono
images/2.png  0.3333333333333333  poly
images/3.png  0.6666666666666666  poly
"""


def install(folder: Path, table: str | None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a package elpv_dataset that must not be imported first on sys.path."""
    package = folder / "elpv_dataset"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')\n")
    if table is not None:
        (package / "data" / "labels.csv").write_text(table)
    monkeypatch.syspath_prepend(str(folder))
    return package / "data"


def test_elpv_reads_types_and_defects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = install(tmp_path, TABLE, monkeypatch)
    images = open_images("elpv", "type")
    assert images.paths == tuple(str(data / "images" / f"{n}.png") for n in (1, 2, 3))
    assert (images.classes, images.labels) == (("mono", "poly"), (0, 1, 1))
    defects = open_images(["elpv"], "defect")
    assert (defects.classes, defects.labels) == (("functional", "defective"), (1, 0, 1))
    assert open_images("elpv") == images


def test_elpv_refuses_an_unknown_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, TABLE, monkeypatch)
    with pytest.raises(ConfigError, match=r"data\.label: 'colour' .* use type or defect"):
        open_images("elpv", "colour")


def test_elpv_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[quickstart\]'.*CC BY-NC-SA 4\.0"):
        open_images("elpv")


@pytest.mark.parametrize("table", [None, "images/1.png 1.0\n", "a.png x mono\n", "a.png 1 tri\n"])
def test_a_damaged_elpv_package_is_told(
    table: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, table, monkeypatch)
    with pytest.raises(DataError, match=r"labels\.csv cannot be used .* install it again"):
        open_images("elpv")


def test_elpv_cannot_be_mixed_and_labels_choose_nothing_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"elpv cannot be mixed .* \./elpv"):
        open_images(["elpv", str(tmp_path)])
    with pytest.raises(ConfigError, match=r"data\.label: 'type' chooses .* remove data\.label"):
        open_images(str(tmp_path), "type")


def classes(**counts: int) -> ImageList:
    """An ImageList with that many images per class, interleaved."""
    names = tuple(sorted(counts))
    rows = [
        (f"{name}/{number}.png", names.index(name))
        for number in range(max(counts.values()))
        for name in names
        if number < counts[name]
    ]
    return ImageList(tuple(row[0] for row in rows), tuple(row[1] for row in rows), names)


@pytest.mark.parametrize(
    ("validation", "expected"), [(0.25, {0: 5, 1: 2, 2: 1}), (2, {0: 2, 1: 2, 2: 2})]
)
def test_a_split_takes_its_part_of_every_class(
    validation: float | int, expected: dict[int, int]
) -> None:
    images = classes(a=20, b=8, c=3)
    training, held_out = split(images, validation, seed=1)
    assert collections.Counter(held_out.labels or ()) == expected
    assert sorted(training.paths + held_out.paths) == sorted(images.paths)
    assert training.classes == held_out.classes == images.classes
    for part in (training, held_out):
        assert [name[0] for name in part.paths] == ["abc"[label] for label in part.labels or ()]


def test_a_split_repeats_and_depends_on_its_seed() -> None:
    images = classes(a=20, b=8)
    assert split(images, 0.5, seed=1) == split(images, 0.5, seed=1)
    assert split(images, 0.5, seed=1) != split(images, 0.5, seed=2)


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(ConfigError, match="a split needs labels"):
        split(ImageList(("a.png",)), 0.5, seed=1)
    with pytest.raises(ConfigError, match=r"between 0 and 1, not 1\.5"):
        split(classes(a=4, b=4), 1.5, seed=1)
    with pytest.raises(ConfigError, match=r"class 'b' has 1 image, of which 1 cannot"):
        split(classes(a=4, b=1), 0.5, seed=1)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_train_and_val_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.png", "train/b/2.png", "valid/a/3.png", "valid/b/4.png")
    training, held_out = open_train_and_validation(str(tmp_path), None, 0.5, seed=1)
    assert training.paths == (str(tmp_path / "train/a/1.png"), str(tmp_path / "train/b/2.png"))
    assert held_out.labels == (0, 1)


def test_one_folder_of_classes_is_cut(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}/{number}.png" for name in "ab" for number in range(4)))
    training, held_out = open_train_and_validation(str(tmp_path), None, 0.25, seed=1)
    assert (len(training), len(held_out)) == (6, 2)


def test_train_and_val_must_agree_on_the_classes(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.png", "train/b/2.png", "val/a/3.png", "val/c/4.png")
    with pytest.raises(ConfigError, match="same classes; only one of them has b, c"):
        open_train_and_validation(str(tmp_path), None, 0.5, seed=1)
    touch(tmp_path, "train/5.png")
    with pytest.raises(ConfigError, match=r"has 1 image in train/ outside of any class; labels"):
        open_train_and_validation(str(tmp_path), None, 0.5, seed=1)


def tree(folder: Path, **counts: int) -> str:
    """Write so many pictures into each folder; __ stands for a slash."""
    for name, count in counts.items():
        write_pictures(folder / name.replace("__", "/"), count)
    return str(folder)


def test_pretraining_reads_a_set_that_is_cut_in_parts_as_fine_tuning_does(tmp_path: Path) -> None:
    counts = {f"{part}__{name}": 6 for part in ("train", "Val", "test") for name in ("a", "b")}
    images = find_images(tree(tmp_path, **counts, docs=2))
    config = HealthConfig(images=8)
    training, held_out = hold_out(images, config, seed=0)
    assert len(training) == 12
    assert all("/train/" in path for path in training.paths)
    assert len(held_out) == 8
    assert all("/Val/" in path for path in held_out.paths)
    assert training.labels == (0,) * 6 + (1,) * 6
    said = parts_sentence(images, held_out)
    assert said is not None
    assert (
        "12 images of train/ are trained on, 8 of 12 in Val/ are held out, 12 in test/ are left "
        "alone, 2 outside of these are left out"
    ) in said
    nothing = hold_out(images, dataclasses.replace(config, checks=0), seed=0)
    assert (len(nothing[0]), len(nothing[1])) == (12, 0)
    with pytest.raises(ConfigError, match=r"data\.group: 6 groups of .* have images in"):
        hold_out(images, config, seed=0, group=r"picture-(\d+)")


def test_without_a_part_for_validation_images_are_drawn_from_the_part_for_training(
    tmp_path: Path,
) -> None:
    images = find_images(tree(tmp_path, train=100, test=10))
    training, held_out = hold_out(images, HealthConfig(), seed=0)
    assert (len(training), len(held_out)) == (95, 5)
    assert not any("/test/" in path for path in (*training.paths, *held_out.paths))
    whole = find_images([f"{tmp_path}/train", f"{tmp_path}/test"])
    assert parts_sentence(whole, held_out) is None
    assert sum(map(len, hold_out(whole, HealthConfig(), seed=0))) == 110
