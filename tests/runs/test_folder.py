"""One run, one folder, one writer; its images stay the same; skipped files are listed."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from fork_server import SERVER
from real_runs import wait_for

from fcmae.data import ImageList
from fcmae.data.recorded import fix_images
from fcmae.errors import CheckpointError, ConfigError, DataError
from fcmae.runs.folder import RunFolder
from fcmae.runs.skipped_files import SkippedFiles
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.reading import forbidden_changes, parse, to_plain
from fcmae.settings.sections import OptimConfig


def make_config(folder: Path, **train: Any) -> PretrainConfig:
    arguments = [f"--run.dir={folder}", "--data.path=somewhere", "--train.steps=10"]
    arguments += [f"--train.{name}={value}" for name, value in train.items()]
    return parse(PretrainConfig, arguments, prog="fcmae pretrain")


def hold(folder: Path, then: Callable[[], object]) -> None:
    """Open a run folder, say so, and do something before it is closed."""
    held = RunFolder(folder)
    held.open(make_config(folder))
    folder.with_name("is-held").touch()
    then()
    held.close()


def leave_a_reader(told: Path) -> None:
    """Start a child, as readers of images are, and tell its id."""
    pid = os.fork()
    if pid != 0:
        told.with_suffix(".partial").write_text(str(pid))
        told.with_suffix(".partial").rename(told)
    signal.pause()


def hold_in_another_process(folder: Path, then: Callable[[], object]) -> int:
    """Return the id of a process that has opened the folder; `then` runs in it."""
    pid = SERVER.start(partial(hold, folder, then), folder.with_name("log"))
    wait_for(folder.with_name("is-held"), pid)
    return pid


def open_and_close(folder: Path) -> None:
    run = RunFolder(folder)
    run.open(make_config(folder))
    run.close()


def test_the_second_writer_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    pid = hold_in_another_process(folder, signal.pause)
    try:
        message = rf"is being written by process {pid} on {socket.gethostname()}; wait for it"
        for _ in range(2):  # being refused must not open the door
            with pytest.raises(ConfigError, match=message):
                RunFolder(folder).open(make_config(folder))
    finally:
        SERVER.end(pid)
    open_and_close(folder)  # a killed process holds nothing


def test_a_killed_runs_children_do_not_keep_its_successor_out(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    told = tmp_path / "reader"
    pid = hold_in_another_process(folder, partial(leave_a_reader, told))
    wait_for(told, pid)
    reader = int(told.read_text())
    SERVER.end(pid)
    try:
        os.kill(reader, 0)  # it lives
        open_and_close(folder)
        assert f"process {os.getpid()} " in (folder / "lock").read_text()
    finally:
        os.kill(reader, signal.SIGKILL)


def test_a_closed_folder_can_be_opened_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(make_config(folder.path))
    folder.close()
    pid = hold_in_another_process(folder.path, signal.pause)
    holder = (folder.path / "lock").read_text()
    SERVER.end(pid)
    assert f"process {pid} " in holder


def test_a_file_system_without_locks_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    told: list[str] = []
    RunFolder(tmp_path / "run").open(make_config(tmp_path), report=told.append)
    assert len(told) == 1
    assert "this file system has no locks (No locks available)" in told[0]


def test_a_folder_of_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty and holds no run; choose a new folder"):
        RunFolder(tmp_path).open(make_config(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_a_kill_left_half_written_is_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / ".partial-17-config.yaml").write_text("run: {di")
    folder.open(make_config(tmp_path))
    folder.close()
    for place in (tmp_path, folder.reconstructions, folder.export, folder.checkpoints):
        place.mkdir(exist_ok=True)
        (place / ".partial-17-x.png").write_text("half")
    (folder.checkpoints / ".partial-step-00000003").mkdir()
    folder.open(make_config(tmp_path))
    folder.close()
    assert list(tmp_path.rglob(".partial-*")) == []


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match=r"file/run cannot be written \(Not a directory\)"):
        RunFolder(tmp_path / "file" / "run").open(make_config(tmp_path))


def test_settings_may_change_until_something_is_trained(tmp_path: Path) -> None:
    def open_with(seed: int, **settings: Any) -> None:
        folder = RunFolder(tmp_path)
        try:
            folder.open(make_config(tmp_path, seed=seed, **settings))
        finally:
            folder.close()

    open_with(1)
    open_with(2)
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    open_with(2, device="cpu")
    with pytest.raises(ConfigError, match=r"other settings \(train\.seed 2 there, 3 now\)"):
        open_with(3)
    assert "seed: 2" in (tmp_path / "config.yaml").read_text()


def test_a_cache_may_lie_elsewhere_and_may_not_come_or_go(tmp_path: Path) -> None:
    def with_cache(folder: str | None) -> Any:
        config = make_config(tmp_path)
        return dataclasses.replace(config, data=dataclasses.replace(config.data, cache=folder))

    saved = to_plain(with_cache("/scratch/job-1"))
    assert forbidden_changes(saved, with_cache("/scratch/job-2")) == {}
    refused = {"data.cache": ("/scratch/job-1", None)}
    assert forbidden_changes(saved, with_cache(None)) == refused
    plain = to_plain(with_cache(None))
    assert forbidden_changes(plain, with_cache("/a")) == {"data.cache": (None, "/a")}


def test_a_setting_that_an_earlier_version_did_not_have_is_its_default(tmp_path: Path) -> None:
    old = to_plain(make_config(tmp_path))
    del old["optim"]["clip_grad"]
    del old["health"]
    assert forbidden_changes(old, make_config(tmp_path)) == {}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    folder = RunFolder(tmp_path)
    folder.open(make_config(tmp_path))
    folder.close()
    changed = dataclasses.replace(make_config(tmp_path), optim=OptimConfig(clip_grad=1.0))
    with pytest.raises(ConfigError, match=r"optim\.clip_grad None there, 1\.0 now"):
        RunFolder(tmp_path).open(changed)


def test_a_damaged_config_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: [")
    with pytest.raises(ConfigError, match=r"config\.yaml is damaged; restore it"):
        RunFolder(tmp_path).open(make_config(tmp_path))


IMAGES = ImageList(("/d/a/1.png", "/d/a/2.png", "/d/b/\udc80.png"), (0, 0, 1), ("a", "b"), "/d")


def fix(folder: Path, images: ImageList, *, is_continued: bool) -> tuple[ImageList, list[str]]:
    told: list[str] = []
    fixed = fix_images(
        RunFolder(folder).images, images, is_continued=is_continued, report=told.append
    )
    return fixed, told


def test_a_continued_run_keeps_the_images_it_began_with(tmp_path: Path) -> None:
    assert fix(tmp_path, IMAGES, is_continued=False) == (IMAGES, [])
    assert fix(tmp_path, IMAGES, is_continued=True) == (IMAGES, [])
    others = ImageList(("/d/a/1.png", "/d/b/new.png", IMAGES.paths[2]), (0, 1, 1), ("a", "b"), "/d")
    fixed, told = fix(tmp_path, others, is_continued=True)
    assert fixed.paths == IMAGES.paths
    assert fixed.labels == (0, 0, 1)
    assert "1 of the run's 3 images are gone (the first is '/d/a/2.png')" in told[0]
    assert "1 new images wait for another run." in told[0]


def test_images_that_moved_together_are_found(tmp_path: Path) -> None:
    fix(tmp_path, IMAGES, is_continued=False)
    paths = tuple(path.replace("/d/", "/elsewhere/") for path in IMAGES.paths)
    moved = dataclasses.replace(IMAGES, paths=paths)
    fixed, told = fix(tmp_path, moved, is_continued=True)
    assert fixed == moved
    assert "the images have moved" in told[0]


def test_a_new_run_takes_the_images_of_now(tmp_path: Path) -> None:
    fix(tmp_path, IMAGES, is_continued=False)
    fewer = IMAGES.select([0, 2])
    assert fix(tmp_path, fewer, is_continued=False) == (fewer, [])
    assert fix(tmp_path, fewer, is_continued=True) == (fewer, [])


@pytest.mark.parametrize("content", [None, "[1]\n", '"/d/a/1.png"\n"/d/', "\xff"])
def test_a_list_of_images_that_is_lost_stops_a_continued_run(
    content: str | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "images.jsonl").write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"images\.jsonl: the run's list of images cannot"):
        fix(tmp_path, IMAGES, is_continued=True)


def test_skipped_files_are_listed_once_with_their_reason(tmp_path: Path) -> None:
    skipped = SkippedFiles(RunFolder(tmp_path), 100, 0.05)
    skipped.write()
    assert not (tmp_path / "skipped_files.txt").exists()
    assert skipped.add([("b", "is empty"), ("a", "is cut"), ("b", "is empty")]) == [
        ("b", "is empty"),
        ("a", "is cut"),
    ]
    assert skipped.add([("a", "is cut")]) == []
    skipped.add([("\udcff\n.png", "is odd")])
    skipped.write()
    content = (tmp_path / "skipped_files.txt").read_bytes()
    assert content == b"a\tis cut\nb\tis empty\n\xff\\n.png\tis odd\n"


def test_a_list_that_could_not_be_written_is_tried_again(tmp_path: Path) -> None:
    skipped = SkippedFiles(RunFolder(tmp_path / "gone"), 100, 0.05)
    skipped.add([("a", "is cut")])
    with pytest.raises(OSError, match="No such file"):
        skipped.write()
    (tmp_path / "gone").mkdir()
    skipped.write()
    assert (tmp_path / "gone" / "skipped_files.txt").read_text() == "a\tis cut\n"


def test_skipped_files_come_back_from_a_checkpoint(tmp_path: Path) -> None:
    first = SkippedFiles(RunFolder(tmp_path), 10, 0.5)
    first.add([("\udc80", "is odd")])
    first.add_unlisted([("folder", "cannot be read")])
    second = SkippedFiles(RunFolder(tmp_path), 10, 0.5)
    second.load_state_dict(first.state_dict())
    assert len(second) == 2
    assert second.add([("\udc80", "is odd")]) == []
    assert second.state_dict() == first.state_dict()


def test_too_many_skipped_files_stop_with_a_summary(tmp_path: Path) -> None:
    skipped = SkippedFiles(RunFolder(tmp_path), 19, 0.1)
    skipped.add_unlisted([("x", "is a link to nothing")])
    skipped.add([("a", "is cut")])
    skipped.check_share()  # 2 of 20 are no more than 10 %
    skipped.add([("b", "is empty")])
    message = (
        r"3 of 20 files cannot be used \(15\.0%, more than data\.max_skipped_share 10\.0%\): "
        r"'a': is cut; 'b': is empty; 'x': is a link to nothing\. All are listed in .*"
        r"skipped_files\.txt; repair or remove them"
    )
    with pytest.raises(DataError, match=message):
        skipped.check_share()


def test_a_folder_names_the_pictures_that_are_there_and_the_command_of_its_curves(
    tmp_path: Path,
) -> None:
    run = tmp_path / "my run"
    (run / "tensorboard").mkdir(parents=True)
    assert RunFolder(run).to_look_at() == ""
    (run / "reconstructions").mkdir()
    (run / "health.png").touch()
    assert RunFolder(run).to_look_at() == (
        f"Look at {run}/reconstructions, {run}/health.png.\nCurves: tensorboard --logdir '{run}'"
    )
    (run / "tensorboard").rmdir()
    assert RunFolder(run).to_look_at() == f"Look at {run}/reconstructions, {run}/health.png."
