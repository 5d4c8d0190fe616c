"""The benchmark between machines without machines: what is measured in which order, failures, and its page."""

from pathlib import Path
from typing import Any, Self

import pytest
from msgspec.structs import replace

from dataplane.bench.figures.results import Journal, Machine, Results, read_journal
from dataplane.bench.modes import AGAIN, DIRECT, LAB_MODES, MODES
from dataplane.bench.profiles import Settings
from dataplane.bench.remote import between
from dataplane.bench.remote.between import BETWEEN, EXTENTS, Between, settings
from dataplane.bench.remote.vagrant import EMULATED, page
from dataplane.bench.scenarios import Scenario
from dataplane.errors import UsageError
from dataplane.lab.spec import LabError, LabSpec, Pod, Routing, topology
from dataplane.lab.vagrant.proxies import VARIANTS
from dataplane.model.net import Family

SPEC = LabSpec(nodes=2, pods=1)


class FakeSite:
    """Everybody's rate is 1000, a mode's is 500; `broken` modes answer with an error."""

    def __init__(self, log: list[str], broken: tuple[str, ...] = ()) -> None:
        self.machines, self._log, self._broken = None, log, broken

    @property
    def server(self) -> Pod:
        return topology(SPEC).nodes[1].pods[0]

    def measure(self, mode: str, scenario: Scenario, services: int, settings: Settings) -> dict[str, float]:
        self._log.append(f"{scenario.name} in {mode}")
        if mode in self._broken:
            return {"operations": 90.0, "failures": 10.0, "rate": 90.0}
        rate = 1000.0 if MODES[mode].reference else 500.0
        return {"rate": rate, "operations": rate, "failures": 0.0, "seconds": 1.0, "p50": 1e5, "p99": 2e5}


def run_with(
    monkeypatch: pytest.MonkeyPatch, path: Path, wanted: Settings, broken: tuple[str, ...] = (), refused: str = ""
) -> tuple[list[str], Results]:
    log: list[str] = []

    class FakeProxies:
        def __init__(self, machines: None, mode: str) -> None:
            self.mode, self.said = mode, [f"node1: {mode} says a word"]

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            log.append(f"clean {self.mode}")

        def load(self, objects: list[Any]) -> None:
            log.append(f"load {len(objects)} in {self.mode}")
            if self.mode == refused:
                raise LabError("node1: no ip_vs")

    monkeypatch.setattr(between, "MachineProxies", FakeProxies)
    results = Results(Machine(notes=(EMULATED,)), wanted, "vagrant/lab bench", complete=True)
    with Journal(path / "journal", results, append=False) as journal:
        Between(FakeSite(log, broken), results, journal, log.append).run()  # type: ignore[arg-type]
    assert read_journal(path / "journal").cells == results.cells
    return log, results


def small(*modes: str) -> Settings:
    return settings(replace(EXTENTS["standard"], rounds=3), SPEC, modes, (1, 4))


def test_every_round_loads_every_mode_anew_and_measures_it_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log, results = run_with(monkeypatch, tmp_path, small("nftables", "ipvs"))
    assert len(results.cells) == len({cell.key for cell in results.cells}) == 2 * 3 * 4 * 6
    loaded = ""
    for line in log:
        words = line.split()
        if words[0] == "load":
            assert not loaded
            loaded = words[-1]
        elif words[0] == "clean":
            loaded = ""
        elif words[0] in results.settings.scenarios:
            assert words[-1] == loaded or (not loaded and MODES[words[-1]].reference)
    assert len([line for line in log if line.startswith("load")]) == 2 * 3 * 2
    orders = [cell.key.mode for cell in results.cells][::6]
    turns = {tuple(orders[at : at + 4]) for at in range(0, len(orders), 4)}
    assert len(turns) > 1
    assert all(sorted(turn) == ["direct", "direct-again", "ipvs", "nftables"] for turn in turns)
    assert sorted(results.skipped) == ["node1: ipvs says a word", "node1: nftables says a word"]


def test_a_mode_that_does_not_load_or_fails_is_recorded_as_such(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log, results = run_with(monkeypatch, tmp_path, small("nftables", "ipvs"), ("nftables",), "ipvs")
    errors = {cell.key.mode: cell.error for cell in results.cells}
    assert errors == {
        "direct": "",
        "direct-again": "",
        "ipvs": "node1: no ip_vs",
        "nftables": "10 operations failed, 90 did not",
    }
    assert "clean ipvs" in log
    assert len(results.cells) == 2 * 3 * 4 * 6


def test_the_page_shows_ratios_to_direct_and_says_that_machines_are_emulated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, results = run_with(monkeypatch, tmp_path, small("nftables", "ipvs", "ebpf"))
    text = page(results)
    assert f"> {EMULATED}" in text
    assert "> FEW ROUNDS: 3 of at least 5" in text
    results.settings = replace(results.settings, rounds=5)
    assert "FEW ROUNDS" not in page(results)
    for mode in ("nftables", "ipvs", "ebpf"):
        assert f"| connect | 4 | {mode} | 500 | /s | 0% | 3 | 0.50 [0.50, 0.50] | 0.0% | 100 | 200 |" in text
    assert "| connect | 4 | direct | 1,000 | /s |" in text
    assert "by `vagrant/lab bench`" in text


def test_what_can_be_asked_for() -> None:
    emulated = settings(EXTENTS["emulated"], SPEC)
    assert emulated.modes == ("direct", "direct-again", "iptables", "nftables", "ebpf", "ipvs")
    assert emulated.light_rounds == emulated.rounds
    chosen = settings(EXTENTS["standard"], replace(SPEC, routing=Routing.VXLAN), ("ipvs",), (5, 2, 5))
    assert (chosen.modes, chosen.services, chosen.fixed_services) == (
        ("direct", "direct-again", "ipvs"),
        (2, 5),
        (2, 5),
    )
    assert chosen.routing is Routing.VXLAN


@pytest.mark.parametrize(
    ("spec", "family", "modes", "services", "words"),
    [
        (SPEC, Family.IPV4, ("ebpf-parity",), (), "--modes ebpf-parity"),
        (SPEC, Family.IPV4, (), (0,), "--services 0"),
        (replace(SPEC, nodes=1), Family.IPV4, (), (), "HOTPLANE_VM_NODES"),
        (replace(SPEC, pods=0), Family.IPV4, (), (), "HOTPLANE_VM_PODS"),
        (SPEC, Family.IPV6, (), (), "HOTPLANE_VM_IPV6"),
    ],
)
def test_what_cannot_be_asked_for_is_named(
    spec: LabSpec, family: Family, modes: tuple[str, ...], services: tuple[int, ...], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        settings(replace(EXTENTS["standard"], family=family), spec, modes, services)


def test_modes_between_machines_are_known_by_name_and_not_measured_in_namespaces() -> None:
    assert set(BETWEEN) == {DIRECT, AGAIN, *VARIANTS} - {"ebpf-parity", "ebpf-tc-tunnel", "ebpf-tc-dsr"}
    assert set(BETWEEN) <= set(MODES)
    assert {"ipvs", "ebpf"}.isdisjoint(LAB_MODES)
