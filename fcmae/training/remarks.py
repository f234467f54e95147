"""What stands out in the length and rate of a run, before the first step and in its report.

A remark stops nothing: published recipes are right for their own length and data.
"""

import math

from fcmae.training.schedule import Schedule

LONG_WARMUP = 0.15  # share of the run; recipes have 5 to 10 %
USUAL_WARMUP = 0.05
FEW_STEPS = 2000  # a fifth of what the recipe for small sets asks for
ASKED_STEPS = 10_000
FEW_PASSES = 5.0
FAR = 3.5  # factor between a rate and the rule's, which is up to 3 times lower for small pictures


def length_remarks(schedule: Schedule, num_images: int) -> list[str]:
    """Say when warm-up, steps or passes over the images of a pretraining stand out."""
    total, batch = schedule.total_steps, schedule.effective_batch
    said = warmup_remarks(schedule)
    passes = total * batch / num_images
    if total < FEW_STEPS:
        later = "a finished run can be made longer"
        if schedule.decay_start is None:
            later = f"with optim.schedule wsd {later}"
        said.append(
            f"{total:,} steps are few for {num_images:,} pictures: each is seen {_times(passes)}, "
            f"and the recipe for small sets asks for {ASKED_STEPS:,} steps (train.steps; {later})."
        )
    elif passes < FEW_PASSES:
        said.append(
            f"{total:,} steps of {batch} see each of the {num_images:,} pictures "
            f"{_times(passes)}: more passes cost time only."
        )
    return said


def warmup_remarks(schedule: Schedule) -> list[str]:
    """Say when the warm-up takes much of the run."""
    total, warmup = schedule.total_steps, schedule.warmup_steps
    if warmup <= LONG_WARMUP * total:
        return []
    return [
        f"warm-up takes {100 * warmup / total:.0f} % of the run ({warmup:,} of {total:,} steps), "
        f"and 5 to 10 % are usual: optim.warmup_steps {max(1, round(USUAL_WARMUP * total))}."
    ]


def rate_remarks(schedule: Schedule, usual_peak: float) -> list[str]:
    """Say when the peak rate is far from the rule's for this batch."""
    if not schedule.peak or abs(math.log(schedule.peak / usual_peak)) < math.log(FAR):
        return []
    ratio = schedule.peak / usual_peak
    distance = f"{ratio:.0f} times above" if ratio > 1 else f"{1 / ratio:.0f} times below"
    batch = schedule.effective_batch
    return [
        f"the learning rate rises to {schedule.peak:.2g}, {distance} the rule's {usual_peak:.2g} "
        f"for {batch} images: optim.base_lr {usual_peak * 256 / batch:.2g}."
    ]


def _times(passes: float) -> str:
    return f"{passes:,.0f} times" if passes >= 10 else f"{passes:.1f} times"
