"""The figures of a report: vector pictures by matplotlib, pictures of images by Pillow."""

import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from fcmae.evaluation import Mean, PairedDifference, means
from fcmae.evaluation.pictures import smooth

SIZE = (4.8, 3.3)  # inches; read at the width of a phone, too
STYLE = {"font.size": 10, "svg.hashsalt": "fcmae", "axes.grid": True, "grid.alpha": 0.3}
BASELINE = "#8a4b08"
MOST_TICKS = 7  # beyond it matplotlib chooses rounder numbers
SMOOTHED = "Strong lines are means over neighbours, a twentieth of the run on either side at most."
GAP_PX = 4
LARGEST_SIDE_PX = 160  # of one image
MOST_VECTOR_POINTS = 2000  # of a figure; more become pixels, or the page would be huge


def colours(count: int) -> list[Any]:
    """Return colours from dark to bright that read on white."""
    return [mpl.colormaps["viridis"](place) for place in np.linspace(0.0, 0.82, max(count, 1))]


def draw_means(
    tables: Mapping[str, Mapping[float | str, Mapping[int, float]]],
    *,
    x_name: str,
    y_name: str,
    baseline: float | None = None,
    baseline_name: str = "untrained encoder",
    intervals: Mapping[str, Mapping[float | str, Mean]] | None = None,
) -> bytes:
    """Return an SVG of means with intervals, and the single seeds as points.

    Args:
        tables: {series: {x: {seed: value}}}; texts as x are categories.
        x_name, y_name: titles of the axes.
        baseline: the height of a horizontal line, or None.
        baseline_name: what it is.
        intervals: {series: {x: mean}} where a table beside the figure has them; None takes the
            spread of each series from its own seeds.
    """
    figure, axes = _new()
    order = list(dict.fromkeys(x for table in tables.values() for x in table))
    is_category = any(isinstance(x, str) for x in order)
    places = {x: float(index) if is_category else float(x) for index, x in enumerate(order)}
    spread = 0.06 if is_category else 0.004 * (max(places.values()) - min(places.values()) or 1)
    for number, (colour, (name, table)) in enumerate(
        zip(colours(len(tables)), tables.items(), strict=True)
    ):
        shift = spread * (number - (len(tables) - 1) / 2)
        found = means(table) if intervals is None else intervals[name]
        xs = [places[x] + shift for x in found]
        ys = [mean.value for mean in found.values()]
        errors = [mean.half_width or 0.0 for mean in found.values()]
        line = "" if is_category else "-"
        axes.errorbar(
            xs, ys, errors, fmt="o" + line, color=colour, capsize=4, label=name or None, zorder=3
        )
        for x, values in table.items():
            axes.plot(
                [places[x] + shift + spread / 2] * len(values),
                list(values.values()),
                ".",
                color=colour,
                alpha=0.45,
            )
    if baseline is not None:
        axes.axhline(baseline, color=BASELINE, linestyle="--", label=baseline_name)
    if is_category:
        is_long = max(map(len, map(str, order))) * len(order) > 40
        axes.set_xticks(
            range(len(order)),
            [str(x) for x in order],
            rotation=25 if is_long else 0,
            ha="right" if is_long else "center",
        )
        axes.set_xlim(-0.5, len(order) - 0.5)
    elif len(order) <= MOST_TICKS:
        axes.set_xticks(sorted(places.values()), [f"{x:.3g}" for x in sorted(places.values())])
    return _finish(figure, axes, x_name, y_name)


def draw_differences(
    gaps: Mapping[str, PairedDifference], score: str = "balanced accuracy"
) -> bytes:
    """Return an SVG of differences with their intervals, one below the other, beside a line at 0.

    Those that exceed the noise are filled; those without an interval are a point.

    Args:
        gaps: differences of two by what they are called.
        score: what has the points.
    """
    figure, axes = _new()
    for place, gap in enumerate(gaps.values()):
        axes.errorbar(
            [gap.value],
            [place],
            xerr=[gap.half_width or 0.0],
            fmt="o",
            color=colours(2)[0],
            markerfacecolor=colours(2)[0] if gap.exceeds_noise else "white",
            capsize=3,
        )
    axes.axvline(0, color=BASELINE, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(gaps)), list(gaps), fontsize=8)
    axes.set_ylim(len(gaps) - 0.5, -0.5)
    figure.set_size_inches(1.6 * SIZE[0], 0.9 + 0.26 * len(gaps))
    return _finish(figure, axes, f"difference in points of {score}", "")


