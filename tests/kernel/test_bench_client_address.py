"""The benchmark's modes that keep clients' addresses: every cell has figures, and the way is the one that is meant."""

import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from dataplane.bench.figures.results import Journal, Results
from dataplane.bench.load.generator import End
from dataplane.bench.load.native import load_tool
from dataplane.bench.machine.facts import facts
from dataplane.bench.modes import MODES
from dataplane.bench.objects import SERVER_PORT
from dataplane.bench.profiles import Overrides, settings
from dataplane.bench.rig import Rig, lab_name
from dataplane.bench.run import Runner, all_keys
from dataplane.bench.scenarios import SCENARIOS, Position
from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.lab import Lab
from dataplane.lab.spec import Node
from dataplane.model.net import Family
from tests.kernel.lost_packets import lost_packets
from tests.kernel.test_bench_run import without_figures

FORWARDING, SNAT = ("ebpf-tunnel", "ebpf-dsr"), "ebpf-xdp"
SERVICES = 20


class Measured(NamedTuple):
    """A rig after a run in these modes, loaded as it left it, and what it measured."""

    rig: Rig
    results: Results


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    chosen = Overrides((SNAT, *FORWARDING), ["north-remote", "north-remote-pps"], [SERVICES], rounds=1)
    results = Results(facts(), settings("tiny", chosen))
    with Rig(lab_name(), results.settings, load_tool()) as rig:
        with Journal(tmp_path_factory.mktemp("run") / "journal", results, append=False) as journal:
            Runner(rig, results, journal, lambda done, total, left, what: None).run()
        yield Measured(rig, results)
    assert lab_name() not in Lab.names()


@pytest.fixture
def rig(measured: Measured) -> Rig:
    return measured.rig


def test_every_cell_to_another_node_has_figures(measured: Measured) -> None:
    results = measured.results
    assert without_figures(results) == []
    assert {cell.key for cell in results.cells} == set(all_keys(results.settings))
    for mode in (SNAT, *FORWARDING):
        rates = {cell.key.scenario: cell.figures["rate"] for cell in results.cells if cell.key.mode == mode}
        assert set(rates) == {"north-remote", "north-remote-pps"}
        assert all(rate > 0 for rate in rates.values())


def clients_seen(rig: Rig, node: Node, mode: str) -> set[str]:
    """Who connects to the server on a node's first pod, as the pod sees it, while the outside client connects."""
    target = rig.target(mode, SCENARIOS["north-remote"], SERVICES, Position.LAST)
    with netns(node.pods[0].netns):
        seen = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    found: set[str] = set()
    with seen:
        done = rig.traffic(mode, "connect", target, 0.01, True)
        assert done["operations"] > done["failures"] == 0
        seen.setblocking(False)
        while True:
            try:
                packet = seen.recv(64)
            except BlockingIOError:
                return found
            if SERVER_PORT <= int.from_bytes(packet[22:24]) < SERVER_PORT + 100:
                found.add(socket.inet_ntoa(packet[12:16]))


@pytest.mark.parametrize("mode", [SNAT, *FORWARDING])
def test_the_pod_elsewhere_sees_the_client_where_the_mode_keeps_its_address(rig: Rig, mode: str) -> None:
    taking, client = rig.nodes[mode], rig.lab.client.addresses[Family.IPV4]
    kept = MODES[mode].forwards
    assert clients_seen(rig, rig.home(mode), mode) == {client if kept else taking.addresses[Family.IPV4]}
    assert (rig.home(mode) != rig.remote) == kept
    if kept:
        assert clients_seen(rig, rig.remote, mode) == set()


@pytest.mark.parametrize("mode", [SNAT, *FORWARDING])
def test_packets_of_the_kernels_own_making_are_counted_as_they_leave(rig: Rig, mode: str) -> None:
    target = rig.target(mode, SCENARIOS["north-remote-pps"], SERVICES, Position.LAST)
    node = rig.nodes[mode]
    with lost_packets(End(node.netns, node.uplink)) as lost:
        found = rig.live(mode, target, 0.02)
    assert max(0.99 * found["sent"] - lost(), 0.5 * found["sent"]) < found["operations"] < 1.01 * found["sent"]
