"""Every file below the paths is used, left out with a reason, or counted by its kind."""

import os
from pathlib import Path

import pytest
from PIL import Image

from fcmae.data import find_images
from fcmae.data.accounting import account_sentence
from fcmae.errors import ConfigError

JPEG, PNG, DICOM = b"\xff\xd8\xff\xe0 more", b"\x89PNG\r\n\x1a\n", b"\0" * 128 + b"DICM"


def write(folder: Path, **contents: bytes) -> None:
    for name, content in contents.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def num_files(folder: Path) -> int:
    """All files below a folder, counted in another way than the product does."""
    return sum(not path.is_dir() or path.is_symlink() for path in folder.rglob("*"))


def test_a_folder_of_all_kinds_is_accounted_for_to_the_last_file(tmp_path: Path) -> None:
    write(
        tmp_path,
        a_png=PNG,
        b_jfif=JPEG,
        c_avif=b"",
        d_jp2=b"",
        e_tga=b"",
        scan=DICOM,
        photo=JPEG,
        tiff_dat=b"II*\0 more",
        notes_txt=b"",
        deep__er__labels_json=b"{}",
        archive_tar=b"",
        odd_xyz=b"what",
        text=b"plain text",
        camera_nef=b"II*\0 more",
    )
    write(tmp_path / ".git" / "objects", one=b"", two_png=PNG)
    write(tmp_path, _hidden_png=PNG)
    (tmp_path / "dangling.png").symlink_to("nowhere.png")
    images = find_images(str(tmp_path))
    names = [os.path.relpath(path, tmp_path) for path in images.paths]
    assert names == ["a.png", "b.jfif", "c.avif", "d.jp2", "e.tga", "photo", "scan", "tiff.dat"]
    account = images.accounting
    assert account is not None
    assert account.no_images == {
        ".txt": 1,
        ".json": 1,
        ".tar": 1,
        ".xyz": 1,
        ".nef": 1,
        "without suffix": 1,
        "hidden": 3,
    }
    assert [reason for _, reason in account.problems] == ["is a link to nothing"]
    assert account.num_images == 8
    assert account.num_files == num_files(tmp_path) == 18


def test_the_sentence_adds_up(tmp_path: Path) -> None:
    write(tmp_path, a_png=PNG, b_png=PNG, c_png=PNG, x_txt=b"", y_txt=b"", z_md=b"")
    account = find_images(str(tmp_path)).accounting
    assert account is not None
    assert account_sentence(account, used=2, held_out=1) == (
        "6 files: 2 used, 1 held out, 3 no images (2 .txt, 1 .md)."
    )
    assert account_sentence(account, used=1, skipped=1) == (
        "6 files: 1 used, 1 skipped with a reason, 1 not chosen, 3 no images (2 .txt, 1 .md)."
    )


def test_a_file_that_may_not_be_looked_into_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, a_png=PNG, secret=b"")

    def refuse(path: str) -> bool:
        if path.endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return True

    monkeypatch.setattr("fcmae.data.walking.is_picture", refuse)
    images = find_images(str(tmp_path))
    assert images.problems == ((str(tmp_path / "secret"), "cannot be read (Permission denied)"),)


def test_what_a_list_names_twice_or_in_vain_is_counted(tmp_path: Path) -> None:
    write(tmp_path, a_png=PNG, b_png=PNG)
    (tmp_path / "list.txt").write_text("a.png\nb.png\na.png\ngone.png\n")
    images = find_images(str(tmp_path / "list.txt"))
    account = images.accounting
    assert account is not None
    assert (len(images), account.repeated, len(account.problems)) == (2, 1, 1)
    assert account.num_files == 4


def test_excluded_images_are_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path, a_png=PNG, docs__b_png=PNG, docs__deep__c_png=PNG, d_png=PNG)
    (tmp_path / "bad.txt").write_text(f"{tmp_path}/d.png\tdamaged\n")
    images = find_images(str(tmp_path), exclude=["*/docs/*", str(tmp_path / "bad.txt")])
    assert images.paths == (str(tmp_path / "a.png"),)
    assert images.accounting is not None
    assert images.accounting.excluded == 3
    with pytest.raises(ConfigError, match=r"data\.exclude: \*/dcos/\* leaves out none of 4 images"):
        find_images(str(tmp_path), exclude="*/dcos/*")
    with pytest.raises(ConfigError, match=r"no images in .* data\.exclude left 4 out"):
        find_images(str(tmp_path), exclude="*")


def test_the_order_is_that_of_the_bytes_of_whole_paths(tmp_path: Path) -> None:
    names = ["a.png", "a/z.png", "a-b/1.png", "a b.png", "A/1.png", "a/b/c.png", "a/b.png", "b.png"]
    for name in names:
        write(tmp_path)
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    expected = sorted((str(tmp_path / name) for name in names), key=os.fsencode)
    assert find_images(str(tmp_path)).paths == tuple(expected)


def test_a_list_in_utf16_is_told(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png\n", encoding="utf-16")
    with pytest.raises(ConfigError, match=r"list\.txt' is encoded as UTF-16, expected UTF-8"):
        find_images(str(tmp_path / "list.txt"))


def test_a_picture_without_a_suffix_is_found_by_its_content(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "upload-0001", format="BMP")
    Image.new("L", (4, 4)).save(tmp_path / "upload-0002", format="PNG")
    assert [os.path.basename(path) for path in find_images(str(tmp_path)).paths] == [
        "upload-0001",
        "upload-0002",
    ]
