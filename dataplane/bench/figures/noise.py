"""The noise floor: the smallest difference between two modes that a run can tell, from the run itself.

A line of a run (one scenario, size and position) is a randomized complete block design: rounds are the blocks, modes
the treatments, figures enter as logarithms, so that differences are relative ones. Two things bound what it can tell:

- how much rounds disagree about two modes (Student's t of the rounds' differences; their variance is that of the
  median pair, since one pair's own few rounds say little about it, or the pair's own where that is larger), with the
  probability of an error shared out over everything that the run compares, after Bonferroni;
- how much the A/A pair differs: direct is measured twice, on two nodes, as if it were two modes. What those two differ
  by is not the data plane.

Their sum is the threshold: a measured difference above it is named. A true difference of just that size is measured
smaller in half of all runs, so the floor, what a run promises to find, lies above it by what a measurement falls short
in one run of a hundred (the detection limit of L. A. Currie, Analytical Chemistry 40, 1968). A single wild round counts
no more than CLIP robust standard deviations.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

ERROR = 0.01
"""Probability that a run in which nothing differs names a difference anywhere."""
MISS = 0.01
"""Probability that a difference of the floor's size is not named."""
LEAST_ROUNDS = 3
"""Fewer say nothing."""
CLIP = 4.0
_MAD_TO_SIGMA = 1.4826
_FEW, _MUCH_FEW, _MUCH = 10, 4.0, 2.0
"""How many times the median pair's variance a pair's own must be before it alone decides: below _FEW rounds, from then
on. Near the 99 % quantile of the ratio of two variances."""
_GRID = 200_000
_MOST = 700.0
"""Logarithms above have no exponential."""

Floats = NDArray[np.float64]


class Line(msgspec.Struct, frozen=True):
    """What the rounds of one line say. logarithms: by mode, of its figures in the rounds that all modes have, wild ones
    clipped. variance: of a difference of two modes, the median pair's. inflation: of standard errors, for what was
    clipped. apart: what A and A differ by; None without such a pair."""

    logarithms: dict[str, tuple[float, ...]]
    variance: float
    inflation: float
    apart: float | None = None

    @property
    def rounds(self) -> int:
        return len(next(iter(self.logarithms.values())))

    def effect(self, mode: str) -> float:
        """A mode's mean; only differences of two mean anything."""
        return math.fsum(self.logarithms[mode]) / self.rounds


class Verdict(msgspec.Struct, frozen=True):
    """One mode against another. difference: relative, 0.1 is ten per cent more. threshold: measured differences above
    it are named. floor: true ones above it are found; both infinite where rounds are too few. real: whether the
    difference is named."""

    difference: float
    threshold: float
    floor: float
    real: bool


@lru_cache(maxsize=64)
def _tails(freedom: int) -> tuple[Floats, Floats]:
    """Values of Student's t, ascending, and the probability to exceed each: t is sqrt(freedom) times the tangent of an
    angle whose density is cosine^(freedom - 1)."""
    angles = (np.arange(_GRID) + 0.5) * (math.pi / 2 / _GRID)
    density = np.cos(angles) ** (freedom - 1)
    above = np.cumsum(density[::-1])[::-1]
    return math.sqrt(freedom) * np.tan(angles), above / above[0] / 2


@lru_cache(maxsize=1024)
def student(freedom: int, tail: float) -> float:
    """The value that Student's t of so many degrees of freedom exceeds with probability `tail` (below a half)."""
    values, above = _tails(freedom)
    return float(values[min(_GRID - 1, int(np.searchsorted(-above, -tail)))])


