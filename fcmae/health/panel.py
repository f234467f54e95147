"""The health of a run as one PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fcmae.health.verdict import verdict
from fcmae.pictures import save_figure

TRIVIAL = {
    "health/loss_patch_mean": ("patch mean", "#b03030"),
    "health/loss_blurred_surroundings": ("blurred surroundings", "#c07a20"),
    "health/loss_nearest_patch": ("nearest visible patch", "#7a7a7a"),
}


def draw_health(lines: Sequence[Mapping[str, Any]], total_steps: int, path: Path) -> None:
    """Write a PNG of every health measure over the steps.

    Args:
        lines: of metrics.jsonl; those without health are passed over.
        total_steps: of the whole run.
        path: the PNG; its folder is created; replaced as a whole.
    """
    checks = [line for line in lines if "health/loss" in line]
    figure = Figure(figsize=(12, 7), dpi=110, layout="constrained")
    axes = figure.subplots(2, 3)
    _draw_losses(axes[0, 0], lines, checks)
    _draw_group(axes[0, 1], checks, "health/loss_at_", "held-out loss by mask ratio")
    _draw_group(axes[0, 2], checks, "health/rank_me", "RankMe (effective rank of features)")
    _draw_group(
        axes[1, 0], checks, "health/diversity_stage_", "channel diversity by stage (0: collapse)"
    )
    _draw_group(axes[1, 1], checks, "health/dead_stage_", "dead (-) and saturated (:) channels")
    _draw_group(axes[1, 1], checks, "health/saturated_stage_", None, style=":")
    _draw_group(
        axes[1, 2], checks, "health/grn_gamma_stage_", "GRN weight norms: gamma (-), beta (:)"
    )
    _draw_group(axes[1, 2], checks, "health/grn_beta_stage_", None, style=":")
    axes[1, 0].set_ylim(bottom=0)
    figure.suptitle(textwrap.fill(f"Held-out loss: {verdict(lines, total_steps)}", 130), fontsize=9)
    save_figure(figure, path)


def _draw_losses(
    axes: Axes, lines: Sequence[Mapping[str, Any]], checks: Sequence[Mapping[str, Any]]
) -> None:
    training = [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]
    if training:
        axes.plot(*zip(*training, strict=True), color="#9bb7d9", linewidth=1, label="training")
    steps = [line["step"] for line in checks]
    losses = [line["health/loss"] for line in checks]
    axes.plot(steps, losses, color="#1f4e8c", marker=".", label="held-out")
    for name, (label, colour) in TRIVIAL.items():
        values = [line[name] for line in checks if name in line]
        if values:
            axes.axhline(values[0], color=colour, linestyle="--", linewidth=1, label=label)
    _finish(axes, "loss at hidden patches, beside trivial predictors")


def _draw_group(
    axes: Axes,
    checks: Sequence[Mapping[str, Any]],
    prefix: str,
    title: str | None,
    style: str = "-",
) -> None:
    names = sorted({name for line in checks for name in line if name.startswith(prefix)})
    for number, name in enumerate(names):
        points = [(line["step"], line[name]) for line in checks if name in line]
        label = name.removeprefix(prefix) or None
        axes.plot(
            *zip(*points, strict=True),
            style,
            color=f"C{number}",
            marker=".",
            label=label if style == "-" else None,
        )
    if title is not None:
        _finish(axes, title)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.set_xlabel("step", fontsize=7)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=7)
