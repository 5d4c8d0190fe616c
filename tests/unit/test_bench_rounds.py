"""The order of a run: rounds of everything, shuffled, the warm-up dropped, broken modes left out."""

import os
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from dataplane.bench.figures import hdr
from dataplane.bench.figures.results import CellKey, Journal, Results, read_journal
from dataplane.bench.left_out import LeftOut
from dataplane.bench.machine.facts import facts
from dataplane.bench.profiles import Overrides, Settings, settings
from dataplane.bench.rig import Rig
from dataplane.bench.run import Runner, all_keys, judged
from dataplane.lab.spec import LabError

SETTINGS = msgspec.structs.replace(
    settings(
        "quick", Overrides(["iptables", "nftables"], ["connect", "TCP_RR", "coldstart", "change"], [1, 50], rounds=4)
    ),
    control_rounds=2,
    light_control_rounds=2,
)


class FakeRig:
    """Remembers what is asked of it. broken: modes that do not start; failing: modes whose operations fail."""

    def __init__(self, group: Path, broken: str = "", failing: str = "", load_seconds: float = 0.1) -> None:
        self.group, self.broken, self.failing, self.load_seconds = group, broken, failing, load_seconds
        self.asked: list[tuple[str, ...]] = []
        self.paced: list[tuple[str, float, float]] = []
        (group / "cpu.stat").write_text("usage_usec 0\n")

    def restart_agent(self, mode: str) -> None:
        self.asked.append(("restart", mode))

    def load(self, mode: str, services: int) -> dict[str, float]:
        self.asked.append(("load", mode, str(services)))
        if mode == self.broken:
            raise LabError("the kernel refuses")
        return {"seconds": self.load_seconds}

    def agent(self, mode: str) -> "FakeRig":
        return self

    def ask(self, line: bytes, patience: float) -> dict[str, float]:
        return {"p50": 1.0, "p99": 2.0}

    def ends(self, mode: str, scenario: object) -> tuple[list[int], list[int]]:
        return [os.getpid()], [os.getpid()]

    def target(self, *_: object) -> tuple[str, int]:
        return "10.96.0.1", 80

    def traffic(
        self, mode: str, operation: str, target: object, seconds: float, outside: bool, rate: float = 0.0
    ) -> dict[str, Any]:
        self.asked.append((operation, mode))
        failures = 50.0 if mode == self.failing else 0.0
        found = {"operations": 100.0, "failures": failures, "seconds": 0.1}
        if rate:
            self.paced.append((mode, rate, seconds))
            return found | {"p99": 2e5, "counts": [[200, 99], [300, 1]], "behind": 0.0}
        return found


def run(tmp_path: Path, rig: FakeRig, chosen: Settings = SETTINGS, **known: Any) -> Results:
    results = Results(facts(), chosen, **known)
    with Journal(tmp_path / "journal", results, append=False) as journal:
        Runner(cast(Rig, rig), results, journal, lambda done, total, remaining, what: None).run()
    return results


def test_every_cell_is_measured_once_and_journalled(tmp_path: Path) -> None:
    results = run(tmp_path, FakeRig(tmp_path))
    assert sorted(cell.key for cell in results.cells) == sorted(all_keys(SETTINGS))
    assert read_journal(tmp_path / "journal").cells == results.cells


def test_rounds_hold_everything_in_another_order_each(tmp_path: Path) -> None:
    results = run(tmp_path, FakeRig(tmp_path))
    rounds: dict[int, list[tuple[str, str, str]]] = {}
    for cell in results.cells:
        key = cell.key
        if key.services == 50 and key.scenario in ("connect", "TCP_RR"):
            rounds.setdefault(key.round, []).append((key.mode, key.scenario, key.position))
    assert sorted(rounds) == list(rounds) == [1, 2, 3, 4]  # one round is over before the next begins
    assert len({tuple(order) for order in rounds.values()}) == 4
    assert len({frozenset(order) for order in rounds.values()}) == 1


