"""Images in tar and zip files are the same images, in the same order, as in a folder."""

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from pictures_on_disk import write_pictures

from fcmae.data import ImageList, decode_image, find_images
from fcmae.data.patterns import expand
from fcmae.data.shards import INDEX_SUFFIX, open_shard
from fcmae.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of six pictures with notes beside them."""
    for name, seed in (("left", 1), ("right", 2)):
        write_pictures(tmp_path / "folder" / name, 6, seed=seed, side=24)
    (tmp_path / "folder" / "left" / "notes.txt").write_text("not one")
    return tmp_path / "folder"


def pack(folder: Path, target: Path, count: int, kind: str) -> None:
    """Spread the files of a folder over shards, round and round."""
    target.mkdir()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for number in range(count):
        path = target / f"{number:03d}.{kind}"
        mine = files[number::count][::-1]  # in any order
        if kind == "tar":
            with tarfile.open(path, "w") as archive:
                for file in mine:
                    archive.add(file, str(file.relative_to(folder)))
        else:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for place, file in enumerate(mine):
                    method = zipfile.ZIP_STORED if place % 2 else zipfile.ZIP_DEFLATED
                    archive.write(file, str(file.relative_to(folder)), method)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def names(images: ImageList) -> list[str]:
    return [path.split("::")[1] for path in images.paths]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_shards_hold_the_same_samples_in_the_same_order_as_the_folder(
    kind: str, folder: Path, tmp_path: Path
) -> None:
    pack(folder, tmp_path / "shards", 3, kind)
    images = find_images(f"{tmp_path}/shards/{{000..002}}.{kind}")
    plain = find_images(str(folder))
    assert names(images) == [os.path.relpath(path, folder) for path in plain.paths]
    assert (images.labels, images.classes) == (plain.labels, plain.classes)
    for packed, path in zip(images.paths, plain.paths, strict=True):
        assert torch.equal(decode_image(packed, 3), decode_image(path, 3))
    account = images.accounting
    assert account is not None
    assert (account.num_files, account.no_images) == (13, {".txt": 1})


def test_the_index_is_made_once_and_again_when_the_shard_changed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(folder, tmp_path / "shards", 1, "tar")
    shard = tmp_path / "shards" / "000.tar"
    first = find_images(str(shard))
    assert first.accounting is not None
    assert "1 of 1 shards were new" in first.accounting.notes[0]
    again = find_images(str(shard))
    assert again == first
    assert again.accounting is not None
    assert again.accounting.notes == []
    decode_image(first.paths[0], 3)
    write_tar(shard, {"other.png": (folder / "left" / "picture-000.png").read_bytes()})
    with pytest.raises(Exception, match="has changed since the run began"):
        decode_image(first.paths[0], 3)
    changed = find_images(str(shard))
    assert names(changed) == ["other.png"]
    assert changed.accounting is not None
    assert changed.accounting.notes != []


def test_a_folder_that_cannot_be_written_keeps_its_index_in_a_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pack(folder, tmp_path / "shards", 1, "tar")
    shard = tmp_path / "shards" / "000.tar"
    Path(f"{shard}{INDEX_SUFFIX}").mkdir()  # root may write anywhere, but not here
    images = find_images(str(shard))
    assert len(list((tmp_path / "cache" / "fcmae").iterdir())) == 1
    assert decode_image(images.paths[0], 3).shape == (3, 24, 24)
    assert open_shard(str(shard)).where.shape == (12,)


@pytest.mark.parametrize("cut", [1, 700, 1024, 5000])
def test_a_truncated_shard_is_told(cut: int, folder: Path, tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        {f"{number}.png": os.urandom(3000) for number in range(3)},
    )
    content = (tmp_path / "a.tar").read_bytes()
    end = 3 * (512 + 3072)
    (tmp_path / "a.tar").write_bytes(content[: end + 512 - cut])
    with pytest.raises(ConfigError, match=r"a\.tar' is (truncated|damaged or truncated).*copy it"):
        find_images(str(tmp_path / "a.tar"))


@pytest.mark.parametrize("how", ["joined by cat", "a header is damaged"])
def test_members_that_no_reader_of_tars_would_come_to_are_told(how: str, tmp_path: Path) -> None:
    members = {f"{number}.png": os.urandom(3000) for number in range(3)}
    write_tar(tmp_path / "a.tar", members)
    content = (tmp_path / "a.tar").read_bytes()
    if how == "joined by cat":
        content, said = content + content, "holds several archives.*tar --concatenate"
    else:
        second = 512 + 3072
        content = content[:second] + b"\xaa" * 200 + content[second + 200 :]
        said = "is damaged: behind '0.png' there is no header"
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        find_images(str(tmp_path / "a.tar"))


def test_zips_that_were_joined_are_told(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "shards", 2, "zip")
    first, second = (tmp_path / "shards" / f"00{number}.zip" for number in (0, 1))
    first.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(ConfigError, match="holds several archives, of which the last alone"):
        find_images(str(first))


def test_a_tar_may_end_in_any_number_of_zeros(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {f"{number}.png": os.urandom(3000) for number in range(3)})
    with (tmp_path / "a.tar").open("ab") as file:
        file.write(b"\0" * 3_000_000)
    assert len(find_images(str(tmp_path / "a.tar"))) == 3


def test_a_damaged_zip_and_a_compressed_tar_are_told(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "shards", 1, "zip")
    shard = tmp_path / "shards" / "000.zip"
    shard.write_bytes(shard.read_bytes()[:-30])
    with pytest.raises(ConfigError, match=r"000\.zip' is damaged or truncated"):
        find_images(str(shard))
    with tarfile.open(tmp_path / "b.tar", "w:gz") as archive:
        archive.add(folder, "x")
    with pytest.raises(ConfigError, match=r"b\.tar' is compressed as a whole.*unpack it"):
        find_images(str(tmp_path / "b.tar"))


def test_labels_come_from_members_beside_the_images(tmp_path: Path) -> None:
    png = b"\x89PNG\r\n\x1a\n"
    write_tar(
        tmp_path / "0.tar",
        {"x/0001.jpg": png, "x/0001.cls": b"10\n", "x/0002.jpg": png, "x/0002.cls": b"9"},
    )
    label = json.dumps({"label": 9, "caption": "a cat"}).encode()
    write_tar(tmp_path / "1.tar", {"0003.png": png, "0003.json": label, "0004.png": png})
    images = find_images(str(tmp_path / "[01].tar"))
    assert images.classes == ("9", "10")
    assert dict(zip(names(images), images.labels or (), strict=True)) == {
        "0003.png": 0,
        "0004.png": -1,
        "x/0001.jpg": 1,
        "x/0002.jpg": 0,
    }


def test_parts_inside_shards_are_read_as_in_a_folder(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "set.tar",
        {f"{part}/{name}/1.png": b"" for part in ("train", "val") for name in ("a", "b")},
    )
    images = find_images(str(tmp_path / "set.tar"))
    assert images.parts == {"train": "train", "validation": "val"}
    assert names(images.part("validation")) == ["val/a/1.png", "val/b/1.png"]


def test_a_folder_of_shards_says_how_to_name_them(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "shards", 2, "tar")
    with pytest.raises(ConfigError, match=r"no images in .* 2 \.tar.*'FOLDER/\{000\.\.099\}\.tar'"):
        find_images(str(tmp_path / "shards"))


def test_patterns_stand_for_paths(tmp_path: Path) -> None:
    assert expand("a{08..11}.tar", "x") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert expand("{a,b}{1..2}", "x") == ["a1", "a2", "b1", "b2"]
    assert expand("{odd}", "x") == ["{odd}"]
    (tmp_path / "{1..2}").mkdir()
    assert expand(f"{tmp_path}/{{1..2}}", "x") == [f"{tmp_path}/{{1..2}}"]
    with pytest.raises(ConfigError, match=r"data\.path: '.*\*\.tar' matches nothing"):
        expand(f"{tmp_path}/*.tar", "data.path")
    with pytest.raises(ConfigError, match="stands for more than 1,000,000 paths"):
        expand("{1..9999999}", "data.path")
