"""What is made of a run: ratios, noise, bars, sentences."""

import msgspec
import pytest

from dataplane.bench.figures.analyse import PlaceKey, analyse, as_records, quantity
from dataplane.bench.figures.bars import BarRow, Verdict, bars
from dataplane.bench.figures.bars import sentences as bar_sentences
from dataplane.bench.figures.results import Cell, Results
from dataplane.bench.report.summary import (
    direct_firsts,
    highlights,
    iptables_firsts,
    listed,
    places,
    sentences,
    where_baselines_win,
)
from tests.unit.bench_runs import made_up

GOOD = {"nftables": 1.0, "ebpf-connect": 1.2}
"""Speeds that meet every bar."""


def bar(results: Results, what: str, mode: str) -> BarRow:
    [found] = [row for row in bars(results) if what in row.what and row.mode == mode]
    return found


def test_ratios_are_those_that_were_put_in() -> None:
    found = analyse(made_up())
    row = found.row("nftables", "connect", 10000, "last")
    assert row is not None
    ratio = row.ratios["rate"]
    assert ratio.value == pytest.approx(0.9, abs=0.02)
    assert ratio.low < ratio.value < ratio.high
    assert found.noisy == []
    assert not any("noisy" in text.lower() for text in found.warnings)


def test_a_noisy_machine_is_named_and_bars_near_the_figure_are_not_judged_on_it() -> None:
    run = made_up(noise=0.3)
    found = analyse(run)
    assert found.warnings[0].startswith("TOO NOISY TO CONCLUDE")
    assert bar(run, "connections tracked", "nftables").verdict is Verdict.UNCLEAR
    assert any("no difference above" in text for text in sentences(found))


def test_a_ratio_far_from_its_bar_is_judged_on_a_noisy_machine_too() -> None:
    run = made_up(noise=0.3, speed={"nftables": 0.1, "ebpf-connect": 9.0})
    assert analyse(run).noisy
    assert bar(run, "connections tracked", "nftables").verdict is Verdict.MISSED
    assert bar(run, "on a node without rules", "ebpf-connect").verdict is Verdict.MET


def test_times_on_a_busy_machine_are_not_judged_but_memory_is() -> None:
    run = made_up(others=0.5)
    assert bar(run, "objects to kernel", "nftables").verdict is Verdict.UNCLEAR
    assert "others kept 0.5 processors busy" in bar(run, "one endpoint changes", "nftables").note
    assert bar(run, "memory", "nftables").verdict is Verdict.MET


def test_somebody_else_on_the_machine_is_named() -> None:
    assert any("0.50 processors busy" in text for text in analyse(made_up(others=0.5)).warnings)
    assert not any("processors busy" in text for text in analyse(made_up(others=0.02)).warnings)


def test_cells_without_figures_are_counted_not_averaged() -> None:
    run = made_up(services=(10000,))
    broken = run.cells[-1]
    run.cells[-1] = Cell(broken.key, error="9 operations failed")
    found = analyse(run)
    assert any("1 of" in text and "9 operations failed" in text for text in found.warnings)
    key = broken.key
    row = found.row(key.mode, key.scenario, key.services, key.position)
    assert row is not None
    assert row.main.rounds == run.settings.rounds - 1


def test_an_unfinished_run_says_so() -> None:
    run = msgspec.structs.replace(made_up(services=(1,)), complete=False)
    assert any("not finished" in text for text in analyse(run).warnings)


def test_bars_met_missed_unclear_and_not_measured() -> None:
    good = made_up(noise=0.002, speed=GOOD)
    assert bar(good, "on a node without rules", "ebpf-connect").verdict is Verdict.MET
    assert bar(good, "/ iptables", "nftables").verdict is Verdict.MET
    assert bar(good, "p99 connect latency", "nftables").verdict is Verdict.MET
    assert bar(good, "objects to kernel", "nftables").verdict is Verdict.MET
    assert bar(good, "memory", "nftables").measured == pytest.approx(110)
    assert "iptables 11.1 s (9 rounds)" in bar(good, "objects to kernel", "nftables").note
    slow = made_up(speed={"nftables": 0.5, "ebpf-connect": 1.09}, noise=0.03)
    assert "can be told" in bar(slow, "on a node without rules", "ebpf-connect").note
    assert bar(slow, "connections tracked", "nftables").verdict is Verdict.MISSED
    assert bar(slow, "on a node without rules", "ebpf-connect").verdict is Verdict.UNCLEAR
    small = made_up(services=(100,))
    assert {row.verdict for row in bars(small) if "Services" in row.what} == {Verdict.UNMEASURED}
    assert all(row.note for row in bars(small) if row.verdict is Verdict.UNMEASURED)


