"""The scenario table, with real sockets, through each plane, against the oracle: both families, both pod routings; the
eBPF plane with each of its hooks on and off, and with and without parity to kube-proxy's masquerade."""

import os
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from dataplane.lab.lab import Lab
from dataplane.lab.scenarios import showcase, table, verify
from dataplane.lab.spec import PodLink, Routing
from dataplane.lab.traffic.probe import Probe
from dataplane.model.net import Family, Protocol
from dataplane.oracle.decide import Verdict
from dataplane.plan.types import FrontendKind
from dataplane.policy.forwarding import LbMode
from tests.kernel.modes import VARIANTS, lab_proxy

SHARED = 200
SHAPES = ((Routing.DIRECT, PodLink.VETH), (Routing.VXLAN, PodLink.BRIDGE))


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: "-".join(shape))
def lab(request: pytest.FixtureRequest, slowness: float) -> Iterator[Lab]:
    routing, pod_link = request.param
    spec = replace(table.SPEC, name=f"t{os.getpid()}-{routing}", routing=routing, pod_link=pod_link, ipv6=True)
    with Lab.up(spec) as lab:
        lab.allow(slowness)
        lab.start_echo(lab.pods, [table.TARGET_PORT])
        yield lab


_PACKETS = {"tc_ingress:flow", "tc_egress:reply"}
_WAYS = {
    "ebpf": _PACKETS | {"connect:connected", "xdp:left_to_tc"},
    "ebpf-parity": _PACKETS | {"connect:connected", "xdp:left_to_tc"},
    "ebpf-connect": {"connect:connected", "recvmsg:renamed"},
    "ebpf-tc": _PACKETS | {"tc_ingress:new_flow"},
    "ebpf-xdp-parity": _PACKETS | {"tc_ingress:new_flow", "xdp:left_to_tc"},
}
"""Where each variant must have balanced, or the table would only prove the slow path. XDP leaves packets that stay on
the node, or that go through a tunnel, to tc; with direct routing it also sends on what leaves again."""
_ABSENT = {
    "ebpf-connect": {"tc_ingress", "tc_egress", "xdp"},
    "ebpf-tc": {"connect", "sendmsg", "xdp"},
    "ebpf-xdp-parity": {"connect", "sendmsg"},
}


@pytest.mark.parametrize("mode", VARIANTS)
def test_scenario_table(lab: Lab, mode: str, slowness: float) -> None:
    services = table.services(lab.topology, ipv6=True)
    cells = table.cells(services, lab.topology)
    with lab_proxy(lab, mode) as proxy:
        proxy.update(table.objects(services))
        verdicts = {d.verdict for d in verify.decisions(lab, proxy.oracles(), cells)}
        findings = verify.verify(lab, proxy, cells, slowness=slowness)
        counted = proxy.counters()
    assert len(cells) == len(services) * 4 * 2 * 2 * len(table.SOURCES)
    assert verdicts == {Verdict.DNAT, Verdict.REJECT, Verdict.DROP}
    assert not findings, "\n".join([*map(str, findings[:20]), str(counted)])
    assert all(counted.get(way, 0) > len(cells) / 20 for way in _WAYS.get(mode, ())), repr(counted)
    if "xdp:left_to_tc" in _WAYS.get(mode, ()) and lab.spec.routing is Routing.DIRECT:
        assert {"xdp:new_flow", "xdp:flow", "xdp:reply"} <= counted.keys()
    assert not {way.partition(":")[0] for way in counted} & _ABSENT.get(mode, set())


