"""Two runs against each other: real differences are found, noise and faster machines are not."""

import msgspec
import pytest

from dataplane.bench.figures.compare import compare
from tests.unit.bench_runs import made_up


def test_a_run_does_not_differ_from_another_of_the_same() -> None:
    found = compare(made_up(noise=0.05, seed=1), made_up(noise=0.05, seed=2))
    assert len(found.differences) > 100
    assert sum(d.verdict in ("better", "worse") for d in found.differences) <= 0.02 * len(found.differences)


def test_a_slower_mode_is_found_and_only_that() -> None:
    found = compare(made_up(noise=0.02, seed=1), made_up(noise=0.02, seed=2, speed={"nftables": 0.6}))
    real = [d for d in found.differences if d.verdict != "same"]
    slower = [d for d in real if d.key.mode == "nftables"]
    assert len(slower) >= 0.95 * len(real)
    assert {d.verdict for d in slower} == {"worse"}
    assert {d.figure for d in slower} >= {"rate", "p99", "cpu", "seconds"}


def test_a_difference_is_told_with_its_probability_unit_and_in_a_sentence() -> None:
    found = compare(made_up(noise=0.02, seed=1), made_up(noise=0.02, seed=2, speed={"nftables": 0.6}))
    [rate] = [d for d in found.differences if d.key == ("nftables", "connect", 10000, "last") and d.figure == "rate"]
    assert rate.probability < 0.001
    assert rate.record()["unit"] == "x direct"
    assert float(str(rate.record()["p"])) == pytest.approx(rate.probability, rel=0.1)
    assert rate.sentence().startswith(
        "nftables, connect at 10,000 Services (last): rate against direct 34% lower, worse (p = "
    )
    assert 5 < len(found.sentences()) <= 12
    [own] = [d for d in found.differences if d.key == ("direct", "connect", 10000, "last") and d.figure == "p99"]
    assert own.unit == "ns"
    same = compare(made_up(noise=0.02, seed=1), made_up(noise=0.02, seed=1))
    assert same.sentences() == ["Nothing differs beyond noise."]


def test_no_difference_is_finer_than_what_a_and_a_differ_by() -> None:
    apart = {"direct-again": 1.5}
    before = made_up(noise=0.02, seed=1, speed=apart)
    after = made_up(noise=0.02, seed=2, speed={"nftables": 0.7} | apart)
    found = [d for d in compare(before, after).differences if d.key.mode == "nftables" and d.figure == "rate"]
    assert found
    assert {d.verdict for d in found} == {"same"}
    assert all(d.least > 0.45 for d in found)


def test_a_faster_machine_is_no_better_data_plane() -> None:
    found = compare(made_up(seed=1), made_up(seed=2, machine=1.5))
    packets = [d for d in found.differences if d.key.scenario == "connect"]
    assert {d.verdict for d in packets if d.key.mode != "direct"} == {"same"}
    assert {d.verdict for d in packets if d.key.mode == "direct"} == {"better"}


def test_too_few_rounds_say_nothing() -> None:
    found = compare(made_up(rounds=3), made_up(rounds=3, speed={"nftables": 0.3}))
    assert {d.verdict for d in found.differences} == {"too few rounds"}
    assert "nothing can be said" in found.summary()


def test_other_machines_and_missing_groups_are_mentioned() -> None:
    after = made_up(services=(1,))
    after.machine = msgspec.structs.replace(after.machine, kernel="6.12.0")
    found = compare(made_up(services=(1, 10000)), after)
    assert found.unmatched > 0
    assert "kernel differs: 6.1.0 and 6.12.0" in found.summary()
    assert {d.key.services for d in found.differences} == {1}
