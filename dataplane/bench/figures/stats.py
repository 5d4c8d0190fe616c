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
    ordered = sorted(map(float, values))
    median, low, high = (quantile(ordered, share) for share in (0.5, 0.25, 0.75))
    deviation = _MAD_TO_SIGMA * quantile(sorted(abs(value - median) for value in ordered), 0.5)
    far = OUTLIER_DEVIATIONS * deviation
    outliers = tuple(v for v in map(float, values) if abs(v - median) > far) if far and len(values) >= 5 else ()
    return Estimate(median, (low, high), (high - low) / median if median else 0.0, len(values), outliers)


def quantile(ordered: Sequence[float] | Floats, share: float) -> float:
    """The value below which a share of these ascending ones is, between two of them in proportion. Plain Python: of a
    few values it takes a tenth of numpy's time."""
    at = share * (len(ordered) - 1)
    below = int(at)
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (ordered[above] - ordered[below]) * (at - below))


@lru_cache(maxsize=256)
def _middle(count: int, stream: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Ranks, from 0, of the two values in the middle of each resample (one twice where `count` is odd). They are the
    same for every figure of so many rounds, since a resample's order is that of the ranks that it draws."""
    drawn = np.sort(np.random.default_rng((_SEED, stream)).integers(0, count, (RESAMPLES, count)), axis=1)
    return drawn[:, (count - 1) // 2], drawn[:, count // 2]


def _medians(array: Floats, stream: int = 0) -> Floats:
    """The medians of all resamples."""
    ordered = np.sort(array)
    below, above = _middle(len(array), stream)
    medians: Floats = (ordered[below] + ordered[above]) / 2
    return medians


def _interval(value: float, resampled: Floats, rounds: int) -> Ratio:
    tail, ordered = (1 - CONFIDENCE) / 2, np.sort(resampled)
    return Ratio(value, quantile(ordered, tail), quantile(ordered, 1 - tail), rounds)


def paired_ratio(values: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Median over the rounds of value / baseline of the same round. Both are of the same, non-zero length."""
    ratios = np.asarray(values, dtype=np.float64) / np.asarray(baseline, dtype=np.float64)
    return _interval(float(np.median(ratios)), _medians(ratios), len(ratios))


def ratio_of_medians(values: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Median of values / median of the baseline, whose rounds have nothing to do with each other."""
    above, below = np.asarray(values, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    resampled = _medians(above) / _medians(below, 1)
    return _interval(float(np.median(above) / np.median(below)), resampled, min(len(above), len(below)))


@lru_cache(maxsize=1024)
def _rank_sums(count: int, ranks: tuple[int, ...]) -> Floats:
    """Probability of each sum that `count` of these ranks, drawn by chance, can have: the same for all groups of so
    many values without equal ones."""
    ways = np.zeros((count + 1, sum(ranks) + 1))  # [how many are drawn, their sum] -> number of choices
    ways[0, 0] = 1.0
    for rank in ranks:
        for drawn in range(count, 0, -1):
            ways[drawn, rank:] += ways[drawn - 1, : ways.shape[1] - rank]
    chances: Floats = ways[count] / ways[count].sum()
    return chances


def difference_probability(left: Sequence[float], right: Sequence[float]) -> float:
    """Probability that chance alone puts the ranks of two groups so far apart: the rank sum test of Wilcoxon, Mann and
    Whitney, two-sided and exact, with equal values sharing their ranks' mean."""
    both = np.concatenate([np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)])
    ordered = np.sort(both)
    # Twice the rank, so that shared ranks are whole numbers too.
    ranks = np.searchsorted(ordered, both, "left") + np.searchsorted(ordered, both, "right")
    seen = int(ranks[: len(left)].sum())
    chances = _rank_sums(len(left), tuple(sorted(map(int, ranks))))
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