def test_the_packet_programs_cost_is_judged_even_on_a_busy_machine() -> None:
    run = made_up(modes=("ebpf-xdp",), others=0.5)
    row = bar(run, "XDP program", "ebpf-xdp")
    assert row.measured == pytest.approx(124, abs=3)
    assert row.verdict is Verdict.MET
    assert (
        bar(made_up(modes=("ebpf-xdp",), speed={"ebpf-xdp": 0.5}), "XDP program", "ebpf-xdp").verdict is Verdict.MISSED
    )


def test_against_direct_means_the_bare_node_and_the_same_node_too() -> None:
    rows = [
        row for row in bars(made_up(speed={"nftables": 0.7})) if "connections/s" in row.what and row.mode == "nftables"
    ]
    assert [row.what.partition(" / ")[2] for row in rows] == [
        "direct with connections tracked", "to the pod's own address on the same node", "iptables",
    ]  # fmt: skip
    assert [row.verdict for row in rows] == [Verdict.MISSED, Verdict.MET, Verdict.MET]


def test_too_few_rounds_are_no_verdict() -> None:
    rows = [row for row in bars(made_up(rounds=2)) if row.measured is not None]
    assert rows
    assert {row.verdict for row in rows} == {Verdict.UNCLEAR}
    assert all("too few rounds" in row.note for row in rows)


def test_modes_are_not_compared_while_others_crowd_the_machine() -> None:
    run = made_up(others=0.5, services=(1, 10000))
    assert analyse(run).warnings[0].startswith("TOO NOISY TO CONCLUDE")
    assert bar(run, "connections tracked", "nftables").verdict is Verdict.UNCLEAR
    assert bar(made_up(others=0.3, services=(1, 10000), speed=GOOD), "tracked", "nftables").verdict is Verdict.MET


def test_sentences_count_the_bars() -> None:
    [all_met] = bar_sentences(bars(made_up(noise=0.003, speed=GOOD)))
    assert all_met.endswith("bars that were measured are met.")
    assert "missed: new connections/s" in bar_sentences(bars(made_up(speed={"nftables": 0.5})))[1]
    assert "No bar was measured" in bar_sentences(bars(made_up(modes=("iptables",))))[0]


def test_a_mode_of_one_round_neither_wins_nor_loses() -> None:
    run = made_up(speed={"iptables": 0.01}, services=(30000,))
    run.cells = [cell for cell in run.cells if (cell.key.scenario, cell.key.mode) != ("coldstart", "iptables")
                 or cell.key.round == 1]  # fmt: skip
    found = analyse(run)
    place = next(place for place in places(found) if place.key.scenario == "coldstart")
    assert place.wins == "ebpf-connect"
    assert place.figures["iptables"].spread == "1 round"
    [said] = [text for text in sentences(found) if text.startswith("coldstart")]
    assert "times as good as nftables. Not judged, too few rounds: iptables (" in said
    equal = msgspec.structs.replace(found, lines={})
    assert {place.wins for place in places(equal)} == {"too few rounds"}


def test_the_winners_of_a_line_are_named_in_few_words() -> None:
    wins = {place.key: place.wins for place in places(analyse(made_up(services=(1, 10000), speed={"nftables": 0.5})))}
    assert wins[PlaceKey("TCP_RR", 1, "last")] == "ebpf-connect"
    slow = places(analyse(made_up(services=(10000,), noise=0.002, speed={"ebpf-connect": 0.9})))
    assert next(place.wins for place in slow if place.key.scenario == "connect") == "ebpf-connect, nftables"
    many = ("iptables", "nftables", "ebpf-connect", "ebpf-tc")
    same = {"nftables": 1.0, "ebpf-connect": 1.0, "ebpf-tc": 1.0}
    most = places(analyse(made_up(services=(10000,), modes=many, speed=same)))
    assert next(place.wins for place in most if place.key.scenario == "connect") == "all but iptables"


def test_bars_are_those_of_the_modes_that_were_measured() -> None:
    assert {row.mode for row in bars(made_up(modes=("iptables",)))} == set()
    assert {row.mode for row in bars(made_up(modes=("nftables",)))} == {"nftables"}


def test_sentences_say_who_wins_and_where_iptables_does() -> None:
    found = analyse(made_up(speed={"iptables": 1.2}, services=(1, 10000)))
    said = sentences(found)
    assert any(text.startswith("connect, 1 Service:") and "iptables wins" in text for text in said)
    assert any("10,000 Services, last of them: ebpf-connect wins" in text for text in said)
    first = iptables_firsts(found)
    assert first.wins["connect"] == ["1", "10,000 (first)"]
    assert "connect" not in first.shares
    shares = iptables_firsts(analyse(made_up(speed={"iptables": 1.0}, services=(1, 10000))))
    assert shares.shares["TCP_RR"] == ["1", "10,000"]
    assert "TCP_RR" not in shares.wins


