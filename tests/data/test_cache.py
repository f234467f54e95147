"""A cache changes the time that reading takes and nothing else, whatever happens to it."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from disk_room import KEPT_FREE
from fork_server import SERVER
from PIL import Image
from real_runs import assert_same_run, pretrain_arguments, run, run_together, signal_in, wait_for
from undrawn import without_pictures

from fcmae.data import (
    PixelCache,
    PretrainAugmentation,
    PretrainDataset,
    Reading,
    UndecodableImageError,
    cache,
    find_images,
)
from fcmae.data.parts import Part
from fcmae.errors import DONE, INTERRUPTED, MISTAKE, ConfigError

RGB = Reading(in_chans=3)
AUGMENTATION = PretrainAugmentation((32, 32))
SIDE = 72  # the least that the smallest crop of 32 px needs


def noise(seed: int, height: int = 150, width: int = 200) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Large and small pictures, one finer than 8 bit, and one that cannot be decoded."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(6):
        noise(number).save(folder / f"{number}.jpg")
    noise(6, 40, 50).save(folder / "6-small.png")
    deep = np.random.default_rng(7).integers(0, 65536, (100, 120), dtype=np.uint16)
    Image.fromarray(deep).save(folder / "7-deep.png")
    (folder / "8-broken.png").write_bytes(b"no picture")
    return folder


def open_cache(folder: Path, side: int = SIDE, in_chans: int = 3) -> PixelCache:
    paths = find_images(str(folder)).paths
    return PixelCache(folder.parent / "cache", paths, side=side, reading=Reading(in_chans=in_chans))


def fill(folder: Path, **options: Any) -> tuple[PixelCache, list[str]]:
    said: list[str] = []
    opened = open_cache(folder, **options)
    opened.fill(0, said.append)
    return opened, said


def samples(folder: Path, opened: PixelCache | None) -> list[dict[str, Any]]:
    dataset = PretrainDataset(
        find_images(str(folder)),
        AUGMENTATION,
        seed=3,
        reading=Reading(in_chans=3),
        num_patches=4,
        mask_ratio=0.5,
        cache=opened,
    )
    return [dataset[epoch, index] for epoch in range(2) for index in range(len(dataset))]


def assert_same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert one["image"].dtype == other["image"].dtype
        assert (one["path"], one["skipped"]) == (other["path"], other["skipped"])


def whole(height: int, width: int) -> Part:
    return Part(0, 0, height, width, (height, width))


def test_samples_are_the_same_from_an_empty_a_half_filled_and_a_full_cache(folder: Path) -> None:
    empty = samples(folder, open_cache(folder))
    paths = find_images(str(folder)).paths
    half = PixelCache(folder.parent / "cache", paths[::2], side=SIDE, reading=Reading(in_chans=3))
    half.fill(0, print)
    half_filled = open_cache(folder)
    assert 0 < len(half_filled.missing()) < len(paths)
    assert_same(samples(folder, half_filled), empty)
    full, said = fill(folder)
    assert full.missing() == [8]
    assert f"8 of 9 images are in {folder.parent / 'cache'}" in said[-1]
    assert_same(samples(folder, full), empty)
    assert empty[7]["image"].dtype == torch.float32  # 16 bit keep their depth
    assert [reason for _, reason in empty[8]["skipped"]] == [
        "no picture in a format that can be read here"
    ]


def test_what_is_in_the_cache_is_not_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, _ = fill(folder)
    decoded: list[str] = []
    decode = cache.decode
    monkeypatch.setattr(
        cache, "decode", lambda path, *rest: decoded.append(path) or decode(path, *rest)
    )
    samples(folder, opened)
    assert {Path(path).name for path in decoded} == {"8-broken.png"}
    opened.fill(0, print)
    assert len(set(decoded)) == 1


def test_images_are_reduced_to_the_side_and_never_enlarged(folder: Path) -> None:
    opened, _ = fill(folder)
    assert opened.read(0, whole).image.shape == (3, SIDE, 96)
    assert opened.read(6, whole).image.shape == (3, 40, 50)
    assert opened.read(6, whole).image.dtype == torch.uint8
    small = torch.from_numpy(np.array(noise(6, 40, 50))).permute(2, 0, 1)
    assert torch.equal(opened.read(6, whole).image, small)


def test_a_file_that_changed_is_read_anew_and_kept_anew(folder: Path) -> None:
    opened, _ = fill(folder)
    before = opened.read(1, whole).image
    noise(99).save(folder / "1.jpg")
    changed = opened.read(1, whole).image
    assert not torch.equal(changed, before)
    refilled, _ = fill(folder)
    assert refilled.missing() == [8]
    assert torch.equal(refilled.read(1, whole).image, changed)
    touched = os.stat(folder / "2.jpg").st_mtime_ns + 1
    os.utime(folder / "2.jpg", ns=(touched, touched))
    assert open_cache(folder).missing() == [2, 8]


def test_a_file_that_is_gone_is_undecodable_as_without_a_cache(folder: Path) -> None:
    opened, _ = fill(folder)
    (folder / "1.jpg").unlink()
    with pytest.raises(UndecodableImageError, match="does not exist"):
        opened.read(1, whole)


def test_other_settings_have_other_files(folder: Path) -> None:
    fill(folder)
    other, _ = fill(folder, side=SIDE - 1)
    grey, _ = fill(folder, in_chans=1)
    assert other.read(0, whole).image.shape == (3, SIDE - 1, 95)
    assert grey.read(0, whole).image.shape == (1, SIDE, 96)
    assert open_cache(folder).read(0, whole).image.shape == (3, SIDE, 96)
    assert len(list((folder.parent / "cache").glob("*.bin"))) == 6


@pytest.mark.parametrize("damage", ["cut pixels", "no pixels", "cut index", "no index", "stray"])
def test_damage_costs_time_and_no_pixel(folder: Path, damage: str) -> None:
    fill(folder)
    expected = samples(folder, open_cache(folder))
    (pixels,) = (folder.parent / "cache").glob("pixels-*")
    (index,) = (folder.parent / "cache").glob("index-*")
    if damage == "cut pixels":
        os.truncate(pixels, pixels.stat().st_size // 2)
    elif damage == "no pixels":
        pixels.unlink()
    elif damage == "cut index":
        os.truncate(index, index.stat().st_size - 5)
    elif damage == "no index":
        index.unlink()
    else:  # of a process that was killed before it wrote the records
        with pixels.open("ab") as file:
            file.write(b"x" * 1000)
    assert_same(samples(folder, open_cache(folder)), expected)
    # The pictures come back in another order: old records must not find them.
    paths = find_images(str(folder)).paths
    backwards = PixelCache(
        folder.parent / "cache", paths[5:2:-1], side=SIDE, reading=Reading(in_chans=3)
    )
    backwards.fill(0, print)
    assert_same(samples(folder, open_cache(folder)), expected)
    refilled, _ = fill(folder)
    assert refilled.missing() == [8]
    assert_same(samples(folder, refilled), expected)


def die_at_the_sixth(folder: Path) -> None:
    """Fill the cache two images at a time, and be killed when decoding comes to the sixth."""
    decode = cache.decode

    def decode_or_die(path: str, *rest: Any) -> torch.Tensor:
        if path.endswith("5.jpg"):
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(path, *rest)

    cache.COMMIT_BYTES = 40_000  # two images
    cache.decode = decode_or_die
    open_cache(folder).fill(0, print)


def test_killed_while_filling_it_keeps_what_was_committed(folder: Path) -> None:
    expected = samples(folder, open_cache(folder))
    pid = SERVER.start(partial(die_at_the_sixth, folder), folder.with_name("log"))
    assert SERVER.wait(pid) == -signal.SIGKILL
    assert open_cache(folder).missing() == [4, 5, 6, 7, 8]
    assert_same(samples(folder, open_cache(folder)), expected)
    assert_same(samples(folder, fill(folder)[0]), expected)


def fill_while_others_wait(folder: Path, begun: Path, waiting: Path) -> None:
    """Fill the cache, and let the first image take until another process waits."""
    decode = cache.decode

    def decode_slowly(path: str, *rest: Any) -> torch.Tensor:
        begun.touch()
        while not waiting.exists():
            time.sleep(0.01)
        return decode(path, *rest)

    cache.decode = decode_slowly
    open_cache(folder).fill(0, print)


def test_two_processes_fill_one_after_the_other(folder: Path) -> None:
    begun, waiting = folder.with_name("begun"), folder.with_name("waiting")
    other = SERVER.start(
        partial(fill_while_others_wait, folder, begun, waiting), folder.with_name("log")
    )
    wait_for(begun, other)
    opened, said = open_cache(folder), list[str]()

    def hear(sentence: str) -> None:
        said.append(sentence)
        waiting.touch()

    opened.fill(0, hear)
    assert SERVER.wait(other) == DONE, folder.with_name("log").read_text()
    assert "another process fills" in said[0]
    (index,) = (folder.parent / "cache").glob("index-*")
    assert index.stat().st_size == 8 * cache.RECORD.itemsize
    assert opened.missing() == [8]


def test_a_full_disk_keeps_what_fits_and_some_space(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = samples(folder, open_cache(folder))
    usage = cache.shutil.disk_usage(folder)
    written = lambda: sum(f.stat().st_size for f in (folder.parent / "cache").glob("pixels*"))  # noqa: E731
    monkeypatch.setattr(
        cache.shutil,
        "disk_usage",
        lambda _: usage._replace(total=100_000, free=100_000 - written()),
    )
    monkeypatch.setattr(cache, "KEEP_FREE_BYTES", KEPT_FREE)
    monkeypatch.setattr(cache, "COMMIT_BYTES", 1)
    opened, said = fill(folder)
    assert "the last 0.0 GB are left free" in said[0]
    assert "is decoded in every epoch" in said[0]
    assert 75_000 < written() <= 95_000
    assert 0 < len(opened.missing()) < 8
    assert_same(samples(folder, opened), expected)


def fill_with_small_files(folder: Path) -> None:
    """Fill the cache where a file can hold 90,000 bytes, and hear that it is cut short."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000))
    cache.COMMIT_BYTES = 1
    said: list[str] = []
    open_cache(folder).fill(0, said.append)
    assert "cannot be written (File too large)" in said[0]


