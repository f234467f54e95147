"""What seeds, or draws of labels, allow to say: intervals of means and of paired differences.

The noise is estimated from all settings together, so that two seeds of five settings say more
than two values; it is taken to be the same for all of them. One rule decides what is claimed: RULE.
"""

import functools
import itertools
import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

CONFIDENCE = 0.95
# Of all pairs of three or more starts together. Student's t supposes normal scores; accuracies are
# bounded, and of noise without tails 95 % let 3 seeds see a difference in 5.2 % of the cases where
# there is none. One point in reserve keeps what all pairs claim below 5 %, and 97 % unreached.
CONFIDENCE_OF_PAIRS = 0.96
DRAWS = 1000  # of the bootstrap
DRAWS_AT_ONCE = 100  # of a bootstrap: bounds memory
ROUNDING = 1e-12  # of a difference: so much is no spread
RULE = (
    "A difference is the mean of the paired differences with its 95 % confidence interval "
    "(Student's t); it counts when the interval leaves out 0, and is noise otherwise."
)

Setting = TypeVar("Setting", bound=Hashable)
# {setting: {seed: value}}; a failed cell has no value
Table = Mapping[Setting, Mapping[int, float]]


@dataclass(frozen=True)
class Mean:
    """The mean over seeds.

    Attributes:
        value: the mean.
        half_width: of its 95 % confidence interval; None when no seed repeats a setting.
        count: seeds.
    """

    value: float
    half_width: float | None
    count: int

    def text(self, decimals: int = 1) -> str:
        """Return mean +- half width."""
        if self.half_width is None:
            return f"{self.value:.{decimals}f}"
        return f"{self.value:.{decimals}f} +- {self.half_width:.{decimals}f}"


