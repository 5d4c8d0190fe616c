"""Statistics of few, noisy rounds: medians, spreads, bootstrap intervals, outliers, and a test for real differences."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
CONFIDENCE = 0.95
PERMUTATIONS = 4000
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
    """A ratio with its confidence interval (CONFIDENCE, bootstrap of the median)."""

    value: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether 1 is outside the interval."""
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


def _medians(array: Floats, generator: np.random.Generator) -> Floats:
    chosen = generator.integers(0, len(array), (RESAMPLES, len(array)))
    medians: Floats = np.median(array[chosen], axis=1)
    return medians


def _interval(value: float, resampled: Floats) -> Ratio:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Ratio(value, float(low), float(high))


def paired_ratio(values: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Median over the rounds of value / baseline of the same round. Both are of the same, non-zero length."""
    ratios = np.asarray(values, dtype=np.float64) / np.asarray(baseline, dtype=np.float64)
    return _interval(float(np.median(ratios)), _medians(ratios, np.random.default_rng(_SEED)))


def ratio_of_medians(values: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Median of values / median of the baseline, whose rounds have nothing to do with each other."""
    generator = np.random.default_rng(_SEED)
    above, below = np.asarray(values, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    resampled = _medians(above, generator) / _medians(below, generator)
    return _interval(float(np.median(above) / np.median(below)), resampled)


def difference_probability(left: Sequence[float], right: Sequence[float]) -> float:
    """Probability that chance alone puts the ranks of two groups so far apart (a permutation test of the rank sum)."""
    both = np.concatenate([np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)])
    order = both.argsort(kind="stable")
    ranks = np.empty(len(both))
    ranks[order] = np.arange(len(both))
    for value in np.unique(both):  # equal values share their ranks' mean
        ranks[both == value] = ranks[both == value].mean()
    centre = ranks.mean() * len(left)
    seen = abs(ranks[: len(left)].sum() - centre)
    generator = np.random.default_rng(_SEED)
    shuffled = generator.permuted(np.tile(ranks, (PERMUTATIONS, 1)), axis=1)[:, : len(left)].sum(axis=1)
    return float((np.count_nonzero(np.abs(shuffled - centre) >= seen - 1e-9) + 1) / (PERMUTATIONS + 1))


def discoveries(probabilities: Sequence[float], rate: float) -> list[bool]:
    """Which of many tests are real, with at most `rate` of those named so being chance (Benjamini and Hochberg)."""
    order = sorted(range(len(probabilities)), key=probabilities.__getitem__)
    last = -1
    for rank, at in enumerate(order, 1):
        if probabilities[at] <= rate * rank / len(order):
            last = rank
    real = set(order[: max(last, 0)])
    return [at in real for at in range(len(probabilities))]