def test_a_disk_that_fills_in_the_middle_of_an_image_loses_no_committed_one(folder: Path) -> None:
    expected = samples(folder, open_cache(folder))
    pid = SERVER.start(partial(fill_with_small_files, folder), folder.with_name("log"))
    assert SERVER.wait(pid) == DONE, folder.with_name("log").read_text()
    assert len(open_cache(folder).missing()) == 5
    assert_same(samples(folder, open_cache(folder)), expected)


def test_a_folder_that_cannot_be_used_is_one_sentence(folder: Path) -> None:
    (folder.parent / "cache").write_text("a file")
    with pytest.raises(ConfigError, match=r"data\.cache: '.*cache' cannot be used \(.*\); name a"):
        open_cache(folder)


def keep_empty() -> None:
    """Let the cache stay as it is."""
    cache.PixelCache.fill = lambda *_: None  # type: ignore[method-assign]


def test_runs_with_a_full_a_partial_and_no_cache_on_disk_are_the_same(
    folder: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"

    def arguments(name: str, cache_folder: str, **changes: object) -> list[str]:
        where = tmp_path / cache_folder
        return pretrain_arguments(
            folder, tmp_path / name, 7, data__cache=where, data__max_skipped_share=0.5, **changes
        )

    assert run(arguments("first", "one"), log, before=without_pictures) == DONE, log.read_text()
    assert "images are in" in log.read_text()
    again = arguments("again", "one", data__workers=2)
    assert run(again, log, before=without_pictures) == DONE
    assert_same_run(tmp_path / "again", tmp_path / "first")
    before = [without_pictures, keep_empty]
    assert run(arguments("empty", "two"), log, before=before) == DONE
    assert_same_run(tmp_path / "empty", tmp_path / "first")
    refused = pretrain_arguments(folder, tmp_path / "first", 7, data__max_skipped_share=0.5)
    assert run(refused, log) == MISTAKE
    assert "data.cache" in log.read_text()


def test_a_run_goes_on_with_its_cache_in_the_scratch_folder_of_another_job(
    folder: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"

    def arguments(name: str, job: int) -> list[str]:
        changes = {"data__cache": tmp_path / f"job-{job}", "data__max_skipped_share": 0.5}
        return pretrain_arguments(folder, tmp_path / name, 7, **changes)

    assert run(arguments("undisturbed", 1), log, before=without_pictures) == DONE
    stopping = signal_in("step", 4, signal.SIGTERM)
    assert run(arguments("stopped", 1), log, before=stopping) == INTERRUPTED
    shutil.rmtree(tmp_path / "job-1")
    assert run(arguments("stopped", 2), log, before=without_pictures) == DONE, log.read_text()
    assert_same_run(tmp_path / "stopped", tmp_path / "undisturbed")


@pytest.mark.ddp
def test_several_processes_share_a_cache(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = pretrain_arguments(
        folder, tmp_path / "run", 4, data__cache=tmp_path / "one", data__max_skipped_share=0.5
    )
    assert run_together(arguments, log, 2, before=without_pictures) == [DONE, DONE], log.read_text()
    assert log.read_text().count("images are in") == 1
