"""Statistics of few, noisy rounds: medians, spreads, bootstrap intervals, outliers, and a test for real differences."""

from collections.abc import Sequence
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
CONFIDENCE = 0.95
OUTLIER_DEVIATIONS = 5.0
_MAD_TO_SIGMA = 1.4826
_SEED = 20240101

Floats = NDArray[np.float64]


class Estimate(msgspec.Struct, frozen=True):
    """Rounds of one figure. quartiles: 25 and 75 %. spread: their distance as a share of the median. outliers: values
    further from the median than OUTLIER_DEVIATIONS robust standard deviations (they stay in the figures)."""

    median: float
    quartiles: tuple[float, float]
    spread: float
    rounds: int
    outliers: tuple[float, ...] = ()


class Ratio(msgspec.Struct, frozen=True):
    """A ratio with its confidence interval (CONFIDENCE, bootstrap of the median). rounds: how many
    it is made of."""

    value: float
    low: float
    high: float
    rounds: int = 0

    @property
    def certain(self) -> bool:
        """True if 1 is outside the interval."""
        return self.low > 1 or self.high < 1


def estimate(values: Sequence[float]) -> Estimate:
    """Median and spread of at least one value."""
    array = np.asarray(values, dtype=np.float64)
    median = float(np.median(array))
    low, high = (float(v) for v in np.quantile(array, [0.25, 0.75]))
    deviation = _MAD_TO_SIGMA * float(np.median(np.abs(array - median)))
    far = np.abs(array - median) > OUTLIER_DEVIATIONS * deviation
    outliers = tuple(float(v) for v in array[far]) if deviation and len(array) >= 5 else ()
    return Estimate(median, (low, high), (high - low) / median if median else 0.0, len(array), outliers)


@lru_cache(maxsize=256)
def _resampling(count: int, stream: int) -> NDArray[np.intp]:
    """Which rounds each resample draws. The same for every figure of so many rounds: only drawing it costs time."""
    return np.random.default_rng((_SEED, stream)).integers(0, count, (RESAMPLES, count))


def _medians(array: Floats, stream: int = 0) -> Floats:
    ordered = np.sort(array[_resampling(len(array), stream)], axis=1)
    middle = (len(array) - 1) // 2
    medians: Floats = (ordered[:, middle] + ordered[:, len(array) // 2]) / 2
    return medians


def _interval(value: float, resampled: Floats, rounds: int) -> Ratio:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Ratio(value, float(low), float(high), rounds)


def paired_ratio(values: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Median over the rounds of value / baseline of the same round. Both are of the same, non-zero length."""
    ratios = np.asarray(values, dtype=np.float64) / np.asarray(baseline, dtype=np.float64)
    return _interval(float(np.median(ratios)), _medians(ratios), len(ratios))


def ratio_of_medians(values: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Median of values / median of the baseline, whose rounds have nothing to do with each other."""
    above, below = np.asarray(values, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    resampled = _medians(above) / _medians(below, 1)
    return _interval(float(np.median(above) / np.median(below)), resampled, min(len(above), len(below)))


def difference_probability(left: Sequence[float], right: Sequence[float]) -> float:
    """Probability that chance alone puts the ranks of two groups so far apart: the rank sum test of Wilcoxon, Mann and
    Whitney, two-sided and exact, with equal values sharing their ranks' mean."""
    both = np.concatenate([np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)])
    ordered = np.sort(both)
    # Twice the rank, so that shared ranks are whole numbers too.
    ranks = np.searchsorted(ordered, both, "left") + np.searchsorted(ordered, both, "right")
    seen = int(ranks[: len(left)].sum())
    ways = np.zeros((len(left) + 1, int(ranks.sum()) + 1))  # [how many on the left, their sum] -> number of choices
    ways[0, 0] = 1.0
    for rank in ranks:
        for count in range(len(left), 0, -1):
            ways[count, rank:] += ways[count - 1, : ways.shape[1] - rank]
    chances = ways[len(left)] / ways[len(left)].sum()
    centre = ranks.sum() * len(left) / len(both)
    far = np.abs(np.arange(len(chances)) - centre) >= abs(seen - centre) - 1e-9
    return float(min(1.0, chances[far].sum()))


def discoveries(probabilities: Sequence[float], rate: float) -> list[bool]:
    """Which of many tests are real, with at most `rate` of those named so being chance (Benjamini and Hochberg)."""
    order = sorted(range(len(probabilities)), key=probabilities.__getitem__)
    last = -1
    for rank, at in enumerate(order, 1):
        if probabilities[at] <= rate * rank / len(order):
            last = rank
    real = set(order[: max(last, 0)])
    return [at in real for at in range(len(probabilities))]