def test_what_is_compared_with_each_other_follows_closely(tmp_path: Path) -> None:
    chosen = msgspec.structs.replace(SETTINGS, scenarios=("connect", "pod", "connect-alone", "TCP_RR"))
    results = run(tmp_path, FakeRig(tmp_path), chosen)
    blocks = {"pod": "connect last", "connect-alone": "connect last"}
    for number in range(1, 5):
        keys = [cell.key for cell in results.cells if (cell.key.services, cell.key.round) == (50, number)]
        order = [blocks.get(key.scenario, f"{key.scenario} {key.position}") for key in keys]
        runs = [name for at, name in enumerate(order) if at == 0 or order[at - 1] != name]
        assert len(runs) == len(set(runs)) == 3  # connect at first and last, rr


def test_nodes_with_one_service_stand_beside_the_largest_stage(tmp_path: Path) -> None:
    chosen = msgspec.structs.replace(SETTINGS, scenarios=("connect", "connect-alone"))
    rig = FakeRig(tmp_path)
    results = run(tmp_path, rig, chosen)
    assert sorted(cell.key for cell in results.cells) == sorted(all_keys(chosen))
    assert [what[1:] for what in rig.asked if what[0] == "load" and what[1].endswith("-alone")] == [
        ("iptables-alone", "1"),
        ("nftables-alone", "1"),
    ]
    assert rig.asked.index(("load", "nftables-alone", "1")) > rig.asked.index(("load", "nftables", "50"))
    used = {what[1] for what in rig.asked if what[0] == "connect"}
    assert {"direct", "nftables", "nftables-alone", "iptables-alone"} <= used


def test_scenarios_without_a_bar_have_fewer_rounds(tmp_path: Path) -> None:
    chosen = msgspec.structs.replace(SETTINGS, light_rounds=2)
    results = run(tmp_path, FakeRig(tmp_path), chosen)
    assert sorted(cell.key for cell in results.cells) == sorted(all_keys(chosen))
    assert {cell.key.round for cell in results.cells if cell.key.scenario == "TCP_RR"} == {1, 2}
    assert {cell.key.round for cell in results.cells if cell.key.scenario == "connect"} == {1, 2, 3, 4}


def test_the_way_to_the_end_is_told_and_gets_no_longer(tmp_path: Path) -> None:
    told: list[tuple[int, int, float]] = []
    results = Results(facts(), SETTINGS)
    rig = FakeRig(tmp_path, broken="iptables", load_seconds=99.0)
    with Journal(tmp_path / "journal", results, append=False) as journal:
        Runner(cast(Rig, rig), results, journal, lambda done, total, left, what: told.append((done, total, left))).run()
    assert told[0][1] == len(list(all_keys(SETTINGS)))
    assert [total for _, total, _ in told] == sorted((total for _, total, _ in told), reverse=True)
    assert told[-1][:2] == (len(results.cells) - 1, len(results.cells))
    assert all(left > 0 for _, _, left in told)


def test_the_warm_up_is_sent_but_not_recorded(tmp_path: Path) -> None:
    rig = FakeRig(tmp_path)
    results = run(tmp_path, rig)
    sent = sum(what == ("rr", "nftables") for what in rig.asked)
    recorded = sum(cell.key.mode == "nftables" and cell.key.scenario == "TCP_RR" for cell in results.cells)
    assert sent == recorded // SETTINGS.rounds * (SETTINGS.rounds + 1)
    assert min(cell.key.round for cell in results.cells) == 1


def test_a_mode_that_does_not_start_is_left_out_and_said_so(tmp_path: Path) -> None:
    rig = FakeRig(tmp_path, broken="iptables")
    results = run(tmp_path, rig)
    broken = [cell for cell in results.cells if cell.key.mode == "iptables"]
    assert {cell.key.scenario for cell in broken} == {"coldstart"}
    assert {cell.error for cell in broken} == {"the kernel refuses"}
    assert not any(what[1] == "iptables" for what in rig.asked if what[0] in ("connect", "rr"))
    assert all(not cell.error for cell in results.cells if cell.key.mode == "nftables")


def test_what_cannot_be_measured_here_is_told_by_name_and_has_no_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Runner, mode: str, scenario: str) -> dict[str, Any]:
        if mode == "nftables":
            raise LeftOut("the machine has too much of it")
        return {"p99": 1.0}

    monkeypatch.setattr(Runner, "_control", refuse)
    results = run(tmp_path, FakeRig(tmp_path))
    assert results.skipped == [
        f"left out: change of nftables at {count} Services: the machine has too much of it" for count in (1, 50)
    ]
    assert not any(cell.error for cell in results.cells)
    assert {cell.key.mode for cell in results.cells if cell.key.scenario == "change"} == {"iptables"}
    assert {cell.key for cell in results.cells if cell.key.mode == "nftables"}


