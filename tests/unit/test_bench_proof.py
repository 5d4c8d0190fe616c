"""The statistics on rounds of known truth: what is equal is never told apart, and a slowdown is found, or is smaller
than the floor; in every one of 20 runs, on weather as bad as a shared machine's. Simpler analyses fail the same proof.

tests/perf/noise_floor.py is the same on real packets (docs/bench/proof.md).
"""

import itertools
import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

import pytest

from dataplane.bench.figures import noise
from dataplane.bench.figures.stats import paired_ratio
from dataplane.bench.modes import AGAIN, DIRECT
from tests.unit.simulated_rounds import Weather, simulated

RUNS = range(20)
PEERS = ("nftables", "ebpf-tc", "ebpf-xdp")
EQUAL = dict.fromkeys((DIRECT, AGAIN, *PEERS), 1.0)
SLOWDOWNS = (0.03, 0.10, 0.30)
WEATHERS = {
    "quiet": Weather(noise=0.005, wave=0.02, wander=0.002, bursts=0.002),
    "shared": Weather(),
    "stormy": Weather(noise=0.06, wave=0.3, wander=0.03, bursts=0.06),
}
Values = dict[str, dict[int, float]]


class Judgement(NamedTuple):
    """real: a difference is named. difference: relative, as measured. floor: the smallest that would be found."""

    real: bool
    difference: float
    floor: float


Analysis = Callable[[Values, str, str], Judgement]


def the_benchs(values: Values, mode: str, other: str) -> Judgement:
    found = noise.line(values, (DIRECT, AGAIN))
    seen = noise.judge(found, mode, other, noise.comparisons([found]))
    return Judgement(seen.real, seen.difference, seen.floor)


def by_medians(values: Values, mode: str, other: str) -> Judgement:
    """Naive: whoever's median is more than a hundredth higher wins."""
    ratio = statistics.median(values[mode].values()) / statistics.median(values[other].values())
    return Judgement(abs(ratio - 1) > 0.01, ratio - 1, 0.01)


def by_interval(values: Values, mode: str, other: str) -> Judgement:
    """Naive: a 95 % confidence interval of the ratio that leaves out 1 is a difference."""
    ratio = paired_ratio([*values[mode].values()], [*values[other].values()])
    return Judgement(ratio.certain, ratio.value - 1, max(ratio.high / ratio.value, ratio.value / ratio.low) - 1)


def by_t_test(values: Values, mode: str, other: str) -> Judgement:
    """Naive: Student's test of figures as they are, 5 %, for each pair by itself."""
    apart = [mine - theirs for mine, theirs in zip(values[mode].values(), values[other].values(), strict=True)]
    mean = statistics.fmean(values[other].values())
    error = noise.student(len(apart) - 1, 0.025) * statistics.stdev(apart) / math.sqrt(len(apart))
    return Judgement(abs(statistics.fmean(apart)) > error, statistics.fmean(apart) / mean, error / mean)


def winners_among_equals(analysis: Analysis, rounds: int, weather: Weather) -> list[str]:
    """Differences that are named though there are none."""
    wrong = []
    for seed in RUNS:
        values = simulated(seed, EQUAL, rounds, weather)
        for mode, other in itertools.combinations(EQUAL, 2):
            if analysis(values, mode, other).real:
                wrong.append(f"run {seed}: {mode} is told from {other}")
    return wrong


def slowdowns_missed(analysis: Analysis, slowdown: float, rounds: int, weather: Weather) -> list[str]:
    """Slowdowns that are neither found nor smaller than the floor, or are found the wrong way round."""
    wrong = []
    for seed in RUNS:
        values = simulated(seed, EQUAL | {"nftables": 1 - slowdown}, rounds, weather)
        for other in (DIRECT, "ebpf-tc"):
            seen = analysis(values, "nftables", other)
            if seen.real and seen.difference > 0:
                wrong.append(f"run {seed}: faster than {other}")
            if not seen.real and slowdown > seen.floor:
                wrong.append(
                    f"run {seed}: {slowdown:.0%} against {other} is not found above a floor of {seen.floor:.1%}"
                )
    return wrong


@pytest.mark.parametrize("rounds", [3, 5, 9, 25])
@pytest.mark.parametrize("weather", WEATHERS)
def test_equal_peers_and_direct_measured_twice_are_never_told_apart(rounds: int, weather: str) -> None:
    assert winners_among_equals(the_benchs, rounds, WEATHERS[weather]) == []


@pytest.mark.parametrize("slowdown", SLOWDOWNS)
@pytest.mark.parametrize("rounds", [3, 5, 9, 25])
@pytest.mark.parametrize("weather", WEATHERS)
def test_a_slowdown_is_found_or_is_below_the_floor(slowdown: float, rounds: int, weather: str) -> None:
    assert slowdowns_missed(the_benchs, slowdown, rounds, WEATHERS[weather]) == []


@pytest.mark.parametrize(("weather", "rounds", "slowdown"), [("quiet", 25, 0.03), ("shared", 25, 0.30)])
def test_the_floor_is_low_enough_to_find_what_matters(weather: str, rounds: int, slowdown: float) -> None:
    for seed in RUNS:
        values = simulated(seed, EQUAL | {"nftables": 1 - slowdown}, rounds, WEATHERS[weather])
        assert the_benchs(values, "nftables", DIRECT).real, seed


@pytest.mark.parametrize("naive", [by_medians, by_interval, by_t_test])
def test_the_proof_catches_a_naive_analysis(naive: Analysis) -> None:
    assert winners_among_equals(naive, 9, WEATHERS["shared"])
    assert winners_among_equals(naive, 25, WEATHERS["quiet"])


@pytest.mark.parametrize("naive", [by_medians, by_t_test])
def test_the_proof_catches_an_analysis_that_misses_slowdowns(naive: Analysis) -> None:
    assert [wrong for slowdown in SLOWDOWNS for wrong in slowdowns_missed(naive, slowdown, 9, WEATHERS["shared"])]