def line(values: Mapping[str, Mapping[int, float]], pair: tuple[str, str]) -> Line | None:
    """A line's noise from its figures by mode and round; `pair` names the A/A modes.

    None with fewer than two modes or LEAST_ROUNDS rounds in common. A mode that lacks more than half of the rounds is
    left out; figures that are not above zero count as missing.
    """
    positive = {mode: {n: v for n, v in rounds.items() if v > 0} for mode, rounds in values.items()}
    most = max((len(rounds) for rounds in positive.values()), default=0)
    modes = [mode for mode, rounds in positive.items() if 2 * len(rounds) > most]
    common = sorted(set.intersection(*(set(positive[mode]) for mode in modes))) if modes else []
    if len(modes) < 2 or len(common) < LEAST_ROUNDS:
        return None
    table, clipped = _clipped(np.log(np.array([[positive[mode][number] for number in common] for mode in modes])))
    pairs = [np.var(a - b, ddof=1) for a, b in itertools.combinations(table, 2)]
    freedom = len(common) - 1
    variance = float(np.median(pairs)) / (1 - 2 / (9 * freedom)) ** 3  # the median of chi squared is below its mean
    logarithms = {mode: tuple(map(float, row)) for mode, row in zip(modes, table, strict=True)}
    apart = (
        float((table[modes.index(pair[1])] - table[modes.index(pair[0])]).mean()) if set(pair) <= set(modes) else None
    )
    return Line(logarithms, variance, table.size / (table.size - clipped), apart)


def _clipped(table: Floats) -> tuple[Floats, int]:
    """The table (a row a mode) with wild values brought nearer, and how many those are."""
    fitted = np.median(table, axis=1)[:, None] + np.zeros_like(table)
    fitted += np.median(table - fitted, axis=0)[None, :]
    off = np.abs(table - fitted)
    spread = table.size / ((table.shape[0] - 1) * (table.shape[1] - 1))
    scale = _MAD_TO_SIGMA * math.sqrt(spread) * np.maximum(np.median(off, axis=1), np.median(off))[:, None]
    wild = off > CLIP * scale
    return np.where(wild, fitted + np.sign(table - fitted) * CLIP * scale, table), int(wild.sum())


def comparisons(lines: Iterable[Line | None]) -> int:
    """How many pairs of modes a run with these lines compares."""
    return sum(math.comb(len(found.logarithms), 2) for found in lines if found is not None)


class _Scale(NamedTuple):
    """What a difference of two modes is measured in. error: its standard error, of logarithms. freedom: degrees of
    freedom of that error."""

    error: float
    freedom: int


def _scale(found: Line, pair: Sequence[str]) -> _Scale:
    """The error of the difference of `pair`, or of two modes in general without one."""
    modes, few = len(found.logarithms), found.rounds - 1
    own = float(np.var(np.subtract(found.logarithms[pair[0]], found.logarithms[pair[1]]), ddof=1)) if pair else 0.0
    alone = own > found.variance * (_MUCH_FEW if found.rounds < _FEW else _MUCH)
    freedom = few if alone else max(few, (modes - 1) * few * 2 // 3)
    variance = own if alone else max(own, found.variance)
    return _Scale(math.sqrt(variance / found.rounds) * found.inflation, freedom)


def _threshold(found: Line, scale: _Scale, compared: int) -> float:
    """The largest difference of logarithms that is not named."""
    return abs(found.apart or 0.0) + student(scale.freedom, ERROR / 2 / max(1, compared)) * scale.error


def _relative(logarithm: float) -> float:
    return math.expm1(min(_MOST, logarithm))


def threshold(found: Line | None, compared: int, pair: Sequence[str] = ()) -> float:
    """Relative difference above which two modes of the line, or those of `pair`, are said to differ; infinite without a
    line. compared: comparisons of the whole run."""
    return math.inf if found is None else _relative(_threshold(found, _scale(found, pair), compared))


def floor(found: Line | None, compared: int, pair: Sequence[str] = ()) -> float:
    """Smallest true relative difference that the line finds, but for one run in a hundred (MISS): of two modes, or of
    `pair`; infinite without a line. compared: comparisons of the whole run."""
    if found is None:
        return math.inf
    scale = _scale(found, pair)
    return _relative(_threshold(found, scale, compared) + student(scale.freedom, MISS) * scale.error)


def judge(found: Line | None, mode: str, other: str, compared: int) -> Verdict:
    """Return the Verdict on `mode` against `other`; not `real` for modes that the line does not have."""
    if found is None or not {mode, other} <= set(found.logarithms):
        return Verdict(0.0, math.inf, math.inf, False)
    pair = (mode, other)
    least = threshold(found, compared, pair)
    logarithm = found.effect(mode) - found.effect(other)
    real = abs(logarithm) > math.log1p(least)
    return Verdict(math.expm1(logarithm), least, floor(found, compared, pair), real)