def test_failing_operations_give_no_figures(tmp_path: Path) -> None:
    results = run(tmp_path, FakeRig(tmp_path, failing="nftables"))
    failed = [cell for cell in results.cells if cell.error]
    assert {cell.key.mode for cell in failed} == {"nftables"}
    assert {cell.error for cell in failed} == {"50 operations failed, 100 did not"}
    assert all(not cell.figures for cell in failed)


def test_a_slow_cold_start_is_not_repeated(tmp_path: Path) -> None:
    rig = FakeRig(tmp_path, load_seconds=99.0)
    results = run(tmp_path, rig)
    assert sum(what == ("load", "nftables", "50") for what in rig.asked) == 1
    again = FakeRig(tmp_path)
    run(tmp_path, again, cells=list(results.cells))
    assert again.asked == []


def test_a_resumed_run_measures_only_what_is_missing(tmp_path: Path) -> None:
    whole = run(tmp_path, FakeRig(tmp_path))
    lost = CellKey("nftables", "TCP_RR", 50, "last", 3)
    rig = FakeRig(tmp_path)
    results = run(tmp_path, rig, cells=[cell for cell in whole.cells if cell.key != lost])
    assert sorted(cell.key for cell in results.cells) == sorted(all_keys(SETTINGS))
    assert not any(what[-1] == "1" for what in rig.asked if what[0] == "load")  # that size was complete
    measured = [what for what in rig.asked if what[0] == "rr"]
    assert measured.count(("rr", "nftables")) == 2  # warm-up and the lost one


def test_processor_time_is_told_apart(tmp_path: Path) -> None:
    results = run(tmp_path, FakeRig(tmp_path))
    packets = [cell.figures for cell in results.cells if cell.key.scenario == "TCP_RR"]
    assert packets
    for figures in packets:
        assert {"cpu", "cpu_client", "cpu_server", "cpu_softirq", "others"} <= set(figures)
        assert figures["cpu_client"] > 0  # the fake's client is this very process


def test_paced_operations_are_due_at_a_share_of_the_modes_own_rate(tmp_path: Path) -> None:
    chosen = settings("quick", Overrides(["nftables"], ["TCP_CRR@50", "TCP_CRR@95"], [50], rounds=2))
    rig = FakeRig(tmp_path)
    results = run(tmp_path, rig, chosen)
    assert sorted(cell.key for cell in results.cells) == sorted(all_keys(chosen))
    assert {(mode, rate) for mode, rate, _ in rig.paced} == {
        (mode, share * 1000.0) for mode in ("direct", "direct-again", "nftables") for share in (0.5, 0.95)
    }
    assert {seconds for _, _, seconds in rig.paced} == {4 * chosen.seconds}
    for cell in results.cells:
        assert (hdr.decode(cell.histogram) if cell.histogram else {}) == (
            {200: 99, 300: 1} if "@" in cell.key.scenario else {}
        )
        assert "counts" not in cell.figures
    assert read_journal(tmp_path / "journal").cells == results.cells
    resumed = FakeRig(tmp_path)
    lost = [cell.key for cell in results.cells if cell.key.scenario == "TCP_CRR@95"]
    run(tmp_path, resumed, chosen, cells=[cell for cell in results.cells if cell.key not in lost])
    assert {rate for _, rate, _ in resumed.paced} == {950.0}


@pytest.mark.parametrize(("operations", "failures"), [(21, 1), (10, 1), (500, 5), (1, 0)])
def test_figures_with_few_failures(operations: int, failures: int) -> None:
    found = {"operations": operations, "failures": failures}
    assert judged(found) == found


@pytest.mark.parametrize(("operations", "failures"), [(0, 0), (0, 1), (9, 1), (21, 2), (500, 6)])
def test_no_figures_with_more(operations: int, failures: int) -> None:
    with pytest.raises(LabError, match=f"{failures} operations failed, {operations} did not"):
        judged({"operations": operations, "failures": failures})
