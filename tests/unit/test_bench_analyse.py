"""What is made of a run: ratios, noise, bars, sentences."""

import msgspec
import pytest

from dataplane.bench.analyse import analyse, as_records, quantity
from dataplane.bench.bars import BarRow, Verdict, bars
from dataplane.bench.report.summary import iptables_wins, sentences
from dataplane.bench.results import Cell, Results
from tests.unit.bench_runs import made_up


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


def test_a_noisy_machine_is_named_and_no_bar_is_judged_on_it() -> None:
    run = made_up(noise=0.3)
    found = analyse(run)
    assert found.warnings[0].startswith("TOO NOISY TO CONCLUDE")
    assert bar(run, "last of 10000 Services, against direct", "nftables").verdict is Verdict.UNCLEAR
    assert any("too noisy to conclude" in text for text in sentences(found))


def test_times_on_a_busy_machine_are_not_judged_but_memory_is() -> None:
    run = made_up(others=0.5)
    assert bar(run, "cold start, 30000", "nftables").verdict is Verdict.UNCLEAR
    assert "others kept 0.5 processors busy" in bar(run, "one endpoint change", "nftables").note
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
    good = made_up()
    assert bar(good, "last of 10000 Services, against direct", "ebpf-connect").verdict is Verdict.MET
    assert bar(good, "against iptables", "nftables").verdict is Verdict.MET
    assert bar(good, "p99 connect latency", "nftables").verdict is Verdict.MET
    assert bar(good, "cold start, 30000", "nftables").verdict is Verdict.MET
    assert bar(good, "memory", "nftables").measured == pytest.approx(200)
    slow = made_up(speed={"nftables": 0.5, "ebpf-connect": 0.985}, noise=0.03)
    assert bar(slow, "last of 10000 Services, against direct", "nftables").verdict is Verdict.MISSED
    assert bar(slow, "last of 10000 Services, against direct", "ebpf-connect").verdict is Verdict.UNCLEAR
    small = made_up(services=(100,))
    assert {row.verdict for row in bars(small) if "Services" in row.what} == {Verdict.UNMEASURED}
    assert all(row.note for row in bars(small) if row.verdict is Verdict.UNMEASURED)


def test_bars_are_those_of_the_modes_that_were_measured() -> None:
    assert {row.mode for row in bars(made_up(modes=("iptables",)))} == set()
    assert {row.mode for row in bars(made_up(modes=("nftables",)))} == {"nftables"}


def test_sentences_say_who_wins_and_where_iptables_does() -> None:
    found = analyse(made_up(speed={"iptables": 1.2}, services=(1, 10000)))
    said = sentences(found)
    assert any(text.startswith("new TCP connections, 1 Service:") and "iptables wins" in text for text in said)
    assert any("10,000 Services, last of them: ebpf-connect wins" in text for text in said)
    wins = iptables_wins(found)
    assert any("wins: new TCP connections, 1 Service." in text for text in wins)
    assert not any("new TCP connections, 10,000 Services (last)" in text for text in wins)


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
        (2.345, "s", "2.35 s"),
        (0.045, "s", "45 ms"),
        (91e6, "B", "91 MB"),
    ],
)
def test_quantities_read_well(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text
