"""Files with many images: each counts as one, in its file's place, with its file's label."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import zarr
from dicom_files import dicom

from fcmae.data import Reading, decode, find_images
from fcmae.data.accounting import account_sentence
from fcmae.errors import ConfigError

GREY = Reading(in_chans=1)


def values(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 65536, shape, dtype=np.uint16)


def npy(path: Path, array: np.ndarray) -> None:
    np.save(path, array)


def npz(path: Path, array: np.ndarray) -> None:
    np.savez_compressed(path, stack=array)


def hdf5(path: Path, array: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("deep/stack", data=array, chunks=(1, *array.shape[1:]))


def store(path: Path, array: np.ndarray) -> None:
    group = zarr.open_group(str(path), mode="w")
    stored = group.create_array(
        "stack", shape=array.shape, dtype=array.dtype, chunks=(1, *array.shape[1:])
    )
    stored[...] = array


def frames(path: Path, array: np.ndarray) -> None:
    path.write_bytes(dicom(array))


WRITERS: dict[str, Callable[[Path, np.ndarray], None]] = {
    "a.npy": npy,
    "a.npz": npz,
    "a.h5": hdf5,
    "a.zarr": store,
    "a.dcm": frames,
    "a": frames,  # found by its content
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("is_named", [True, False], ids=["named", "in a folder"])
def test_a_file_of_many_images_stands_for_all_of_them(
    name: str, is_named: bool, tmp_path: Path
) -> None:
    array = values(40, 20, 30)
    WRITERS[name](tmp_path / name, array)
    images = find_images(str(tmp_path / name if is_named else tmp_path), wanted=GREY.wanted())
    assert images.paths == tuple(f"{tmp_path / name}::{number}" for number in range(40))
    account = images.accounting
    assert account is not None
    assert (account.num_files, account.stacks, account.in_stacks) == (1, 1, 40)
    assert "holds 40 images, by the shapes" in account.notes[0]
    for number in (0, 17, 39):
        image, _ = decode(images.paths[number], GREY)
        assert torch.equal((image[0] * 65535).round(), torch.from_numpy(array[number]).float())


def test_images_of_a_file_have_the_label_of_its_folder(tmp_path: Path) -> None:
    for label, count in (("cats", 20), ("dogs", 30)):
        (tmp_path / label).mkdir()
        hdf5(tmp_path / label / "a.h5", values(count, 8, 9))
        np.save(tmp_path / label / "b.npy", values(8, 9))
    images = find_images(str(tmp_path), wanted=GREY.wanted())
    assert images.classes == ("cats", "dogs")
    assert images.labels == (0,) * 21 + (1,) * 31
    account = images.accounting
    assert account is not None
    assert account.num_files == 4
    assert account_sentence(account, used=50, held_out=2) == (
        "4 files, 2 of them with 50 images, which makes 52: 50 used, 2 held out."
    )
    assert "2 files of such kinds are one image each" in account.notes[0]


def test_rows_of_a_table_and_lines_of_a_list_name_files_or_images(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values(20, 8, 9))
    np.save(tmp_path / "b.npy", values(20, 8, 9))
    (tmp_path / "t.csv").write_text("path,label\na.npy,x\nb.npy::3,y\nb.npy::4,x\n")
    images = find_images(str(tmp_path / "t.csv"), wanted=GREY.wanted())
    assert images.labels == (0,) * 20 + (1, 0)
    (tmp_path / "l.txt").write_text("b.npy::3\na.npy\na.npy::2\n")
    listed = find_images(str(tmp_path / "l.txt"), wanted=GREY.wanted())
    assert [Path(path).name for path in listed.paths[:2]] == ["b.npy::3", "a.npy::0"]
    assert len(listed) == 21
    account = listed.accounting
    assert account is not None
    assert (account.repeated, account.num_files) == (1, 3)


def test_the_shape_means_what_the_channels_say(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values(40, 20, 30))
    assert len(find_images(str(tmp_path), wanted=Reading(in_chans=40).wanted())) == 1
    assert len(find_images(str(tmp_path), wanted=GREY.wanted())) == 40
    assert len(find_images(str(tmp_path))) == 40  # not known: too many for bands


def test_images_are_left_out_by_number_and_files_with_all_of_theirs(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values(20, 8, 9))
    np.save(tmp_path / "b.npy", values(20, 8, 9))
    (tmp_path / "bad.txt").write_text("a.npy::7\tdamaged\n")
    images = find_images(str(tmp_path), exclude=["*/b.npy", str(tmp_path / "bad.txt")])
    assert len(images) == 19
    assert f"{tmp_path}/a.npy::7" not in images.paths
    assert images.accounting is not None
    assert images.accounting.excluded == 21
    assert images.accounting.num_files == 3  # bad.txt is one
    with pytest.raises(ConfigError, match="leaves out none of 40 images"):
        find_images(str(tmp_path), exclude="*/c.npy")


def test_a_damaged_file_stays_in_the_list_for_its_reason_to_be_told(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values(20, 8, 9))
    (tmp_path / "b.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-1000])
    (tmp_path / "c.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    images = find_images(str(tmp_path), wanted=GREY.wanted())
    assert len(images) == 22
    assert [Path(path).name for path in images.paths[20:]] == ["b.npy", "c.h5"]


def test_a_store_is_one_file_and_nothing_in_it_is_walked_into(tmp_path: Path) -> None:
    store(tmp_path / "deep" / "a.zarr", values(20, 8, 9))
    store(tmp_path / "odd name", values(20, 8, 9))
    (tmp_path / "deep" / "a.zarr" / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    images = find_images(str(tmp_path), wanted=GREY.wanted())
    assert len(images) == 40
    assert images.accounting is not None
    assert (images.accounting.num_files, images.accounting.no_images) == (2, {})
