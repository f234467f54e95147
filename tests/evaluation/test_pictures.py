"""Pictures: what stands where, for any channels and shapes, and that files are whole."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from fcmae import FCMAE
from fcmae.evaluation import pictures
from fcmae.evaluation.pictures import (
    BLANK,
    COLUMNS,
    draw_loss_curve,
    draw_reconstructions,
    printable,
)


def make_model(
    in_chans: int, image_size: tuple[int, int] = (64, 96), normalize_targets: bool = True
) -> FCMAE:
    return FCMAE(
        "convnextv2_atto",
        image_size=image_size,
        in_chans=in_chans,
        decoder_dim=8,
        normalize_targets=normalize_targets,
    )


def draw(
    model: FCMAE, path: Path, num_images: int = 2, names: tuple[str, ...] = ("a", "b")
) -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(num_images, model.in_chans, *model.image_size, generator=rng)
    visible = torch.tensor([[0, 4], [1, 2]])[:num_images]
    statistics = [0.5] * model.in_chans, [0.2] * model.in_chans
    draw_reconstructions(model, images, visible, *statistics, path, names[:num_images])


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, to look into."""
    saved: list[Figure] = []
    save = pictures.save_figure

    def remember(figure: Figure, path: Path) -> None:
        saved.append(figure)
        save(figure, path)

    monkeypatch.setattr(pictures, "save_figure", remember)
    return saved


