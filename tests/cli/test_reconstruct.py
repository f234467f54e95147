"""`fcmae reconstruct`: which files it draws, reproducibly, and what it refuses."""

from pathlib import Path

import pytest
from speck import SPECK
from tiny_run import make_pictures, make_run

from fcmae.__main__ import main
from fcmae.errors import MISTAKE


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    make_run(folder, name=SPECK)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_pictures(tmp_path / "images", 2)


def reconstruct(*arguments: object) -> int:
    return main(["reconstruct", *map(str, arguments), "--workers", "0", "--device", "cpu"])


def test_grids_are_drawn_for_all_images_and_the_broken_one_is_named(
    run: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "dark" / "broken.png").write_bytes(b"no picture")
    assert reconstruct(run, images, "--batch_size", 3) == 0
    out = capsys.readouterr().out
    drawn = sorted(path.name for path in (run / "reconstructions").iterdir())
    assert drawn == ["images-0001.png", "images-0002.png"]
    assert all(str(run / "reconstructions" / name) in out for name in drawn)
    assert "broken.png': no picture in a format that can be read here" in out
    assert "4 images reconstructed by the model after 7 steps." in out


def test_the_seed_and_the_ratio_decide_the_picture(run: Path, images: Path, tmp_path: Path) -> None:
    one = images / "dark" / "0.png"

    def picture(name: str, *options: object) -> bytes:
        assert reconstruct(run, one, "--output", tmp_path / name, *options) == 0
        return (tmp_path / name / "images-0001.png").read_bytes()

    first = picture("a", "--seed", 3)
    assert first == picture("b", "--seed", 3)
    assert first != picture("c", "--seed", 4)
    assert first != picture("d", "--seed", 3, "--mask.ratio", 0.8)


def test_several_paths_and_a_limit(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [run, images / "dark", images / "bright" / "0.png", "--output", tmp_path / "out"]
    assert reconstruct(*arguments, "--limit", 1) == 0
    assert "Drawing the first 1 of 3 images (--limit)." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png"], "IMAGES: 'nowhere.png' does not exist"),
        (["{images}", "--mask.ratio", "1"], "mask.ratio: 1.0 of 6 patches leaves none visible"),
        (["{images}", "--mask.ratio", "most"], "--mask.ratio: got 'most', expected a number."),
        (["{images}", "--mask.ration", "0.5"], "'--mask.ration'. Did you mean --mask.ratio?"),
        (["{images}", "--limit", "0"], "--limit: got 0, expected 1 or more."),
        (["{images}", "--batch_size", "0"], "--batch_size: got 0, expected 1 or more."),
        (["{images}", "--output", "{images}/dark/0.png"], "cannot be written"),
        ([], "the following arguments are required: images"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(
    arguments: list[str],
    message: str,
    run: Path,
    images: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [argument.format(images=images) for argument in arguments]
    assert reconstruct(run, *filled) == MISTAKE
    error = capsys.readouterr().err
    assert error.startswith("fcmae: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_no_readable_image_is_an_error(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    assert reconstruct(run, tmp_path / "a.png") == MISTAKE
    assert "none of the 1 images could be decoded" in capsys.readouterr().err
