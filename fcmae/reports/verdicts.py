"""What an ablation allows to say, in sentences, and no more than that."""

import itertools
from collections.abc import Sequence

from fcmae.evaluation import PairedDifference, differences, means
from fcmae.reports.records import LABEL_FREE, AblationRecord, Key, Record
from fcmae.studies.ablation.evaluation import FINETUNED
from fcmae.studies.ablation.grid import RATIO
from fcmae.studies.ablation.masks import SEGMENTED


def sentences(found: AblationRecord) -> list[str]:
    """Return what holds for every score, then what holds for the time of a step."""
    said = []
    if len(found.seeds) < 2:
        said.append(
            "One seed: nothing can be said about noise. Give train.seed two values or more."
        )
    scores = [measure for measure in found.measures if measure not in LABEL_FREE]
    for measure in scores or found.measures:  # label-free ones count where there are no others
        said += _about_measure(found, measure)
    return [*said, *_about_step_time(found)]


def baseline_difference(found: AblationRecord, measure: str) -> PairedDifference | None:
    """Return how much the default exceeds the untrained encoder, paired by seed."""
    baselines = found.baseline_table(measure)
    # With several encoders the default's own untrained counterpart.
    own = [key for key in baselines if set(key) <= set(found.default)]
    scored = found.table(measure).get(found.default)
    if not own or not baselines[own[0]] or not scored:
        return None
    pair: dict[Key, dict[int, float]] = {found.default: scored, (): baselines[own[0]]}
    return differences(pair, ()).get(found.default)


def decimals_of(measure: str) -> int:
    """Return how many decimals of a measure are shown."""
    return 3 if measure in LABEL_FREE else 1


def name_of(measure: str) -> str:
    """Return a measure in words."""
    return LABEL_FREE.get(measure, measure)


def is_tuned(measure: str) -> bool:
    """Whether it scores a fine-tuning, whose baseline is trained from scratch."""
    return measure in (FINETUNED, SEGMENTED)


def unit_of(measure: str) -> str:
    """Return what a score is, in per cent."""
    return "mean IoU in %" if measure == SEGMENTED else "balanced accuracy in %"


def _about_measure(found: AblationRecord, measure: str) -> list[str]:
    table, decimals = found.table(measure), decimals_of(measure)
    scores = means({key: values for key, values in table.items() if values})
    if not scores:
        return []
    unit = "" if measure in LABEL_FREE else " %"
    name = name_of(measure)
    said = []
    largest = max(scores, key=lambda key: scores[key].value)
    text = f"{name}: highest with {found.title(largest)}, {scores[largest].text(decimals)}{unit}"
    if found.default in scores and largest != found.default:
        text += f"; {found.title(found.default)} has {scores[found.default].text(decimals)}{unit}"
    said.append(f"{text}.")
    gaps = differences(table, found.default)
    if gaps and len(found.seeds) > 1:
        said.append(f"{name}: {_beyond_noise(found, gaps, measure)}")
    gap = baseline_difference(found, measure)
    if gap is not None and measure not in LABEL_FREE:
        said.append(_about_pretraining(gap, measure, len(found.seeds)))
    return said


def _beyond_noise(found: AblationRecord, gaps: dict[Key, PairedDifference], measure: str) -> str:
    decimals, unit = decimals_of(measure), "" if measure in LABEL_FREE else " points"
    up, down = ("higher", "lower") if measure in LABEL_FREE else ("better", "worse")
    default = found.title(found.default)
    real = {key: gap for key, gap in gaps.items() if gap.exceeds_noise}
    if all(gap.half_width is None for gap in gaps.values()):
        return "no setting was repeated with two seeds, so that the noise is unknown."
    if not real:
        widest = max((gap.half_width or 0.0) for gap in gaps.values())
        return (
            f"no setting differs from {default} beyond the noise of {len(found.seeds)} seeds; "
            f"differences below {widest:.{decimals}f}{unit} could not have been seen."
        )
    parts = [
        f"{found.title(key)} is {up if gap.value > 0 else down} than {default} by "
        f"{gap.amount(decimals)}{unit}"
        for key, gap in real.items()
    ]
    end = "; no other differs beyond the noise." if len(gaps) > len(real) else "."
    return "; ".join(parts) + end


def _about_pretraining(gap: PairedDifference, measure: str, seeds: int) -> str:
    against = "training from scratch" if is_tuned(measure) else "an untrained encoder"
    start = f"{measure}: compared with {against}, pretraining by the default"
    if gap.half_width is None:
        return f"{start} changes the score by {gap.value:+.1f} points, on one seed."
    if not gap.exceeds_noise:
        return (
            f"{start} makes no difference beyond the noise of {seeds} seeds ({gap.text()} points)."
        )
    verb = "helps" if gap.value > 0 else "hurts"
    return f"{start} {verb} by {gap.amount()} points."


def _about_step_time(found: AblationRecord) -> list[str]:
    """Say how the time of a step goes with the mask, where nothing else varies."""
    names = [name for name, _ in found.default]
    if names != [RATIO] or len(found.keys) < 2:
        return []
    times = {
        key: mean_of([record.step_milliseconds for record in found.records if record.key == key])
        for key in sorted(found.keys, key=found.effective_ratio)
    }
    known = {key: value for key, value in times.items() if value is not None}
    if len(known) < 2:
        return []
    listed = ", ".join(
        f"{value:.0f} ms at {found.effective_ratio(key):.3f}" for key, value in known.items()
    )
    values = list(known.values())
    falls = all(later < earlier for earlier, later in itertools.pairwise(values))
    verb = "falls with every ratio" if falls else "does not fall with every ratio"
    return [f"The measured time of a step {verb}: {listed}."]


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that exist, or None."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def failures(records: Sequence[Record]) -> list[str]:
    """Return one line for every cell that failed or is not finished."""
    return [
        f"{record.cell.title}: {record.state}{': ' + record.failure if record.failure else '.'}"
        for record in records
        if record.state != "done"
    ]
