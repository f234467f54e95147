"""Finding images: folders, lists, labels, and everything odd that a file system holds."""

import os
from pathlib import Path

import pytest

from fcmae.data import ImageList, find_images
from fcmae.errors import ConfigError


def make(folder: Path, *names: str) -> None:
    """Create empty files; finding reads names only."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(images: ImageList, folder: Path) -> list[str]:
    return [os.path.relpath(path, folder) for path in images.paths]


def test_folders_are_searched_to_any_depth_in_a_fixed_order(tmp_path: Path) -> None:
    make(tmp_path, "b.PNG", "a/c/d/e.jpeg", "a.npy", "notes.md", ".hidden.png", ".git/x.png")
    images = find_images(str(tmp_path))
    assert found(images, tmp_path) == ["a.npy", "a/c/d/e.jpeg", "b.PNG"]
    assert (images.labels, images.classes, images.problems) == (None, None, ())
    assert images.root == str(tmp_path)


def test_order_does_not_depend_on_the_order_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, *(f"{letter}/{number}.png" for letter in "cab" for number in range(12)))
    expected = find_images(str(tmp_path))
    scandir = os.scandir

    class Reversed:
        def __init__(self, path: str) -> None:
            self.entries = sorted(scandir(path), key=lambda entry: entry.name)[::-1]

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Reversed)
    assert find_images(str(tmp_path)) == expected


def test_folders_below_one_root_are_classes(tmp_path: Path) -> None:
    make(tmp_path, "dog/1.png", "cat/deep/2.png", "cat/3.png", "empty/readme.md")
    images = find_images(str(tmp_path) + "/")
    assert images.classes == ("cat", "dog")
    assert images.labels == (0, 0, 1)
    chosen = images.select([2, 0])
    assert (chosen.paths, chosen.labels) == ((images.paths[2], images.paths[0]), (1, 0))


@pytest.mark.parametrize(
    "names",
    [
        ("cat/1.png", "dog/2.png", "3.png"),  # one outside of any class
        ("cat/1.png", "cat/2.png"),  # one class only
        ("train/cat/1.png", "val/cat/2.png", "test/3.png"),  # splits
    ],
)
def test_other_layouts_have_no_labels(tmp_path: Path, names: tuple[str, ...]) -> None:
    make(tmp_path, *names)
    assert find_images(str(tmp_path)).labels is None


def test_several_folders_keep_their_order_and_have_no_labels(tmp_path: Path) -> None:
    make(tmp_path, "z/cat/1.png", "z/dog/2.png", "a/3.png")
    images = find_images([str(tmp_path / "z"), str(tmp_path / "a"), str(tmp_path / "a/3.png")])
    assert found(images, tmp_path) == ["z/cat/1.png", "z/dog/2.png", "a/3.png"]
    assert images.labels is None
    assert images.root is None


def test_a_text_file_names_images_relative_to_itself(tmp_path: Path) -> None:
    make(tmp_path, "x/2.png", "x/1.png", "y/no_extension", "y/many/4.png")
    listing = tmp_path / "x" / "list.txt"
    listing.write_bytes(
        b"\xef\xbb\xbf# first\r\n2.png\r\n\n  1.png  \n../y/no_extension\n../y/many\ngone.png\n"
        + os.fsencode(tmp_path / "x" / "2.png")
    )
    images = find_images(str(listing))
    names = [os.path.relpath(os.path.normpath(path), tmp_path) for path in images.paths]
    assert names == ["x/2.png", "x/1.png", "y/no_extension", "y/many/4.png"]
    assert images.problems == (
        (str(tmp_path / "x/gone.png"), f"does not exist (line 7 of {listing})"),
    )


def test_one_image_is_a_list_of_one(tmp_path: Path) -> None:
    make(tmp_path, "a.tiff")
    assert find_images(str(tmp_path / "a.tiff")).paths == (str(tmp_path / "a.tiff"),)


def test_loops_of_links_end_and_each_folder_is_entered_once(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b" / "other").symlink_to(tmp_path / "a")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    images = find_images(str(tmp_path))
    assert found(images, tmp_path) == ["a/1.png", "b/2.png"]
    assert {os.path.basename(path) for path, _ in images.problems} >= {"self.png"}


def test_links_to_images_and_folders_are_followed(tmp_path: Path) -> None:
    make(tmp_path, "store/1.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "one.png").symlink_to(tmp_path / "store" / "1.png")
    (tmp_path / "set" / "all").symlink_to(tmp_path / "store")
    assert found(find_images(str(tmp_path / "set")), tmp_path) == ["set/all/1.png", "set/one.png"]


def test_what_cannot_be_read_is_reported_and_the_rest_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "1.png", "locked/2.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    scandir = os.scandir

    def refuse(path: str | bytes) -> object:
        if os.path.basename(os.fsdecode(path)) == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    images = find_images(str(tmp_path))
    assert found(images, tmp_path) == ["1.png"]
    assert {os.path.basename(path): reason for path, reason in images.problems} == {
        "dangling.png": "is a link to nothing",
        "pipe.png": "is not a regular file",
        "locked": "the folder cannot be read (Permission denied)",
    }


def test_names_in_any_encoding_are_found(tmp_path: Path) -> None:
    for name in (b"latin\xe9.png", "utf8-\u00e9.png".encode(), b"a b\n.png"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
            pass
    names = [os.fsencode(os.path.basename(path)) for path in find_images(str(tmp_path)).paths]
    assert names == [b"a b\n.png", b"latin\xe9.png", "utf8-\u00e9.png".encode()]


def test_a_missing_path_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.path: '.*gone' does not exist .*name a folder"):
        find_images(str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="IMAGES: no path was given"):
        find_images([], where="IMAGES")


def test_a_folder_without_images_says_what_is_there_and_what_is_recognised(tmp_path: Path) -> None:
    make(tmp_path, "a.heic", "b.heic", "c.txt")
    with pytest.raises(ConfigError, match=r"no images in .*recognised: .*\.png.*2 \.heic, 1 \.txt"):
        find_images(str(tmp_path))


def test_a_list_that_names_nothing_is_refused_with_the_first_problem(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# nothing\ngone.png\n")
    with pytest.raises(ConfigError, match=r"no images in .*gone\.png.*does not exist \(line 2"):
        find_images(str(tmp_path / "list.txt"))


def test_a_file_of_unknown_kind_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "data.xlsx")
    with pytest.raises(ConfigError, match=r"neither a folder, an image \(.*\.jpg.* \(\.txt\)"):
        find_images(str(tmp_path / "data.xlsx"))
