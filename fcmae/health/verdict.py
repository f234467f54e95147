"""Whether a run is still improving, by a stated rule on its held-out loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

LOSS = "health/loss"
LAST_CHECKS = 3  # points of the line
WORTH_GOING_ON = 0.005  # relative fall of the held-out loss per tenth of the run


def verdict(lines: Sequence[Mapping[str, Any]], total_steps: int) -> str:
    """Say whether the held-out loss still falls.

    The rule: a straight line through the last three checks; the run is improving when the line
    falls by more than 0.5 % of the present loss per tenth of the run's steps.

    Args:
        lines: of metrics.jsonl.
        total_steps: of the whole run.
    """
    points = [(line["step"], line[LOSS]) for line in lines if line.get(LOSS) is not None]
    points = points[-LAST_CHECKS:]
    if len(points) < LAST_CHECKS:
        return f"too early to say: {len(points)} of {LAST_CHECKS} checks of the held-out loss."
    steps, losses = zip(*points, strict=True)
    slope = float(stats.linregress(steps, losses).slope)
    fall = -slope * total_steps / 10 / losses[-1]
    rule = (
        f"the held-out loss falls by {100 * fall:.1f} % per tenth of the run over its last "
        f"{LAST_CHECKS} checks; from {100 * WORTH_GOING_ON:.1f} % on it counts as improving"
    )
    if fall < WORTH_GOING_ON:
        return f"no longer improving ({rule})."
    if points[-1][0] >= total_steps:
        return f"still improving at the end: a longer run will give a lower loss ({rule})."
    return f"still improving ({rule})."
