"""The health of a run as one PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcmae.evaluation.health.drift import NAME
from fcmae.evaluation.health.verdict import first_epoch, verdict
from fcmae.evaluation.pictures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = Sequence[Mapping[str, Any]]

TRIVIAL = {
    "health/loss_patch_mean": ("patch mean", "#b03030"),
    "health/loss_blurred_surroundings": ("blurred surroundings", "#c07a20"),
    "health/loss_nearest_patch": ("nearest visible patch", "#7a7a7a"),
}
HIGHEST_LOSS = 1.5  # above it lie only predictors that nobody needs to beat
BLUE = "#1f4e8c"
DRIFT = NAME.format("")


def draw_health(lines: Lines, total_steps: int, path: Path, *, has_decoder: bool = True) -> None:
    """Write a PNG of every health measure over the steps.

    Args:
        lines: of metrics.jsonl; those without health are passed over.
        total_steps: of the whole run.
        path: the PNG; its folder is created; replaced as a whole.
        has_decoder: whether the decoder started from weights where the encoder did.
    """
    checks = [line for line in lines if "health/loss" in line]
    has_start = any(name.startswith(DRIFT) for line in checks for name in line)
    columns = 4 if has_start else 3
    figure = new_figure((4 * columns, 7.2), dpi=110, layout="constrained")
    axes = figure.subplots(2, columns)
    losses, ratios, rank, diversity, channels, norms, *more = axes.flat
    _draw_losses(losses, lines, checks)
    _draw_group(ratios, checks, "health/loss_at_", "mask ratio ")
    _finish(ratios, "held-out loss by mask ratio", "loss")
    _draw_group(rank, checks, "health/rank_me", "")
    _finish(rank, "RankMe (higher: more dimensions used)", "effective rank of the features")
    rank.set_ylim(bottom=1)
    _draw_group(diversity, checks, "health/diversity_stage_", "stage ")
    _finish(diversity, "channel diversity after GRN (near 0: collapse)", "cosine distance")
    diversity.set_ylim(0, max(0.55, diversity.get_ylim()[1]))
    _draw_group(channels, checks, "health/dead_stage_", "dead, stage ", scale=100)
    _draw_group(
        channels, checks, "health/saturated_stage_", "saturated, stage ", scale=100, style=":"
    )
    _finish(channels, "dead and saturated channels before GRN", "% of the channels", columns=2)
    channels.set_ylim(-0.5, max(5.0, 1.5 * channels.get_ylim()[1]))
    _draw_group(norms, checks, "health/grn_gamma_stage_", "gamma, stage ")
    _draw_group(norms, checks, "health/grn_beta_stage_", "beta, stage ", style=":")
    if norms.lines:
        _finish(norms, "L2 norms of GRN's weights", "norm", columns=2)
        norms.set_ylim(0, max(0.01, 1.5 * norms.get_ylim()[1]))  # room for the legend
    else:
        norms.set_axis_off()
        norms.text(0.5, 0.5, "this encoder has no GRN", ha="center", color="0.4")
    for drawn in more[:1]:
        _draw_group(drawn, checks, DRIFT, "stage ")
        _finish(drawn, "features as those of the start weights", "CKA (1: the same)")
        lowest = min(line.get_ydata().min() for line in drawn.lines)
        reach = max(1 - lowest, 0.01)
        drawn.set_ylim(lowest - 0.1 * reach, 1 + 0.05 * reach)
    for unused in more[1:]:
        unused.set_axis_off()
    for drawn in axes.flat:
        drawn.set_xlim(-0.02 * total_steps, 1.02 * total_steps)
    says = f"Held-out loss: {verdict(lines, total_steps)}"
    began = first_epoch(lines, has_decoder=has_decoder)
    says += f" {began[:1].upper()}{began[1:]}"
    figure.suptitle(textwrap.fill(says.strip(), 40 * columns), fontsize=10)
    save_figure(figure, path)


def _draw_losses(axes: Axes, lines: Lines, checks: Lines) -> None:
    training = [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]
    if training:
        axes.plot(*zip(*training, strict=True), color="#9bb7d9", linewidth=1, label="training")
    _plot(axes, checks, "health/loss", label="held-out", color=BLUE)
    for name, (label, colour) in TRIVIAL.items():
        values = [line[name] for line in checks if line.get(name) is not None]
        if values and values[0] <= HIGHEST_LOSS:
            axes.axhline(values[0], color=colour, linestyle="--", linewidth=1, label=label)
        elif values:  # told, not drawn: it would press all other lines together
            axes.plot([], [], "--", color=colour, label=f"{label}: {values[0]:.2f}")
    _finish(axes, "loss at hidden patches", "loss")
    axes.set_ylim(top=min(axes.get_ylim()[1], HIGHEST_LOSS))


def _draw_group(
    axes: Axes, checks: Lines, prefix: str, label: str, *, scale: float = 1.0, style: str = "-"
) -> None:
    from matplotlib import colormaps

    names = sorted({name for line in checks for name in line if name.startswith(prefix)})
    for number, name in enumerate(names):
        what = label + name.removeprefix(prefix)
        colour = colormaps["viridis"](0.9 * number / max(1, len(names) - 1))
        _plot(axes, checks, name, label=what, scale=scale, style=style, color=colour)


def _plot(
    axes: Axes,
    checks: Lines,
    name: str,
    *,
    label: str,
    color: Any,
    scale: float = 1.0,
    style: str = "-",
) -> None:
    points = [(line["step"], scale * line[name]) for line in checks if line.get(name) is not None]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, style, color=color, marker=".", label=label or None)


def _finish(axes: Axes, title: str, unit: str, columns: int = 1) -> None:
    axes.set_title(title, fontsize=10)
    axes.tick_params(labelsize=8)
    axes.set_xlabel("step", fontsize=8)
    axes.set_ylabel(unit, fontsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, ncols=columns, framealpha=0.8, edgecolor="none")
