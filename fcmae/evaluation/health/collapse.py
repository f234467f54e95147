"""The feature-collapse figure: diversity of channels by layer, one group of runs against another.

Source: ConvNeXt V2, section 3.1, "feature cosine distance analysis".
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fcmae.evaluation.pictures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Layers = tuple[float, ...]  # one value per block, first to last

COLOURS = ("#b03030", "#1f4e8c", "#3a8a4d", "#c07a20", "#7a4d9e", "#5a5a5a")
EVEN_DIVERSITY = 0.5  # of channels that are orthogonal to each other


def last_diversity(lines: Iterable[Mapping[str, Any]]) -> Layers | None:
    """Return the diversity of each block, first to last, at the last check in a run's log.

    None when the run was not checked, or had features that were not finite.
    """
    name = "health/diversity_by_layer"
    found = [line[name] for line in lines if name in line]
    if not found or any(value is None for value in found[-1]):
        return None
    return tuple(map(float, found[-1]))


def collapse_figure(groups: Mapping[str, Sequence[Layers | None]]) -> Figure | None:
    """Draw the diversity in every layer, a mean line per group and a thin one per run.

    Args:
        groups: what `last_diversity` returns, by what the runs have in common.

    Returns:
        None when no run was checked.
    """
    figure = new_figure((7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for number, (label, runs) in enumerate(groups.items()):
        colour = COLOURS[number % len(COLOURS)]
        layers = [one for one in runs if one is not None]
        if not layers:
            continue
        positions = [_positions(one) for one in layers]
        for x, one in zip(positions, layers, strict=True):
            axes.plot(x, one, color=colour, linewidth=0.8, alpha=0.4)
        # Runs of one group may differ in depth; then there is no mean to draw.
        if len({len(one) for one in layers}) == 1:
            means = [statistics.fmean(values) for values in zip(*layers, strict=True)]
            count = f" ({len(layers)} runs)" if len(layers) > 1 else ""
            axes.plot(positions[0], means, color=colour, marker=".", label=f"{label}{count}")
    if not axes.lines:
        return None
    axes.axhline(EVEN_DIVERSITY, color="0.6", linestyle="--", linewidth=1)
    axes.text(1.0, EVEN_DIVERSITY + 0.005, "orthogonal channels", ha="right", color="0.4", size=8)
    axes.set_xlabel("depth of the layer, share of all blocks")
    axes.set_ylabel("mean cosine distance between channels")
    axes.set_ylim(0, max(0.58, axes.get_ylim()[1]))
    axes.set_title("diversity of the expanded MLP features (near 0: collapse)", fontsize=10)
    axes.legend(frameon=False, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    return figure


def _positions(layers: Sequence[float]) -> list[float]:
    """Return the depth of each layer as a share, so that models of other depths compare."""
    return [(number + 1) / len(layers) for number in range(len(layers))]
