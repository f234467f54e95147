"""Whether a run is still improving, by a stated rule on its held-out loss."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LOSS = "health/loss"
START_LOSS = "health/start_loss"  # of the check after the first epoch
LAST_CHECKS = 3  # points of the line
WORTH_GOING_ON = 0.005  # relative fall of the held-out loss per tenth of the run
PATCH_MEAN = "health/loss_patch_mean"
NOTHING_LEARNED = 0.98  # of the loss of predicting each patch's mean


def verdict(
    lines: Sequence[Mapping[str, Any]], total_steps: int, longer_command: str | None = None
) -> str:
    """Say whether the held-out loss still falls.

    The rule: a straight line through the last three checks, the one of the untrained model left
    out. The run is improving when the line falls by 0.5 % of the present loss or more per tenth
    of the run's steps, and getting worse when it rises by as much. A loss above 98 % of that of
    predicting each patch's mean, and not falling, means that nothing was learned yet.

    Args:
        lines: of metrics.jsonl.
        total_steps: of the whole run.
        longer_command: what makes the run longer, told where that should help.
    """
    points = [
        (line["step"], line[LOSS])
        for line in lines
        if line.get(LOSS) is not None and line["step"] > 0
    ][-LAST_CHECKS:]
    if len(points) < LAST_CHECKS:
        return (
            f"too early to say ({len(points)} of {LAST_CHECKS} checks of the held-out loss "
            "after the start)."
        )
    steps, losses = zip(*points, strict=True)
    left = total_steps - points[-1][0]
    still = f" with {left:,} of {total_steps:,} steps left" if left > 0 else ""
    (spread, shared), _ = np.cov(steps, losses, bias=True)
    slope = float(shared / spread)  # of least squares
    fall = -slope * total_steps / 10 / losses[-1]
    change = f"{'falls' if fall >= 0 else 'rises'} by {100 * abs(fall):.1f} %"
    rule = (
        f"the held-out loss {change} per tenth of the run over its last {LAST_CHECKS} checks; "
        f"{100 * WORTH_GOING_ON:.1f} % or more counts"
    )
    if fall <= -WORTH_GOING_ON:
        return f"getting worse: the model begins to learn its training images by heart ({rule})."
    to_beat = [line[PATCH_MEAN] for line in lines if line.get(PATCH_MEAN) is not None]
    if fall < WORTH_GOING_ON and to_beat and losses[-1] > NOTHING_LEARNED * to_beat[0]:
        return (
            f"nothing learned yet{still}: it is {losses[-1]:.3f}, and predicting each hidden "
            f"patch's mean has {to_beat[0]:.3f} ({rule})."
        )
    if fall < WORTH_GOING_ON:
        return f"no longer improving ({rule})."
    if left <= 0:
        said = f"still improving at the end: a longer run should give a lower loss ({rule})."
        return said if longer_command is None else f"{said} For that: {longer_command}"
    ends = max(0.0, losses[-1] + slope * left)
    return f"still improving{still}, and at this pace {ends:.3f} at the end ({rule})."


def first_epoch(lines: Sequence[Mapping[str, Any]], *, has_decoder: bool) -> str:
    """Say whether a run that started from weights was below them after its first epoch.

    Args:
        lines: of metrics.jsonl.
        has_decoder: whether the decoder started from weights, too.

    Returns:
        "" where no such check was made.
    """
    found = next((line for line in lines if line.get(START_LOSS) is not None), None)
    if found is None or found.get(LOSS) is None:
        return ""
    loss, start = found[LOSS], found[START_LOSS]
    is_below = loss < start
    said = (
        f"after the first epoch (step {found['step']:,}) the held-out loss is {loss:.4f}, "
        f"{'below' if is_below else 'not below'} the {start:.4f} of the start"
    )
    if not is_below:
        return (
            f"{said}: so far the run undoes what the weights knew; lower optim.base_lr, or start "
            "more slowly with a longer optim.warmup_steps."
        )
    if not has_decoder:
        return (
            f"{said}, whose decoder was drawn: that falls in any case and says little of the "
            "encoder."
        )
    return f"{said}."
