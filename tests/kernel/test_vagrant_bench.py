"""The benchmark between machines, all but ssh and the machines: real load, real rules, through the command line."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from dataplane.bench.figures.results import Results, read
from dataplane.bench.load.native import python_tool
from dataplane.bench.profiles import Settings
from dataplane.bench.remote import site as site_module
from dataplane.bench.remote.between import EXTENTS, settings
from dataplane.bench.remote.site import Site
from dataplane.bench.remote.vagrant import EMULATED, arguments, bench, page, run
from dataplane.bench.scenarios import SCENARIOS
from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec
from dataplane.lab.vagrant.report import Report, TableRun, write
from dataplane.lab.vagrant.run import facts
from dataplane.lab.vagrant.settings import Settings as LabSettings
from dataplane.model.net import Family
from tests.kernel.machines import Namespaces

SCENARIO_NAMES = ("connect", "TCP_CRR", "TCP_RR", "TCP_STREAM", "north-remote", "north-remote-rr")
SLOWNESS = 4.0
"""What time limits are multiplied by: machines of a test have other work."""


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespaces]:
    spec = LabSpec(name=f"w{os.getpid()}", nodes=2, pods=1, ipv6=True)
    with Lab.up(spec) as lab, Namespaces(lab, tmp_path_factory.mktemp("machines")) as found:
        yield found


def wanted(machines: Namespaces, modes: tuple[str, ...], family: Family = Family.IPV4) -> Settings:
    base = replace(EXTENTS["standard"], rounds=1, seconds=0.05, family=family)
    return settings(base, machines.spec, modes, (3,))


def left_behind(machines: Namespaces) -> str:
    """Rules of the router that are the benchmark's, files, and listening servers."""
    rules = machines.run("net", ["sh", "-c", "ip rule; ip -6 rule"]).stdout.decode()
    found = [line for line in rules.splitlines() if line.startswith("50:")]
    found += [path.name for path in Path(machines.scratch).glob("hotplane-load*")]
    return "\n".join(found) + machines.run(machines.pods[1].name, ["ss", "-Hltn"]).stdout.decode()


def test_every_mode_and_scenario_gives_figures(machines: Namespaces, tmp_path: Path) -> None:
    with Site(machines, Family.IPV4, SLOWNESS) as site:
        chosen = wanted(machines, ("iptables", "nftables", "ebpf"))
        results = run(site, chosen, tmp_path, "vagrant/lab bench", emulated=True)
    assert {cell.key.mode for cell in results.cells} == {"direct", "direct-again", "iptables", "nftables", "ebpf"}
    assert {cell.key.scenario for cell in results.cells} == set(SCENARIO_NAMES)
    assert len(results.cells) == 5 * 6
    assert [f"{cell.key}: {cell.error}" for cell in results.cells if cell.error] == []
    assert all(cell.figures["rate"] > 0 for cell in results.cells)
    assert (results.settings.load_tool, results.machine.kernel) == ("c", os.uname().release)
    assert read(tmp_path / "bench.json") == results
    assert not (tmp_path / "bench.json.journal").exists()
    assert EMULATED in page(results)
    assert not left_behind(machines)


def test_the_command_adds_to_the_labs_report(
    machines: Namespaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the connection, and the patience with machines that are slow: the words of the command line, the
    report with what was in it."""
    monkeypatch.setitem(EXTENTS, "emulated", replace(EXTENTS["emulated"], seconds=0.05))
    lab = LabSettings(machines.spec, SLOWNESS, "box", "qemu")
    before = TableRun("nftables", 5, {"dnat": 5}, [], 1.4, 2.6, {}, [])
    write(Report(facts(machines, lab), [before]), tmp_path)
    words = f"--ssh-config - --report {tmp_path} --profile emulated --modes nftables --services 2 --rounds 1"
    assert bench(arguments().parse_args(words.split()), machines, lab) == 0
    whole = msgspec.json.decode((tmp_path / "report.json").read_bytes(), type=Report)
    assert whole.table == [before]
    assert whole.benchmark
    results = msgspec.json.decode(whole.benchmark.results, type=Results)
    assert {cell.key.mode for cell in results.cells} == {"direct", "direct-again", "nftables"}
    command = "vagrant/lab bench --profile emulated --family ipv4 --modes nftables --services 2 --rounds 1 --seed 1"
    assert results.command == command
    assert EMULATED in (tmp_path / "report.md").read_text()


def test_ipv6_and_machines_that_cannot_run_what_is_compiled_here(
    machines: Namespaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_module, "load_tool", lambda: python_tool("no compiler"))
    with Site(machines, Family.IPV6, SLOWNESS) as site:
        results = run(site, wanted(machines, ("nftables",), Family.IPV6), tmp_path, "vagrant/lab bench", emulated=False)
    assert [f"{cell.key}: {cell.error}" for cell in results.cells if cell.error] == []
    assert len(results.cells) == 3 * 6
    assert results.settings.load_tool == "python"
    assert "no compiler" in results.machine.notes
    assert EMULATED not in page(results)


def test_direct_from_outside_goes_the_way_of_the_node_port(machines: Namespaces) -> None:
    """Node 1 forwards it: with forwarding off there, nothing comes back."""
    chosen = wanted(machines, ())
    with Site(machines, Family.IPV4, SLOWNESS) as site, netns(machines.nodes[0].netns):
        assert site.measure("direct", SCENARIOS["north-remote"], 3, chosen)["operations"] > 0
        subprocess.run(["sysctl", "-qw", "net.ipv4.ip_forward=0"], check=True)
        try:
            assert not site.measure("direct", SCENARIOS["north-remote"], 3, chosen)["operations"]
        finally:
            subprocess.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True)


def test_a_mode_without_rules_has_no_figures(machines: Namespaces) -> None:
    with Site(machines, Family.IPV4, SLOWNESS) as site:
        found = site.measure("nftables", SCENARIOS["connect"], 3, wanted(machines, ()))
    assert not found["operations"]
