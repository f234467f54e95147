"""PNG pictures of a run: reconstructions of images, and the curve of the loss.

Whoever draws gets a figure from `new_figure`: what only computes does without matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fcmae.evaluation.features import evaluating
from fcmae.model.autoencoder import FCMAE
from fcmae.model.patches import unpatchify
from fcmae.runs.durable import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("original", "what the encoder sees", "prediction", "pasted into the original")
BLANK = (0.80, 0.84, 0.90)  # a pale blue that grey pictures do not contain
HATCHING = ((0.96, 0.84, 0.64), (0.72, 0.42, 0.20))  # stripes in colours as far from grey
STRIPES_PER_SIDE = 28
CELL_INCHES = 2.0
DPI = 120
NORMALIZED_NOTE = (
    "The model predicts each hidden patch up to its brightness and contrast; "
    "these two are taken from the original."
)
HOLES_NOTE = "Hatched pixels have no data: they are neither seen nor scored."
PLAIN_NOTE = "Hidden patches are drawn as predicted; nothing is taken from the original."
SMOOTHING_POINTS = 10  # on either side, at most, of the smoothed curve


def draw_reconstructions(
    model: FCMAE,
    images: Tensor,
    visible: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    path: Path,
    names: Sequence[str],
    valid: Tensor | None = None,
    finish: Callable[[Callable[[], None]], None] = lambda draw: draw(),
) -> None:
    """Write a PNG with a row per image: original, masked, prediction, both pasted together.

    Predictions are shown at hidden patches only: those of visible patches are not trained.
    One channel is drawn grey, two as their mean, three as colours; of more, the first three.

    Args:
        model: run in evaluation mode; its modes come back as they were.
        images: [N, C, H, W], normalised, on any device.
        visible: LongTensor [N, K] of patch indices.
        mean: per channel on the 0..1 scale, as the images were normalised with.
        std: as `mean`.
        path: the PNG; its folder is created; replaced as a whole.
        names: N captions.
        valid: bool [N, 1, H, W], False where an image has no data, which is hatched; or None.
        finish: is given the drawing, which needs the model no more, to do it or have it done.
    """
    cells = reconstruct(model, images, visible, mean, std, valid)
    note = NORMALIZED_NOTE if model.normalize_targets else PLAIN_NOTE
    hidden_share = 1 - visible.shape[1] / model.num_patches
    note = f"{100 * hidden_share:.0f} % of the patches are hidden. {note}"
    if valid is not None and not valid.all():
        note += f"\n{HOLES_NOTE}"
    finish(lambda: save_figure(_grid(cells, names, note), path))


def reconstruct(
    model: FCMAE,
    images: Tensor,
    visible: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    valid: Tensor | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return original, masked, prediction and both pasted: each [N, H, W, 3] of 0..1.

    Pixels without data are hatched in all of them; no prediction is shown of a patch with too
    few others, since none is trained.

    Arguments as those of `draw_reconstructions`.
    """
    device = next(model.parameters()).device
    images = images.to(device)
    valid = None if valid is None else valid.to(device)
    with evaluating(model), torch.no_grad():
        out = model(images, visible.to(device), valid=valid)
        pasted = model.reconstruct(out, images, valid)
    is_hidden = is_predicted = _hidden_pixels(out.is_masked, model)  # [N, H, W, 1]
    if valid is not None:
        is_predicted = _hidden_pixels(out.is_masked & model.valid_patches(valid), model)
    original = _to_colours(images, mean, std)
    reconstruction = _to_colours(pasted, mean, std)
    blank = np.array(BLANK)
    cells = (
        original,
        np.where(is_hidden, blank, original),
        np.where(is_predicted, reconstruction, blank),
        reconstruction,
    )
    if valid is None:
        return cells
    first, second, third, fourth = (_hatched(cell, valid) for cell in cells)
    return first, second, third, fourth


def _hatched(pictures: np.ndarray, valid: Tensor) -> np.ndarray:
    """Return pictures [N, H, W, 3] with diagonal stripes where they have no data."""
    return np.where(valid.permute(0, 2, 3, 1).cpu().numpy(), pictures, hatching(*valid.shape[2:]))


