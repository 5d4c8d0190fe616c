"""Medians, intervals, outliers and the test that tells differences from noise."""

import random

import pytest

from dataplane.bench.figures.stats import (
    difference_probability,
    discoveries,
    estimate,
    paired_ratio,
    ratio_of_medians,
)


def test_estimate_of_known_values() -> None:
    seen = estimate([10.0, 11.0, 12.0, 13.0, 14.0])
    assert (seen.median, seen.quartiles, seen.rounds, seen.outliers) == (12.0, (11.0, 13.0), 5, ())
    assert seen.spread == pytest.approx(2 / 12)


def test_a_single_value_has_no_spread() -> None:
    assert estimate([7.0]).spread == 0
    assert estimate([0.0]).spread == 0


def test_outliers_are_named_and_left_in() -> None:
    values = [10.0, 10.1, 9.9, 10.0, 10.05, 30.0]
    seen = estimate(values)
    assert seen.outliers == (30.0,)
    assert seen.rounds == len(values)


def test_pairing_takes_a_drifting_machine_out_of_the_ratio() -> None:
    drift = [1.0, 1.3, 1.7, 0.6, 0.8, 2.0, 1.1]
    ratio = paired_ratio([80 * d for d in drift], [100 * d for d in drift])
    assert ratio.value == pytest.approx(0.8)
    assert ratio.low == pytest.approx(0.8)
    assert ratio.high == pytest.approx(0.8)
    assert ratio.certain


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    chance = random.Random(5)
    hits = 0
    for _ in range(200):
        values = [chance.gauss(0.9, 0.05) for _ in range(15)]
        ratio = paired_ratio(values, [1.0] * 15)
        hits += ratio.low <= 0.9 <= ratio.high
    assert 175 <= hits <= 200


def test_ratio_of_medians_is_uncertain_when_groups_overlap() -> None:
    same = ratio_of_medians([9.0, 10.0, 11.0, 12.0], [9.5, 10.5, 10.0, 11.5])
    assert not same.certain
    assert ratio_of_medians([20.0, 21.0, 22.0], [10.0, 10.5, 11.0]).certain


def test_probability_is_small_only_for_groups_apart() -> None:
    low, high = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6], [2.0, 2.1, 2.2, 2.3, 2.4, 2.5, 2.6]
    assert difference_probability(low, high) < 0.005
    assert difference_probability(low, list(reversed(low))) > 0.9
    assert difference_probability([5.0] * 6, [5.0] * 6) == 1.0


def test_chance_alone_is_found_as_often_as_it_says() -> None:
    chance = random.Random(9)
    found = [
        difference_probability([chance.random() for _ in range(8)], [chance.random() for _ in range(8)]) < 0.05
        for _ in range(200)
    ]
    assert sum(found) <= 22


def test_discoveries_bound_the_false_ones() -> None:
    assert discoveries([0.001, 0.9, 0.002, 0.8], 0.01) == [True, False, True, False]
    assert discoveries([0.02] * 4, 0.01) == [False] * 4
    assert discoveries([0.009] * 4, 0.01) == [True] * 4  # each alone would pass, and so do all together
    assert discoveries([], 0.01) == []