@dataclass(frozen=True)
class PairedDifference:
    """How much a setting exceeds the default, seed by seed.

    Attributes:
        value: mean over the seeds that both have.
        half_width: of its 95 % confidence interval, for all comparisons together; None when there
            is no noise to see.
        count: seeds.
    """

    value: float
    half_width: float | None
    count: int

    @property
    def exceeds_noise(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.half_width is not None and abs(self.value) > self.half_width

    def text(self, decimals: int = 1) -> str:
        """Return the signed difference +- half width."""
        sign = "-" if self.value < 0 else "+"
        return f"{sign}{self.amount(decimals)}"

    def amount(self, decimals: int = 1) -> str:
        """Return the difference without its sign +- half width."""
        return Mean(abs(self.value), self.half_width, self.count).text(decimals)

    def effect(self, points: str, where: str) -> str:
        """Say what it does `where`, in such points, and no more than the noise allows."""
        if not self.exceeds_noise:
            return f"makes no difference beyond noise {where} ({self.text()})"
        return f"{'helps' if self.value > 0 else 'hurts'} by {self.amount()} {points} {where}"

    def verdict(self) -> str:
        """Say whether it counts, "" where there is nothing to tell by."""
        if self.half_width is None:
            return ""
        return "beyond noise" if self.exceeds_noise else "within noise"


def means(table: Table[Setting]) -> dict[Setting, Mean]:
    """Return the mean of each setting, with an interval of Student's t.

    The variance between seeds is pooled over the settings (as in one-way analysis of variance);
    with a single setting this is the usual interval.
    """
    groups = {setting: list(values.values()) for setting, values in table.items() if values}
    freedom = sum(len(group) - 1 for group in groups.values())
    deviation = None
    if freedom:
        squares = sum(float(np.var(group)) * len(group) for group in groups.values())
        deviation = math.sqrt(squares / freedom)
    return {
        setting: Mean(
            float(np.mean(group)),
            None if deviation is None else _quantile(freedom) * deviation / math.sqrt(len(group)),
            len(group),
        )
        for setting, group in groups.items()
    }


def differences(table: Table[Setting], default: Setting) -> dict[Setting, PairedDifference]:
    """Return each other setting's paired difference to `default`.

    What is left after the effects of setting and seed is noise (randomised blocks: two-way
    analysis of variance without interaction). With two settings this is the paired t interval.
    The confidence holds for all differences together (Bonferroni).
    """
    others = [setting for setting in table if setting != default]
    noise, freedom = _residual_noise(table)
    found = {}
    for setting in others:
        seeds = sorted(set(table[setting]) & set(table.get(default, {})))
        if not seeds:
            continue
        gaps = [table[setting][seed] - table[default][seed] for seed in seeds]
        half_width = None
        if freedom:
            error = noise * math.sqrt(2 / len(seeds))
            half_width = _quantile(freedom, len(others)) * error
        found[setting] = PairedDifference(float(np.mean(gaps)), half_width, len(seeds))
    return found


def pairwise(table: Table[Setting]) -> dict[tuple[Setting, Setting], PairedDifference]:
    """Return how much the second of each two settings exceeds the first, paired by seed.

    The noise of a pair is its own: settings may be noisy to different degrees, such as one that
    has not learned beside others that have. The confidence holds for all pairs together
    (Bonferroni), with a reserve where there are several (CONFIDENCE_OF_PAIRS). Where no seed
    changes a difference there is no noise to see.

    Args:
        table: values by setting and seed; pairs are in its order.
    """
    pairs = list(itertools.combinations(table, 2))
    confidence = CONFIDENCE if len(pairs) == 1 else CONFIDENCE_OF_PAIRS
    found = {}
    for first, second in pairs:
        seeds = sorted(set(table[first]) & set(table[second]))
        if not seeds:
            continue
        gaps = [table[second][seed] - table[first][seed] for seed in seeds]
        count, mean = len(gaps), math.fsum(gaps) / len(gaps)
        squares = math.fsum((gap - mean) ** 2 for gap in gaps)
        half_width = None
        if squares > (ROUNDING * max(map(abs, gaps))) ** 2:
            error = math.sqrt(squares / (count - 1) / count)
            half_width = _quantile(count - 1, len(pairs), confidence) * error
        found[first, second] = PairedDifference(mean, half_width, count)
    return found


def _residual_noise(table: Table[Setting]) -> tuple[float, int]:
    """Return the standard deviation of one value beside setting and seed, and its freedom."""
    settings = [setting for setting in table if table[setting]]
    seeds = sorted({seed for values in table.values() for seed in values})
    rows, values = [], []
    for place, setting in enumerate(settings):
        for seed, value in table[setting].items():
            row = np.zeros(len(settings) + len(seeds))
            row[place] = row[len(settings) + seeds.index(seed)] = 1
            rows.append(row)
            values.append(value)
    if not rows:
        return 0.0, 0
    design, observed = np.array(rows), np.array(values)
    solution, _, rank, _ = np.linalg.lstsq(design, observed, rcond=None)
    freedom = len(values) - int(rank)
    residual = observed - design @ solution
    return (math.sqrt(float(residual @ residual) / freedom), freedom) if freedom else (0.0, 0)


@functools.cache
def _quantile(freedom: int, comparisons: int = 1, confidence: float = CONFIDENCE) -> float:
    from scipy.special import stdtrit  # not above: it takes a fifth of a second, scipy.stats more

    return float(stdtrit(freedom, 1 - (1 - confidence) / (2 * comparisons)))


def bootstrap_interval(
    rows: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]
) -> list[tuple[float, float]]:
    """Return 95 % percentile intervals of statistics of sums over rows, by drawing rows anew.

    The DRAWS of them are the same for every call.

    Args:
        rows: [N, D], one per image.
        statistic: sums [B, D] -> [B, K]; NaN where it does not exist.

    Returns:
        (low, high) of each of the K; NaN where no draw has it.
    """
    rng = np.random.default_rng(0)
    found = []
    for start in range(0, DRAWS, DRAWS_AT_ONCE):
        count = min(DRAWS_AT_ONCE, DRAWS - start)
        times = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=count)
        found.append(statistic(times @ rows))
    values = np.concatenate(found)
    tail = 100 * (1 - CONFIDENCE) / 2
    intervals = []
    for column in values.T:
        known = column[~np.isnan(column)]
        ends = np.percentile(known, [tail, 100 - tail]) if len(known) else (np.nan, np.nan)
        intervals.append((float(ends[0]), float(ends[1])))
    return intervals
