"""One reading of labelled trees: classes, parts of a set, and the true reason for no labels."""

from pathlib import Path

import numpy as np
import pytest

from fcmae.data import ImageList, find_images
from fcmae.data.splits import check_groups, open_train_and_validation, split, split_unlabelled
from fcmae.errors import ConfigError


def make(folder: Path, *names: str) -> ImageList:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return find_images(str(folder))


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("validation", ["val", "Val", "Validation", "valid"])
def test_parts_are_read_in_any_case_and_their_folders_are_the_classes(
    train: str, validation: str, tmp_path: Path
) -> None:
    names = [f"{part}/{name}/1.png" for part in (train, validation) for name in ("cat", "dog")]
    images = make(tmp_path, *names, "docs/scheme.png")
    assert images.classes == ("cat", "dog")
    assert images.parts == {"train": train, "validation": validation}
    labels = {
        str(Path(path).relative_to(tmp_path)): label
        for path, label in zip(images.paths, images.labels or (), strict=True)
    }
    assert labels == {name: int("dog" in name) - ("docs" in name) for name in labels}
    left, right = open_train_and_validation(str(tmp_path), None, 0.5, seed=0)
    assert [Path(path).parts[-3] for path in (*left.paths, *right.paths)] == [
        *([train] * 2),
        *([validation] * 2),
    ]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["1.png", "2.png"], "has its images directly in it, none in a folder per class"),
        (["cat/1.png"], "has all its images in one folder, 'cat'; two classes or more"),
        (
            ["cat/1.png", "dog/2.png", "3.png"],
            r"has 1 image beside its 2 folders \(the first is '3.png'\).*data\.exclude",
        ),
        (
            ["train/a/1.png", "train/b/1.png", "train/c/1.png", "val/a/1.png", "val/b/1.png"],
            "train/ and val/ must hold the same classes; only one of them has c",
        ),
        (["Train/1.png", "Val/2.png", "docs/3.png"], "has 1 image in Train/ outside of any class"),
        (["train/a/1.png", "val/a/1.png"], "has one class alone, 'a', in train/"),
        (["train/a/1.png", "val/a/1.png", "valid/a/1.png"], r"several folders for one part.*valid"),
    ],
)
def test_the_reason_for_no_labels_is_the_true_one(
    names: list[str], reason: str, tmp_path: Path
) -> None:
    images = make(tmp_path, *names)
    assert images.labels is None
    with pytest.raises(ConfigError, match=f"data.path: .*{reason}"):
        open_train_and_validation(str(tmp_path), None, 0.5, seed=0)


def test_train_and_test_without_val_say_what_to_name(tmp_path: Path) -> None:
    images = make(tmp_path, *(f"{part}/{c}/1.png" for part in ("train", "test") for c in "ab"))
    assert images.labels == (0, 1, 0, 1)
    with pytest.raises(
        ConfigError,
        match=r"cut in train/ and test/, and none .* for validation .*--data\.val_path",
    ):
        open_train_and_validation(str(tmp_path), None, 0.5, seed=0)


def test_a_test_folder_without_classes_has_no_labels_and_the_rest_does(tmp_path: Path) -> None:
    names = [f"{part}/{name}/1.png" for part in ("train", "val") for name in "ab"]
    images = make(tmp_path, *names, "test/9.png")
    assert images.part("test").labels == (-1,)
    assert images.part("train").labels == (0, 1)


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    images = make(tmp_path, "cat/1.png", "dog/1.png", "test/1.png")
    assert images.classes == ("cat", "dog", "test")
    assert images.parts == {}


def test_a_table_gives_labels(tmp_path: Path) -> None:
    make(tmp_path, "x/1.png", "x/2.png", "3.png", "4.png")
    table = tmp_path / "labels.csv"
    table.write_text("\ufefflabel,size,path\n10,5,x/2.png\n9,4,x/1.png\n,1,3.png\n9,2,gone.png\n")
    images = find_images(str(table))
    assert images.classes == ("9", "10")
    assert images.labels == (1, 0, -1)
    assert images.paths == tuple(str(tmp_path / name) for name in ("x/2.png", "x/1.png", "3.png"))
    assert images.problems == ((str(tmp_path / "gone.png"), f"does not exist (line 5 of {table})"),)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("file,class\n1.png,a\n", "begins with 'file,class', expected .* path,label"),
        ("path,label\n1.png\n", "has 1 fields in line 2, expected 2"),
        ("path,label\n1.png,a\n1.png,b\n", "gives '1.png' two labels, 'a' and 'b'"),
    ],
)
def test_a_table_that_cannot_be_read_is_told(text: str, reason: str, tmp_path: Path) -> None:
    make(tmp_path, "1.png")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ConfigError, match=rf"labels\.csv' {reason}"):
        find_images(str(tmp_path / "labels.csv"))


def grouped(num_groups: int, per_group: int) -> ImageList:
    """Images of patients; each patient has images of both classes."""
    rows = [
        (f"/d/{'ab'[i % 2]}/patient{group:02d}-{i}.png", i % 2)
        for group in range(num_groups)
        for i in range(per_group)
    ]
    return ImageList([path for path, _ in rows], [label for _, label in rows], ("a", "b"))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_no_group_is_on_both_sides_and_the_share_is_nearly_met(seed: int, share: float) -> None:
    images = grouped(20, 6)
    train, held_out = split(images, share, seed, r"(patient\d+)")
    sides = [{path.split("/")[-1][:9] for path in side.paths} for side in (train, held_out)]
    assert not sides[0] & sides[1]
    assert len(train) + len(held_out) == len(images)
    assert abs(len(held_out) - share * len(images)) <= 6
    assert set(held_out.labels or ()) == set(train.labels or ()) == {0, 1}
    check_groups(train, held_out, r"(patient\d+)")
    others = split_unlabelled(images, share, seed, group=r"(patient\d+)")
    check_groups(*others, r"(patient\d+)")


def test_images_of_one_group_on_both_sides_are_told() -> None:
    images = grouped(4, 4)
    train, held_out = images.select(np.arange(0, 10)), images.select(np.arange(10, 16))
    with pytest.raises(ConfigError, match=r"data\.group: 1 groups of .* in training and in valid"):
        check_groups(train, held_out, r"(patient\d+)")


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "is no regular expression"),
        ("slide", "matches no path, such as '/d/a/patient00-0.png'"),
        ("/d/", "puts all 16 images into one group, '/d/'"),
    ],
)
def test_patterns_that_part_nothing_are_told(pattern: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"data.group: .* {reason}"):
        split(grouped(4, 4), 0.5, 0, pattern)