def hatching(height: int, width: int) -> np.ndarray:
    """Return diagonal stripes [H, W, 3] of 0..1, which stand for pixels without data."""
    thickness = max(1, min(height, width) // STRIPES_PER_SIDE // 2)
    diagonal = (np.arange(height)[:, None] + np.arange(width)) // thickness % 2
    return np.array(HATCHING)[diagonal]


def draw_loss_curve(
    metrics: Iterable[Mapping[str, Any]], path: Path, *, normalize_targets: bool
) -> None:
    """Write a PNG of the loss over the steps.

    Args:
        metrics: lines of metrics.jsonl; those without a finite `loss` are passed over, and the
            last line of a step counts.
        path: the PNG; its folder is created; replaced as a whole.
        normalize_targets: draw the line at 1.0, the loss of predicting each patch's mean.
    """
    losses = {
        int(line["step"]): float(line["loss"])
        for line in metrics
        if line.get("loss") is not None and math.isfinite(line["loss"])
    }
    steps = sorted(losses)
    values = np.array([losses[step] for step in steps])
    figure = new_figure((7, 4), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    if steps:
        axes.plot(steps, values, color="#9bb7d9", linewidth=1, label="loss")
        axes.plot(steps, smooth(values), color="#1f4e8c", label="smoothed")
    if normalize_targets:
        axes.axhline(1.0, color="#b03030", linestyle="--", label="predicting each patch's mean")
    axes.set_xlabel("step")
    axes.set_ylabel("loss at hidden patches")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def _hidden_pixels(is_masked: Tensor, model: FCMAE) -> np.ndarray:
    """Return bool [N, H, W, 1], True at pixels of hidden patches, from [N, L]."""
    pixels = is_masked.unsqueeze(-1).expand(-1, -1, model.patch_size**2)
    return unpatchify(pixels, model.patch_size, model.grid)[:, 0, :, :, None].cpu().numpy()


def _to_colours(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Undo the normalisation: [N, C, H, W] -> [N, H, W, 3] of 0..1."""
    scale, shift = (torch.tensor(tuple(v))[None, :, None, None] for v in (std, mean))
    plain = images.float().cpu() * scale + shift
    channels = plain.shape[1]
    if channels < 3:
        plain = plain.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    return plain[:, :3].clamp(0, 1).permute(0, 2, 3, 1).numpy()


def _grid(cells: Sequence[np.ndarray], names: Sequence[str], note: str) -> Figure:
    """Lay out columns [N, H, W, 3] as a grid of pictures of exact proportions."""
    num_images, height_px, width_px = cells[0].shape[:3]
    # The longer side fills the cell, so that strips of any proportion stay readable.
    height = CELL_INCHES * min(1.0, height_px / width_px)
    width = CELL_INCHES * min(1.0, width_px / height_px)
    gap, caption, title = 0.08, 0.20, 0.28
    footer = 0.18 + 0.12 * len(note.splitlines())
    pitch = CELL_INCHES + gap  # also of narrow pictures: titles and the note need the room
    total_width = len(cells) * pitch + gap
    total_height = title + num_images * (height + caption) + footer
    figure = new_figure((total_width, total_height), dpi=DPI)

    def add(row: int, column: int) -> Axes:
        x = gap + column * pitch + (CELL_INCHES - width) / 2
        y = total_height - title - (row + 1) * (height + caption) + caption
        area = (x / total_width, y / total_height, width / total_width, height / total_height)
        axes = figure.add_axes(area)
        axes.set_axis_off()
        return axes

    for column, pictures in enumerate(cells):
        for row, picture in enumerate(pictures):
            axes = add(row, column)
            axes.imshow(picture, interpolation="antialiased")
            if row == 0:
                axes.set_title(COLUMNS[column], fontsize=8, pad=4)
            if column == 0:
                # Captions are file names: no formulas in them.
                axes.text(
                    0,
                    -0.04 / height,
                    _shorten(names[row]),
                    transform=axes.transAxes,
                    fontsize=6.5,
                    color="0.35",
                    verticalalignment="top",
                    parse_math=False,
                )
    figure.text(0.5, 0.09 / total_height, note, fontsize=7.5, horizontalalignment="center")
    return figure


def _shorten(name: str, longest: int = 60) -> str:
    """Return a printable caption whose end, the file's name, survives."""
    shown = printable(name)
    return shown if len(shown) <= longest else "..." + shown[3 - longest :]


def printable(name: str) -> str:
    """Return a name for a figure: of its bytes, what is UTF-8, and ? for all that has no shape."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def smooth(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the mean of each value and its neighbours, a twentieth of all on either side.

    They are SMOOTHING_POINTS at most, so that a short curve keeps its shape; towards the ends as
    many before as behind, so that the curve stays where it is.
    """
    places = np.arange(len(values))
    most = min(SMOOTHING_POINTS, -(-len(values) // 20))
    reach = np.minimum(np.minimum(places, places[::-1]), most)
    total = np.cumsum(np.insert(values, 0, 0.0))
    return (total[places + reach + 1] - total[places - reach]) / (2 * reach + 1)


def new_figure(inches: tuple[float, float], dpi: int = DPI, layout: Any = None) -> Figure:
    """Return an empty figure, (width, height) in inches."""
    from matplotlib.figure import Figure  # takes as long to import as some commands take

    return Figure(figsize=inches, dpi=dpi, layout=layout)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG; its folder is created; replaced as a whole."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    write_atomically(path, lambda partial: figure.savefig(partial, format="png"))