def draw_cost(
    points: Mapping[str, Sequence[tuple[float, float]]], *, x_name: str, y_name: str
) -> bytes:
    """Return an SVG of one point per cell: {setting: (cost, score) of each seed}."""
    figure, axes = _new()
    for colour, (name, pairs) in zip(colours(len(points)), points.items(), strict=True):
        xs, ys = zip(*pairs, strict=True) if pairs else ((), ())
        axes.plot(xs, ys, "o", color=colour, label=name)
    return _finish(figure, axes, x_name, y_name)


def draw_lines(
    curves: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]],
    *,
    y_name: str,
    level: tuple[float, str] | None = None,
    noisy: Collection[str] = (),
) -> bytes:
    """Return an SVG of curves over the steps: {setting: (steps, values) of each seed}.

    Args:
        curves: one colour per setting.
        y_name: title of the vertical axis.
        level: a horizontal line and its name.
        noisy: settings whose values are drawn faintly, behind the means of neighbours.
    """
    figure, axes = _new()
    for colour, (name, seeds) in zip(colours(len(curves)), curves.items(), strict=True):
        for number, (steps, values) in enumerate(seeds):
            marker = "o" if len(steps) < 3 else None
            if name in noisy:
                axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
            axes.plot(
                steps,
                smooth(values) if name in noisy else values,
                color=colour,
                linewidth=1.3,
                linestyle=("-", "--", ":", "-.")[number % 4],
                marker=marker,
                label=name if number == 0 else None,
            )
    if level is not None:
        axes.axhline(level[0], color="#b03030", linestyle="--", linewidth=1, label=level[1])
    return _finish(figure, axes, "step", y_name)


def draw_histogram(
    values: Mapping[str, np.ndarray], *, x_name: str, y_name: str, bins: int = 40
) -> bytes:
    """Return an SVG of histograms, {series: values}; wide ranges have a logarithmic axis."""
    figure, axes = _new()
    everything = np.concatenate([np.asarray(part, float) for part in values.values()])
    low, high = float(everything.min()), float(everything.max())
    is_wide = low > 0 and high / low > 20
    edges = (np.geomspace if is_wide else np.linspace)(low, high if high > low else low + 1, bins)
    for colour, (name, part) in zip(colours(len(values)), values.items(), strict=True):
        axes.hist(
            part,
            edges.tolist(),
            histtype="stepfilled",
            color=colour,
            alpha=0.55,
            label=name or None,
        )
    if is_wide:
        axes.set_xscale("log")
    return _finish(figure, axes, x_name, y_name)


def draw_points(series: Mapping[str, np.ndarray]) -> bytes:
    """Return an SVG of points in the plane, {series: [N, 2]}; later ones lie above."""
    figure, axes = _new()
    for place, (colour, (name, points)) in enumerate(
        zip(colours(len(series)), series.items(), strict=True)
    ):
        axes.scatter(
            points[:, 0],
            points[:, 1],
            s=6 if place == 0 else 14,
            color=colour,
            alpha=0.5 if place == 0 else 0.9,
            linewidths=0,
            label=name,
            rasterized=len(points) > MOST_VECTOR_POINTS,
        )
    axes.set_xticks([])
    axes.set_yticks([])
    return _finish(figure, axes, "", "")


def image_rows(rows: Sequence[np.ndarray]) -> bytes:
    """Return a PNG of rows of uint8 images [N, H, W, 3], white between them."""
    count, height_px, width_px = rows[0].shape[:3]
    scale = min(1.0, LARGEST_SIDE_PX / max(height_px, width_px))
    width, height = round(width_px * scale), round(height_px * scale)
    pitch = width + GAP_PX, height + GAP_PX
    sheet = Image.new("RGB", (count * pitch[0] - GAP_PX, len(rows) * pitch[1] - GAP_PX), "white")
    for row, images in enumerate(rows):
        for column, pixels in enumerate(images):
            picture = Image.fromarray(pixels)
            if scale < 1:
                picture = picture.resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(picture, (column * pitch[0], row * pitch[1]))
    stream = io.BytesIO()
    sheet.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _new() -> tuple[Figure, Axes]:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.add_subplot()


def _finish(figure: Figure, axes: Axes, x_name: str, y_name: str) -> bytes:
    """Return the SVG; a legend of many entries goes below the axes."""
    axes.set_xlabel(x_name)
    axes.set_ylabel(y_name)
    axes.spines[["top", "right"]].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    if 1 <= len(names) <= 3:
        axes.legend(handles, names, frameon=False, fontsize=8.5)
    elif len(names) > 3:
        columns = 2 if max(map(len, names)) > 14 else 3
        figure.legend(
            handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5
        )
        figure.set_size_inches(SIZE[0], SIZE[1] + 0.22 * -(-len(names) // columns))
    return to_svg(figure)


def to_svg(figure: Figure) -> bytes:
    """Return a figure as SVG: of the same figure the same bytes."""
    stream = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()
