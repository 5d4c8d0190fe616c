"""The noise floor, on made-up rounds of known truth: slowdowns are found or declared too small, and A/A never wins."""

import math
import random

import msgspec
import pytest

from dataplane.bench.figures.analyse import analyse
from dataplane.bench.figures.noise import comparisons, floor, judge, line, student, threshold
from dataplane.bench.modes import AGAIN, DIRECT
from dataplane.bench.report.summary import winners_at
from tests.unit.bench_runs import made_up

PAIR = (DIRECT, AGAIN)
RUNS = range(20)


def rounds(chance: random.Random, speed: float, count: int, noise: float, machine: list[float]) -> dict[int, float]:
    """Figures of a mode: the machine's speed of the round, noise of its own, one round in twenty disturbed."""
    wild = [chance.uniform(0.3, 0.9) if chance.random() < 0.05 else 1.0 for _ in range(count)]
    return {n: 1e4 * speed * machine[n] * wild[n] * math.exp(chance.gauss(0, noise)) for n in range(count)}


def values(seed: int, count: int, noise: float, slow: float = 1.0) -> dict[str, dict[int, float]]:
    chance = random.Random(f"{seed} {count} {noise} {slow}")
    machine = [math.exp(chance.gauss(0, 0.2)) for _ in range(count)]
    speeds = {DIRECT: 1.0, AGAIN: 1.0, "nftables": slow, "ebpf-tc": 1.0, "ebpf-xdp": 1.0}
    return {mode: rounds(chance, speed, count, noise, machine) for mode, speed in speeds.items()}


@pytest.mark.parametrize(
    ("freedom", "tail", "value"),
    [(1, 0.25, 1.0), (4, 0.005, 4.604), (10, 0.025, 2.228), (28, 0.0005, 3.674), (120, 0.025, 1.980)],
)
def test_quantiles_of_students_distribution_are_those_of_the_tables(freedom: int, tail: float, value: float) -> None:
    assert student(freedom, tail) == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("count", [5, 15, 31])
@pytest.mark.parametrize("noise", [0.01, 0.05, 0.2])
def test_the_same_measured_twice_is_never_told_apart(count: int, noise: float) -> None:
    for seed in RUNS:
        found = line(values(seed, count, noise), PAIR)
        assert found is not None
        many = comparisons([found])
        for mode in found.logarithms:
            for other in found.logarithms:
                assert not judge(found, mode, other, many).real, (seed, mode, other)


def test_a_verdict_is_named_above_the_threshold_and_the_floor_is_higher() -> None:
    for slowdown in (0.03, 0.10, 0.30):
        for seed in RUNS:
            found = line(values(seed, 15, 0.02, 1 - slowdown), PAIR)
            assert found is not None
            seen = judge(found, "nftables", DIRECT, comparisons([found]))
            assert seen.real == (abs(math.log1p(seen.difference)) > math.log1p(seen.threshold))
            assert seen.floor > seen.threshold
            assert seen.difference == pytest.approx(-slowdown, abs=0.06)


def test_a_difference_of_the_floors_size_is_nearly_always_found_and_one_of_the_thresholds_in_half_of_all_runs() -> None:
    def found(difference: float, seed: int) -> bool:
        chance = random.Random(seed)
        figures = {mode: {n: math.exp(chance.gauss(0, 0.05)) for n in range(15)} for mode in (*PAIR, "a", "b")}
        figures["a"] = {n: value / (1 + difference) for n, value in figures["a"].items()}
        return judge(line(figures, PAIR), "a", "b", 6).real

    runs = range(200)
    known = line(
        {mode: {n: math.exp(random.Random(f"{mode}{n}").gauss(0, 0.05)) for n in range(15)} for mode in PAIR}, PAIR
    )
    assert known is not None
    even = msgspec.structs.replace(known, variance=2 * 0.05**2, apart=0.05 * math.sqrt(2 / 15) * 0.67, inflation=1.0)
    assert sum(found(floor(even, 6), seed) for seed in runs) >= 0.95 * len(runs)
    assert 0.3 < sum(found(threshold(even, 6), seed) for seed in runs) / len(runs) < 0.7


def test_more_rounds_and_less_noise_lower_the_floor_and_more_comparisons_raise_it() -> None:
    def at(count: int, noise: float, compared: int = 10) -> float:
        return floor(line(values(1, count, noise), PAIR), compared)

    assert at(31, 0.02) < at(5, 0.02) < math.inf
    assert at(15, 0.01) < at(15, 0.1)
    assert at(15, 0.02, 10) < at(15, 0.02, 1000)


def test_what_a_and_a_differ_by_is_in_the_floor() -> None:
    good = values(3, 15, 0.01)
    bad = {**good, AGAIN: {n: value * 1.2 for n, value in good[AGAIN].items()}}
    assert threshold(line(bad, PAIR), 10) > 0.18 + threshold(line(good, PAIR), 10) / 2
    without = {mode: figures for mode, figures in good.items() if mode != AGAIN}
    found = line(without, PAIR)
    assert found is not None
    assert found.apart is None
    assert 0 < threshold(found, 10) < 0.1


@pytest.mark.parametrize("count", [1, 2])
def test_one_round_tells_nothing(count: int) -> None:
    figures = values(1, count, 0.01, 0.1)
    assert line(figures, PAIR) is None
    assert judge(line(figures, PAIR), "nftables", DIRECT, 1).floor == math.inf
    assert not judge(None, "nftables", DIRECT, 1).real


def test_a_mode_that_is_noisier_than_the_others_has_a_floor_of_its_own() -> None:
    figures = values(1, 15, 0.01)
    chance = random.Random(7)
    figures["nftables"] = {n: value * math.exp(chance.gauss(0, 0.4)) for n, value in figures["nftables"].items()}
    found = line(figures, PAIR)
    assert found is not None
    own = judge(found, "nftables", DIRECT, 10).floor
    assert own > 3 * judge(found, "ebpf-tc", DIRECT, 10).floor


def test_a_mode_that_broke_off_is_left_out_and_the_rest_stays() -> None:
    figures = values(1, 15, 0.01)
    figures["nftables"] = {n: value for n, value in figures["nftables"].items() if n < 3}
    found = line(figures, PAIR)
    assert found is not None
    assert (set(found.logarithms), found.rounds) == ({DIRECT, AGAIN, "ebpf-tc", "ebpf-xdp"}, 15)


def test_whole_runs_in_which_all_modes_are_equal_have_no_winner_anywhere() -> None:
    same = dict.fromkeys(("direct", "conntrack", "iptables", "nftables", "ebpf-connect", "ebpf-tc"), 1.0)
    for seed in RUNS:
        run = made_up(services=(1, 100), rounds=5, noise=0.05, speed=same, seed=seed, equal=True)
        assert winners_at(analyse(run)) == [], seed