def cells(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


def test_the_four_columns_show_what_their_titles_say(tmp_path: Path, figures: list[Figure]) -> None:
    draw(make_model(3), tmp_path / "picture.png")
    (figure,) = figures
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == list(COLUMNS)
    original, masked, prediction, pasted = cells(figure)[::2]  # of the first image
    # Patches 0 and 4 of two rows by three are visible.
    is_visible = np.zeros((64, 96), dtype=bool)
    is_visible[:32, :32] = is_visible[32:, 32:64] = True
    np.testing.assert_array_equal(masked[is_visible], original[is_visible])
    assert (masked[~is_visible] == BLANK).all()
    assert (prediction[is_visible] == BLANK).all()
    np.testing.assert_array_equal(prediction[~is_visible], pasted[~is_visible])
    np.testing.assert_array_equal(pasted[is_visible], original[is_visible])
    assert np.abs(pasted - original)[~is_visible].max() > 0.01


def test_images_are_shown_on_their_own_scale(tmp_path: Path, figures: list[Figure]) -> None:
    model = make_model(3)
    plain = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    normalised = (plain - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    visible = torch.tensor([[0, 4]])
    draw_reconstructions(model, normalised, visible, mean, std, tmp_path / "p.png", ["a"])
    shown = torch.from_numpy(cells(figures[0])[0])
    torch.testing.assert_close(shown, plain[0].permute(1, 2, 0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("in_chans", [1, 2, 3, 7])
def test_any_number_of_channels_becomes_a_picture(
    in_chans: int, tmp_path: Path, figures: list[Figure]
) -> None:
    draw(make_model(in_chans), tmp_path / "picture.png")
    picture = cells(figures[0])[0]
    assert picture.shape == (64, 96, 3)
    is_grey = bool((picture[..., 0] == picture[..., 1]).all())
    assert is_grey == (in_chans < 3)


@pytest.mark.parametrize("image_size", [(32, 224), (224, 32), (64, 64)])
def test_pictures_keep_the_proportions_of_images(
    image_size: tuple[int, int], tmp_path: Path, figures: list[Figure]
) -> None:
    model = make_model(1, image_size)
    images, visible = torch.zeros(1, 1, *image_size), torch.tensor([[1, 2]])
    draw_reconstructions(model, images, visible, [0.5], [0.2], tmp_path / "p.png", ["a"])
    (figure,) = figures
    figure_width, figure_height = figure.get_size_inches()
    box = figure.axes[0].get_position()
    drawn = box.height * figure_height / (box.width * figure_width)
    assert drawn == pytest.approx(image_size[0] / image_size[1])
    for axes in figure.axes:
        place = axes.get_position()
        assert 0 <= place.x0 < place.x1 <= 1
        assert 0 <= place.y0 < place.y1 <= 1


@pytest.mark.parametrize(
    ("normalize_targets", "note"),
    [
        (True, "67 % of the patches are hidden. The model predicts each hidden patch up to its "
         "brightness and contrast; these two are taken from the original."),
        (False, "67 % of the patches are hidden. Hidden patches are drawn as predicted; nothing "
         "is taken from the original."),
    ],
)  # fmt: skip
def test_a_line_says_what_is_taken_from_the_original(
    normalize_targets: bool, note: str, tmp_path: Path, figures: list[Figure]
) -> None:
    draw(make_model(1, normalize_targets=normalize_targets), tmp_path / "picture.png")
    assert [text.get_text() for text in figures[0].texts] == [note]


def test_captions_survive_formulas_line_breaks_and_length(
    tmp_path: Path, figures: list[Figure]
) -> None:
    names = ("$x^$ \n\udcff", "long" * 30 + "end.png")
    draw(make_model(1), tmp_path / "picture.png", names=names)
    captions = [axes.texts[0].get_text() for axes in figures[0].axes if axes.texts]
    assert captions[0] == "$x^$ ?\ufffd"
    assert captions[1].endswith("longend.png")
    assert len(captions[1]) == 60


def test_the_file_is_a_whole_png_and_the_model_is_as_before(tmp_path: Path) -> None:
    model = make_model(1).train()
    path = tmp_path / "new" / "picture.png"
    draw(model, path)
    assert model.training
    assert model.encoder.training
    assert all(parameter.grad is None for parameter in model.parameters())
    with Image.open(path) as picture:
        picture.verify()
        assert picture.format == "PNG"
    assert [item.name for item in path.parent.iterdir()] == ["picture.png"]


def test_loss_curve_passes_over_lines_without_a_loss_and_repeated_steps(
    tmp_path: Path, figures: list[Figure]
) -> None:
    metrics = [
        {"step": 10, "loss": 5.0},
        {"step": 10, "loss": 1.0},
        {"step": 15, "knn_balanced_accuracy": 60.0},
        {"step": 20, "loss": float("nan")},
        {"step": 25, "loss": None},
        {"step": 30, "loss": 0.5},
        {"step": 20, "loss": 0.9},
    ]
    draw_loss_curve(metrics, tmp_path / "curve.png", normalize_targets=True)
    plain, smoothed, mean_line = figures[0].axes[0].lines
    assert plain.get_xydata().tolist() == [[10, 1.0], [20, 0.9], [30, 0.5]]
    assert smoothed.get_ydata().tolist() == pytest.approx([1.0, 0.8, 0.5])
    assert list(mean_line.get_ydata()) == [1.0, 1.0]
    assert mean_line.get_label() == "predicting each patch's mean"


def test_loss_curve_of_plain_targets_has_no_line_at_one(
    tmp_path: Path, figures: list[Figure]
) -> None:
    draw_loss_curve([{"step": 1, "loss": 3.0}], tmp_path / "curve.png", normalize_targets=False)
    assert len(figures[0].axes[0].lines) == 2


@pytest.mark.parametrize("normalize_targets", [True, False])
def test_loss_curve_without_any_loss_is_an_empty_picture(
    normalize_targets: bool, tmp_path: Path
) -> None:
    draw_loss_curve([], tmp_path / "curve.png", normalize_targets=normalize_targets)
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.size == (840, 480)


def test_names_in_figures_have_letters_only_whatever_their_bytes() -> None:
    assert printable("hell-\u00e4") == printable("hell-\udcc3\udca4") == "hell-\u00e4"
    assert printable("a\nb") == "a?b"
    assert "\udcff" not in printable("\udcff.png")
