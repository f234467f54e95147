"""Whole runs on pictures with holes: black borders, NaN, masks beside; killed, split, cached."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures_on_disk import write_pictures
from PIL import Image
from real_runs import (
    assert_same_run,
    final_state,
    lines_without_clock,
    options,
    pretrain_arguments,
    run,
    run_together,
    signal_in,
)
from undrawn import without_pictures

from fcmae.errors import DONE, INTERRUPTED, MISTAKE

STEPS = 6


def with_borders(folder: Path, count: int = 12, *, seed: int = 0) -> Path:
    """Write pictures of 96 px, most of them with a black border to one side, one without."""
    rng = np.random.default_rng(seed)
    for number, path in enumerate(write_pictures(folder, count, side=96, seed=seed)):
        pixels = np.maximum(np.asarray(Image.open(path)), 1)
        if number:
            width = int(rng.integers(10, 45))
            pixels = np.rot90(pixels, number).copy()
            pixels[:width] = 0
        Image.fromarray(pixels).save(path)
    return folder


def with_nan(folder: Path, count: int = 12) -> Path:
    folder.mkdir(parents=True)
    for number, path in enumerate(write_pictures(folder.with_name("plain"), count, side=96)):
        values = np.asarray(Image.open(path), np.float32) / 255
        values[: 8 * (number % 5), :, number % 3] = np.nan
        np.save(folder / f"{number}.npy", values)
    return folder


def arguments(data: Path, run_dir: Path, **changes: object) -> list[str]:
    """A grid of 4 x 4 patches, 8 of them visible."""
    return pretrain_arguments(data, run_dir, STEPS, **{"data__image_size": 128, **changes})


@pytest.mark.parametrize("kind", ["borders", "nan", "alpha"])
def test_a_run_on_pictures_with_holes_ends_with_a_finite_loss(tmp_path: Path, kind: str) -> None:
    settings = {"data__invalid": 0} if kind == "borders" else {}
    data = with_nan(tmp_path / "data") if kind == "nan" else with_borders(tmp_path / "data")
    if kind == "alpha":
        for path in data.iterdir():
            pixels = np.asarray(Image.open(path))
            alpha = np.where(pixels.any(axis=2), 255, 0).astype(np.uint8)
            Image.fromarray(np.dstack([pixels + 9, alpha])).save(path)
    log = tmp_path / "log"
    assert run(arguments(data, tmp_path / "run", **settings), log) == DONE, log.read_text()
    lines = lines_without_clock(tmp_path / "run")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) >= 3
    assert all(0 < loss < 3 for loss in losses)
    assert "have pixels without data, hatched in first_batch.png" in log.read_text()
    assert (tmp_path / "run" / "reconstructions" / "step-00000006.png").is_file()
    assert not (tmp_path / "run" / "skipped_files.txt").exists()


def test_what_the_holes_hold_changes_no_bit_of_a_run(tmp_path: Path) -> None:
    """Masks beside the pictures; below them are black, white and noise."""
    runs = []
    for name in ("black", "white", "noise"):
        data = with_borders(tmp_path / name)
        for path in sorted(data.iterdir()):
            pixels = np.asarray(Image.open(path)).copy()
            has_data = pixels.any(axis=2)
            Image.fromarray(np.where(has_data, 255, 0).astype(np.uint8)).save(
                path.with_name(f"{path.stem}_mask.png")
            )
            rng = np.random.default_rng(0)
            below = {"black": 0, "white": 255, "noise": rng.integers(0, 256, pixels.shape)}[name]
            pixels = np.where(has_data[..., None], pixels, below).astype(np.uint8)
            Image.fromarray(pixels).save(path)
        runs.append(tmp_path / f"run-{name}")
        log = tmp_path / "log"
        command = arguments(data, runs[-1], data__valid_mask="{stem}_mask.png")
        assert run(command, log, before=without_pictures) == DONE, log.read_text()
        assert "24 files: 12 used, 12 masks of others." in log.read_text()
    for other in runs[1:]:
        assert_same_run(other, runs[0])


def test_a_killed_run_on_pictures_with_holes_goes_on_bit_for_bit(tmp_path: Path) -> None:
    data, log = with_borders(tmp_path / "data"), tmp_path / "log"
    changes = {"data__invalid": 0, "data__workers": 2}
    whole = arguments(data, tmp_path / "whole", **changes)
    assert run(whole, log, before=without_pictures) == DONE, log.read_text()
    parts = arguments(data, tmp_path / "parts", **changes)

    stop = signal_in("loss", 4, signal.SIGTERM)
    assert run(parts, log, before=stop) == INTERRUPTED, log.read_text()
    assert run(parts, log, before=without_pictures) == DONE, log.read_text()
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_run_that_began_before_fullest_crops_goes_on_with_its_own(tmp_path: Path) -> None:
    """Its config.yaml does not know the setting, and it took the first crop that was half full."""
    data, log = with_borders(tmp_path / "data"), tmp_path / "log"
    before = {"data__invalid": 0, "data__fullest_crops": "false"}
    whole = arguments(data, tmp_path / "whole", **before)
    assert run(whole, log, before=without_pictures) == DONE, log.read_text()
    parts = tmp_path / "parts"
    stop = signal_in("loss", 4, signal.SIGTERM)
    assert run(arguments(data, parts, **before), log, before=stop) == INTERRUPTED
    config = parts / "config.yaml"
    lines = config.read_text().splitlines(keepends=True)
    kept = [line for line in lines if "fullest_crops" not in line]
    assert len(kept) == len(lines) - 1
    config.write_text("".join(kept))
    today = arguments(data, parts, data__invalid=0)
    assert run(today, log, before=without_pictures) == DONE, log.read_text()
    assert_same_run(parts, tmp_path / "whole")
    other = arguments(data, tmp_path / "other", data__invalid=0)
    assert run(other, log, before=without_pictures) == DONE, log.read_text()
    losses = [lines_without_clock(tmp_path / name)[-1] for name in ("whole", "other")]
    assert losses[0] != losses[1], "the rules chose the same crops, and this shows nothing"


def test_a_cache_changes_no_bit_of_a_run_that_reads_reduced_pictures(tmp_path: Path) -> None:
    data, log = with_borders(tmp_path / "data"), tmp_path / "log"
    changes = {"data__invalid": 0, "data__cache": tmp_path / "cache", "data__cache_side": 80}
    for name in ("first", "second"):
        command = arguments(data, tmp_path / name, **changes)
        assert run(command, log, before=without_pictures) == DONE, log.read_text()
    assert_same_run(tmp_path / "second", tmp_path / "first")


@pytest.mark.ddp
def test_however_a_step_is_split_its_loss_and_weights_are_the_same(tmp_path: Path) -> None:
    """Images of one batch have other numbers of scored pixels; each of them weighs the same."""
    data, log = with_borders(tmp_path / "data"), tmp_path / "log"
    changes = {"data__invalid": 0}
    whole = arguments(data, tmp_path / "whole", **changes)
    assert run(whole, log, before=without_pictures) == DONE, log.read_text()
    split = {"train__batch_size": 1, "train__accumulate": 4}
    command = arguments(data, tmp_path / "split", **changes, **split)
    assert run(command, log, before=without_pictures) == DONE, log.read_text()
    command = arguments(data, tmp_path / "two", **changes, train__batch_size=2)
    assert run_together(command, log, 2, before=without_pictures) == [DONE] * 2, log.read_text()
    expected = final_state(tmp_path / "whole")["model"]
    losses = [line["loss"] for line in lines_without_clock(tmp_path / "whole") if "loss" in line]
    for name in ("split", "two"):
        found = final_state(tmp_path / name)["model"]
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=2e-5, msg=key)
        lines = lines_without_clock(tmp_path / name)
        others = [line["loss"] for line in lines if "loss" in line]
        assert others == pytest.approx(losses, rel=1e-4)


def test_files_without_enough_data_are_skipped_listed_and_too_many_stop_the_run(
    tmp_path: Path,
) -> None:
    data, log = with_borders(tmp_path / "data", 20), tmp_path / "log"
    for number in (3, 8):
        path = data / f"picture-{number:03d}.png"
        pixels = np.asarray(Image.open(path)).copy()
        pixels[:, :90] = 0
        Image.fromarray(pixels).save(path)
    few = arguments(data, tmp_path / "few", data__invalid=0, data__max_skipped_share=0.2)
    assert run(few, log, before=without_pictures) == DONE, log.read_text()
    listed = (tmp_path / "few" / "skipped_files.txt").read_text().splitlines()
    assert [line.split("\t")[0].rpartition("/")[2] for line in listed] == [
        "picture-003.png",
        "picture-008.png",
    ]
    assert all("none of 26 crops has data in 9 of 16 patches" in line for line in listed)
    strict = arguments(data, tmp_path / "strict", data__invalid=0, data__max_skipped_share=0.01)
    assert run(strict, log, before=without_pictures) == MISTAKE
    assert "files cannot be used" in log.read_text()
    assert "mask.min_valid 0.5 need" in log.read_text()


def test_a_run_without_holes_is_the_same_whether_they_are_looked_for_or_not(
    tmp_path: Path,
) -> None:
    data, log = tmp_path / "data", tmp_path / "log"
    for path in write_pictures(data, 10, side=96):
        Image.fromarray(np.maximum(np.asarray(Image.open(path)), 1)).save(path)
    for name, settings in (
        ("plain", {}),
        ("off", {"data__holes": "false"}),
        ("asked", {"data__invalid": 0, "mask__min_valid": 0.9}),
    ):
        command = arguments(data, tmp_path / name, **settings)
        assert run(command, log, before=without_pictures) == DONE, log.read_text()
    for name in ("off", "asked"):
        assert_same_run(tmp_path / name, tmp_path / "plain")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"data.invalid": ".nan"}, "data.invalid: got nan, expected a finite number"),
        ({"data.invalid": "[]"}, "data.invalid: got [], expected a finite number"),
        ({"data.invalid": "black"}, "data.invalid: got 'black', expected a number"),
        ({"data.valid_mask": "mask.png"}, "data.valid_mask: got 'mask.png', expected a file that"),
        ({"data.valid_mask": "{name}"}, "data.valid_mask: got '{name}', expected a file that"),
        ({"data.valid_mask": "{stam}.png"}, "data.valid_mask: got '{stam}.png', expected"),
        ({"data.valid_mask": "{stem}.msk"}, "data.valid_mask: none of the 4 images has a mask at"),
        ({"mask.min_valid": 0}, "mask.min_valid: got 0"),
        ({"mask.min_valid": 1.5}, "mask.min_valid: got 1.5"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_starts(
    tmp_path: Path,
    setting: dict[str, object],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from fcmae.__main__ import main

    write_pictures(tmp_path / "data", 4)
    command = arguments(tmp_path / "data", tmp_path / "run")
    assert main([*command, *options(setting, {})]) == MISTAKE
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