def test_cells_whose_clients_keep_their_address_on_the_way(lab: Lab, slowness: float) -> None:
    """Traffic from outside to pods of another node: by a tunnel over one routing, by direct server return over the
    other."""
    services = table.services(lab.topology, ipv6=True)
    way = LbMode.DSR if lab.spec.routing is Routing.DIRECT else LbMode.TUNNEL
    with lab_proxy(lab, "ebpf", way) as proxy:
        proxy.update(table.objects(services))
        every = table.cells(services, lab.topology)
        decided = zip(every, verify.decisions(lab, proxy.oracles(), every), strict=True)
        cells = {cell: decision for cell, decision in decided if decision.tunnels}
        findings = verify.verify(lab, proxy, list(cells), slowness=slowness)
        counted = proxy.counters()
    assert {(cell.source, cell.kind, cell.protocol, cell.family) for cell in cells} == {
        ("outside", kind, protocol, family)
        for kind in (FrontendKind.NODE_PORT, FrontendKind.LOAD_BALANCER, FrontendKind.EXTERNAL_IP)
        for protocol in (Protocol.TCP, Protocol.UDP)
        for family in Family
    }
    assert not any(decision.masquerade for decision in cells.values())
    assert not findings, "\n".join([*map(str, findings[:20]), str(counted)])
    assert counted.get("tc_ingress:forwarded", 0) + counted.get("xdp:forwarded", 0) > len(cells)


@pytest.mark.parametrize("mode", ["nftables", "ebpf"])
def test_the_table_notices_a_plane_that_is_not_there(lab: Lab, mode: str) -> None:
    """The table can fail: with the rules of one node removed behind the plane's back, its cells must disagree."""
    services = table.services(lab.topology, ipv6=True)[:1]
    cells = table.cells(services, lab.topology)
    with lab_proxy(lab, mode) as proxy:
        proxy.update(table.objects(services))
        proxy.nodes["node1"].cleanup()
        bare = [cell for cell in cells if cell.decides == "node1"]
        findings = verify.verify(lab, proxy, bare, patience=1.0)
        others = verify.verify(lab, proxy, [cell for cell in cells if cell not in bare])
    assert ([finding.cell for finding in findings], others) == (bare, [])


@pytest.mark.parametrize("mode", VARIANTS)
def test_each_endpoint_gets_its_share(lab: Lab, mode: str) -> None:
    """Of two endpoints, whoever asks: by whatever hook the choice is made, and where one leaves it to the next."""
    services = [
        s
        for s in table.services(lab.topology, ipv6=False)
        if s.service.name == "both-external-cluster-internal-cluster"
    ]
    with lab_proxy(lab, mode) as proxy:
        proxy.update(table.objects(services))
        every = [cell for cell in table.cells(services, lab.topology) if cell.protocol is Protocol.UDP]
        decided = zip(every, verify.decisions(lab, proxy.oracles(), every), strict=True)
        cells = [cell for cell, decision in decided if decision.verdict is Verdict.DNAT]
        probes = [Probe(cell.address, cell.port, Protocol.UDP, count=SHARED, timeout=60.0) for cell in cells]
        results = [lab.probe(cell.place, probe)[0] for cell, probe in zip(cells, probes, strict=True)]
    assert len(cells) == 4 * len(table.SOURCES)
    unfair = [
        f"{cell.kind.value} from {cell.source}: {dict(result.servers)}"
        for cell, result in zip(cells, results, strict=True)
        if result.servers.total() != SHARED or not 0.3 < result.servers["pod1-1"] / SHARED < 0.7
    ]
    assert unfair == []  # by chance once in 60 million


@pytest.mark.parametrize("mode", VARIANTS)
def test_showcase(mode: str) -> None:
    with Lab.up(replace(showcase.SPEC, name=f"s{os.getpid()}")) as lab:
        lab.start_echo(lab.pods, [8080])
        with lab_proxy(lab, mode, None if mode == "ebpf-connect" else LbMode.SNAT) as proxy:
            results = showcase.run_all(lab, proxy)
    failed = [f"{scenario.name}: {result.seen}" for scenario, result in results if not result.passed]
    assert len(results) == len(showcase.SCENARIOS)
    assert not failed, "\n".join(failed)
    unable = {scenario.name for scenario, result in results if not result.able}
    forwards = mode.startswith("ebpf") and mode != "ebpf-connect"
    assert unable == (set() if forwards else {"imbalance, tunnel", "imbalance, dsr"})