def test_where_direct_is_in_front_is_said() -> None:
    found = analyse(made_up(speed={"ebpf-connect": 1.5}, services=(1, 10000)))
    assert "TCP_RR" not in direct_firsts(found).wins
    slow = analyse(made_up(speed={"ebpf-connect": 0.7, "nftables": 0.7, "iptables": 0.7}, services=(1, 10000)))
    assert direct_firsts(slow).wins["TCP_RR"] == ["1", "10,000"]
    assert direct_firsts(slow).wins["TCP_CRR@50"] == ["10,000"]  # where less is better
    same = analyse(made_up(speed={"ebpf-connect": 1.0}, services=(1, 10000)))
    assert direct_firsts(same).shares["TCP_RR"] == ["1", "10,000"]
    said = where_baselines_win(slow, ("direct", "iptables"))
    assert said[0] == "iptables wins: nowhere."
    assert said[2].startswith("Direct, without any rules, is faster than every mode: connect at ")
    assert "TCP_RR at 1 and 10,000 Services" in said[2]
    assert where_baselines_win(slow, ("direct",))[0].startswith("Direct, ")
    assert listed({}) == "nowhere"
    assert listed({"dns": ["1"]}) == "dns at 1 Service"


def test_highlights_are_of_the_largest_size_at_which_most_compete() -> None:
    said = highlights(analyse(made_up()))
    assert [text for text in said if text.startswith("connect, 30,000 Services")]
    assert not any("1 Service:" in text for text in said if text.startswith("connect,"))


def test_the_table_of_winners_marks_the_best_and_nobody_on_a_noisy_machine() -> None:
    found = {p.key: p for p in places(analyse(made_up(speed={"nftables": 0.5})))}
    place = found[PlaceKey("connect", 10000, "last")]
    assert [mode for mode, shown in place.figures.items() if shown.best] == ["ebpf-connect"]
    assert place.unit == "k/s"
    assert float(place.figures["direct"].text) == pytest.approx(20, rel=0.02)
    assert place.floor.endswith("%")
    noisy = [p for p in places(analyse(made_up(noise=0.6, speed={"iptables": 1.0}, equal=True))) if p.noisy]
    assert noisy
    assert not any(shown.best for p in noisy for shown in p.figures.values())


def test_figures_of_one_round_have_no_winner() -> None:
    found = analyse(made_up(rounds=1, speed={"nftables": 0.2}))
    assert not any(shown.best for place in places(found) for shown in place.figures.values())
    assert {place.floor for place in places(found)} == {"unknown"}
    assert all("too few rounds" in text for text in sentences(found))
    assert iptables_firsts(found) == ({}, {}, {})
    assert {record["spread"] for record in as_records(found)} == {"one round"}


def test_a_line_has_one_unit_and_so_has_every_column() -> None:
    run = made_up(modes=("iptables", "nftables"), speed={"nftables": 0.01}, services=(1,))
    records = [r for r in as_records(analyse(run)) if r["scenario"] == "connect"]
    assert {record["unit"] for record in records} == {"/s"}
    assert [record["median"] for record in records if record["mode"] == "direct"] == ["20,042"]
    assert not any(str(record["p99 µs"]).endswith("s") for record in records)


def test_latencies_of_all_rounds_together_have_a_tail_where_they_are_enough() -> None:
    def tails(rounds: int) -> set[object]:
        records = as_records(analyse(made_up(services=(10000,), rounds=rounds)))
        return {r["p99.99 µs"] for r in records if r["scenario"] == "TCP_CRR@80" and r["mode"] == "nftables"}

    assert tails(3) == {""}  # of 9,000 operations none is one of ten thousand
    [tail] = tails(9)
    assert float(str(tail)) == pytest.approx(80, rel=0.1)


def test_records_have_one_line_a_group_and_name_the_noisy_ones() -> None:
    run = made_up(noise=0.3, services=(1,))
    found = analyse(run)
    records = as_records(found)
    assert len(records) == len(found.rows)
    assert any(record["note"] == "noisy" and record["mode"] == "nftables" for record in records)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (12345.0, "1/s", "12.3 k/s"),
        (812.0, "1/s", "812 /s"),
        (2.5e10, "bit/s", "25 Gbit/s"),
        (38100.0, "ns", "38.1 µs"),
        (4.2e6, "ns", "4.2 ms"),
        (118.4, "ns", "118 ns"),
        (3.63e5, "packets/s", "363 k packets/s"),
        (36.0, "packets/s", "36 packets/s"),
        (1.93e10, "ns", "19.3 s"),
        (2.345, "s", "2.35 s"),
        (0.045, "s", "45 ms"),
        (91e6, "B", "91 MB"),
    ],
)
def test_quantities_read_well(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text
