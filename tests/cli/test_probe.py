"""`fcmae probe`: three feature sets side by side, and nothing without labels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from speck import SPECK
from tiny_run import make_pictures, make_run

from fcmae.__main__ import main
from fcmae.errors import MISTAKE


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    make_run(folder, name=SPECK)
    return folder


def probe(*arguments: object) -> int:
    return main(["probe", *map(str, arguments), "--workers", "0", "--device", "cpu"])


def test_probe_prints_all_three_sets_and_what_they_allow_to_say(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_pictures(tmp_path / "data", 8)
    (data / "dark" / "broken.png").write_bytes(b"no picture")
    assert probe(run, data, "--labels", 6, "--draws", 3) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "broken.png': no picture" in lines[0]
    assert lines[1] == f"Frozen features of {run} after 7 steps:"
    assert lines[2].split() == ["kNN", "linear"]
    starts = [line.split("  ")[0] for line in lines[3:6]]
    assert starts == ["pretrained", "untrained", "raw pixels"]
    # Dark and bright pictures: raw pixels tell them apart without fail.
    assert lines[5].split()[2:] == ["100.0", "+-", "0.0", "100.0", "+-", "0.0"]
    assert "3 draws of 6 labels, 10 test images each" in lines[6]
    assert [line.split(":")[0] for line in lines[7:11]] == ["kNN", "kNN", "linear", "linear"]
    assert "other seeds were not tried" in lines[11]


def test_probe_repeats_itself(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_pictures(tmp_path / "data", 4)
    assert probe(run, data, "--labels", 4) == 0
    first = capsys.readouterr().out
    assert probe(run, data, "--labels", 4) == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["{data}/dark"],
            "/dark' has its images directly in it, none in a folder per class; labels are",
        ),
        (["{data}", "--draws", "2"], "draws: got 2, expected 3 or more: fewer show no spread."),
        (["{data}", "--labels", "1"], "labels: got 1, expected 2 or more"),
        (["{data}", "--labels", "many"], "--labels: got 'many', expected a whole number."),
        (["{data}", "--label", "type"], "data.label: 'type' chooses a label of elpv"),
        (["nowhere"], "DATA: 'nowhere' does not exist"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str],
    message: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = make_pictures(tmp_path / "data", 2)
    assert probe(run, *(argument.format(data=data) for argument in arguments)) == MISTAKE
    error = capsys.readouterr().err
    assert error.startswith("fcmae: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_images_of_one_group_are_never_on_both_sides(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six copies of one picture per patient: a neighbour on the other side would give it away."""
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for patient in range(8):
            pixels = rng.integers(0, 256, (64, 96), dtype=np.uint8)
            for copy in range(4):
                Image.fromarray(pixels).save(tmp_path / label / f"p{patient}{label}-{copy}.png")
    assert probe(run, tmp_path, "--labels", 32, "--group", "(p[0-9][ab])-") == 0
    apart = capsys.readouterr().out
    assert "Images of one group of '(p[0-9][ab])-' are never on both sides." in apart
    assert probe(run, tmp_path, "--labels", 32) == 0
    together = capsys.readouterr().out

    def raw_pixels(text: str) -> float:
        return float(text[text.index("\nraw pixels") :].split()[2])

    assert raw_pixels(together) > 85
    assert raw_pixels(apart) < 75
    assert probe(run, tmp_path, "--group", "(q[0-9])") == MISTAKE
    assert "--group: '(q[0-9])' matches no path" in capsys.readouterr().err


def test_a_set_that_is_cut_in_parts_is_tested_on_its_part_for_that(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, count in (("Train", 5), ("val", 3), ("test", 4)):
        make_pictures(tmp_path / part, count)
    assert probe(run, tmp_path, "--labels", 4) == 0
    said = capsys.readouterr().out
    assert "of 4 labels, 6 test images each" in said
    assert "Labels are drawn from Train/, the test is all of val/." in said
