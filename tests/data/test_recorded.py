"""What a run records of its images finds them again, in the order and with the labels of then."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from pictures_on_disk import write_pictures

from fcmae.data import open_images
from fcmae.data.recorded import fix_images, recall
from fcmae.errors import CheckpointError, DataError, DiskError


def record(folder: Path, data: object) -> Path:
    file = folder / "images.jsonl"
    fix_images(file, open_images(data), is_continued=False, report=print)  # type: ignore[arg-type]
    return file


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a", "b")):
        write_pictures(tmp_path / "data" / name, 3, seed=seed)
    return tmp_path / "data"


def names(paths: object, root: Path) -> list[str]:
    return [os.path.relpath(path, root) for path in paths]  # type: ignore[attr-defined]


def test_a_new_class_moves_no_label(data: Path, tmp_path: Path) -> None:
    file = record(tmp_path, str(data))
    write_pictures(data / "0-first", 2)
    recalled, told = recall(file, open_images(str(data)))
    assert recalled.classes == ("a", "b")
    assert recalled.labels == (0, 0, 0, 1, 1, 1)
    assert told == "2 new images wait for another run."


@pytest.mark.parametrize("kind", ["folders", "list", "table", "shards", "pattern"])
def test_images_are_found_again_after_a_move_however_they_were_named(
    kind: str, data: Path, tmp_path: Path
) -> None:
    place = tmp_path / "set"
    shutil.copytree(data, place / "data")
    lines = [f"data/{name}/picture-00{n}.png" for name in "ab" for n in range(3)]
    (place / "all.txt").write_text("\n".join(lines))
    rows = [f"{line},{line.split('/')[1]}" for line in lines]
    (place / "all.csv").write_text("path,label\n" + "\n".join(rows))
    for name in "ab":
        shutil.make_archive(str(place / name), "tar", place / "data" / name)

    def named(at: Path) -> object:
        return {
            "folders": [str(at / "data" / "a"), str(at / "data" / "b")],
            "list": str(at / "all.txt"),
            "table": str(at / "all.csv"),
            "shards": str(at / "{a,b}.tar"),
            "pattern": str(at / "data" / "*" / "picture-*.png"),
        }[kind]

    before = open_images(named(place))  # type: ignore[arg-type]
    file = record(tmp_path, named(place))
    moved = place.rename(tmp_path / "moved")
    recalled, told = recall(file, open_images(named(moved)))  # type: ignore[arg-type]
    assert names(recalled.paths, moved) == names(before.paths, place)
    assert (recalled.labels, recalled.classes) == (before.labels, before.classes)
    assert told == "the images have moved; the run goes on with them where they are now."


def test_what_is_gone_keeps_its_place_and_its_label(data: Path, tmp_path: Path) -> None:
    file = record(tmp_path, str(data))
    (data / "a" / "picture-001.png").unlink()
    recalled, told = recall(file, open_images(str(data)), max_gone=0.5)
    assert len(recalled) == 6
    assert recalled.labels == (0, 0, 0, 1, 1, 1)
    assert told == (
        f"1 of the run's 6 images are gone (the first is '{data}/a/picture-001.png'): the run "
        "goes on without them; more than data.max_skipped_share 50.0% stop it."
    )
    with pytest.raises(DataError, match=r"1 of the run's 6 images are gone .* more than data\.max"):
        recall(file, open_images(str(data)), max_gone=0.1)


def test_images_of_another_folder_are_found_where_they_were(data: Path, tmp_path: Path) -> None:
    file = record(tmp_path, str(data))
    write_pictures(tmp_path / "other", 2)
    recalled, told = recall(file, open_images(str(tmp_path / "other")))
    assert recalled.paths == open_images(str(data)).paths
    assert told == "2 new images wait for another run."


def test_a_record_of_version_0_1_0_is_read_with_the_roots_of_then(
    data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "images.jsonl"
    paths = [f"data/{name}/picture-00{n}.png" for name in "ba" for n in range(3)]
    file.write_text("".join(json.dumps(path) + "\n" for path in paths))
    moved = data.rename(tmp_path / "moved")
    (moved / "b" / "picture-000.png").unlink()
    write_pictures(moved / "0-first", 1)
    recalled, told = recall(file, open_images(str(moved)), old_roots=["data"], max_gone=0.5)
    assert names(recalled.paths, moved) == [path.removeprefix("data/") for path in paths]
    assert recalled.labels == (2, 2, 2, 1, 1, 1)  # also of the one that is gone: by its folder
    assert "1 of the run's 6 images are gone" in told


@pytest.mark.parametrize(
    "content",
    ["", "{", '{"roots": ["/d"], "classes": null}\n[1, "a"]\n', '["a", 1]\n', '"a"\n7\n',
     '{"roots": ["/d"], "classes": ["a", "b"]}\n[0, "a"]\n', '{"roots": 3}\n'],
)  # fmt: skip
def test_a_damaged_record_is_one_sentence(content: str, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "images.jsonl"
    file.write_text(content)
    if content == "":  # of no images
        assert len(recall(file, open_images(str(data))).images) == 0
        return
    with pytest.raises(CheckpointError, match="the run's list of images cannot be read"):
        recall(file, open_images(str(data)))


def test_a_record_that_cannot_be_read_now_is_no_damage(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "images.jsonl"
    file.mkdir()
    with pytest.raises(DiskError, match="cannot be read now"):
        recall(file, open_images(str(data)))
