"""Maglev with real packets: the endpoint of each connection is the oracle's, whichever node it comes in by."""

import os
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace

from ctl.store.drift import plane_differences
from dataplane.kernel.namespaces import netns
from dataplane.kernel.netlink.conntrack import forget_all
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import LabProxy
from dataplane.lab.spec import LabSpec
from dataplane.lab.traffic.probe import Attempt, Outcome, Probe, split_port
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import EndpointSlice
from dataplane.oracle.decide import Packet
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.rows import rows
from dataplane.plan.types import Plan, PlanEntry
from dataplane.planes.ebpf.flows.entries import FLOW_TABLES
from dataplane.planes.ebpf.maps.layout import Sizes
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.policy.algorithm import Algorithm
from dataplane.policy.maglev import seed_of
from tests.kernel.ebpf_lab import SMALL, NoSlowPath, plan_of
from tests.kernel.ebpf_lab import service as entry_of
from tests.kernel.modes import lab_proxy
from tests.kernel.test_behaviours import PORTS, endpoints, service

PODS = ("pod1-1", "pod1-2", "pod1-3", "pod2-1", "pod2-2", "pod2-3")
EXTERNAL = {Family.IPV4: "203.0.113.77", Family.IPV6: "2001:db8:77::77"}
FLOWS = 125
FAMILIES = pytest.mark.parametrize("family", list(Family), ids=lambda family: family.name)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(LabSpec(name=f"mg{os.getpid()}", nodes=2, pods=(3, 3), ipv6=True)) as lab:
        lab.start_echo(lab.pods, PORTS)
        yield lab


@pytest.fixture(scope="module")
def proxy(lab: Lab) -> Iterator[LabProxy]:
    with lab_proxy(lab, "ebpf") as proxy:
        yield proxy


WEB = replace(
    service(Protocol.TCP, Protocol.UDP, node_port=30091), external_ips=tuple(EXTERNAL.values()), lb_algorithm="maglev"
)


def forget_flows(proxy: LabProxy) -> None:
    """Have all nodes forget all flows, or a port that a client uses again may lead where it led before."""
    for each in proxy.nodes.values():
        assert isinstance(each.plane, EbpfPlane)
        maps = each.plane.tables.maps
        for table in FLOW_TABLES:
            maps.remove(table, [key for key, _ in maps.items(table)])
        netns.in_netns(each.node.netns, forget_all)


def attempts(lab: Lab, proxy: LabProxy, probe: Probe) -> tuple[Attempt, ...]:
    forget_flows(proxy)
    (result,) = lab.probe("client", replace(probe, timeout=60.0))
    assert result.count(Outcome.ANSWERED) == probe.count, result.outcomes
    return result.attempts


def differ(lab: Lab, proxy: LabProxy, probe: Probe, node: str) -> list[str]:
    """Flows whose endpoint is not the one that the node's oracle names."""
    names = {pod.addresses[family]: pod.name for pod in lab.pods for family in Family}
    oracle, wrong = proxy.oracles()[node], []
    for attempt in attempts(lab, proxy, probe):
        source, port = split_port(attempt.local)
        decision = oracle.decide(Packet(source, probe.address, probe.port, probe.protocol, "", port))
        assert decision.chosen is not None
        if names[decision.chosen.address] != attempt.server:
            wrong.append(f"{decision.packet}: {attempt.server} instead of {decision.chosen}")
    return wrong


@pytest.fixture
def entering(lab: Lab) -> Iterator[Callable[[str], None]]:
    yield lab.set_entry
    lab.set_entry("node1")


@FAMILIES
def test_a_thousand_flows_get_the_oracle_s_endpoint(
    lab: Lab, proxy: LabProxy, family: Family, entering: Callable[[str], None]
) -> None:
    """500 of each family: TCP and UDP, at an external address by either node, and at a node port."""
    proxy.update([replace(WEB, affinity_seconds=0), *endpoints(lab, *PODS)])
    for node in ("node1", "node2"):
        entering(node)
        for protocol in (Protocol.TCP, Protocol.UDP):
            assert differ(lab, proxy, Probe(EXTERNAL[family], 80, protocol, count=FLOWS), node) == []
    own = lab.place("node2").addresses[family]
    assert differ(lab, proxy, Probe(own, 30091, Protocol.UDP, count=10), "node2") == []


@FAMILIES
def test_one_flow_has_one_endpoint_by_every_node(
    lab: Lab, proxy: LabProxy, family: Family, entering: Callable[[str], None]
) -> None:
    proxy.update([replace(WEB, affinity_seconds=0), *endpoints(lab, *PODS)])
    forget_flows(proxy)
    ports = range(42000, 42030)

    def servers() -> list[str]:
        probes = [Probe(EXTERNAL[family], 80, Protocol.UDP, source_port=port, timeout=60.0) for port in ports]
        return [result.attempts[0].server for result in lab.probe("client", *probes)]

    by_one = servers()
    entering("node2")
    assert servers() == by_one
    assert len(set(by_one)) > 2
    # Another endpoint goes: hardly anybody else's moves.
    gone = by_one[0]
    proxy.update(endpoints(lab, *[pod for pod in PODS if pod != gone]))
    moved = [now for was, now in zip(by_one, servers(), strict=True) if was not in (gone, now)]
    assert len(moved) <= 2


@FAMILIES
def test_with_affinity_the_client_decides(
    lab: Lab, proxy: LabProxy, family: Family, entering: Callable[[str], None]
) -> None:
    """By its address alone, so by every node and at every frontend; what a node remembers goes before."""
    proxy.update([replace(WEB, affinity_seconds=600), *endpoints(lab, *PODS)])

    def answering(probe: Probe) -> set[str]:
        return {attempt.server for attempt in attempts(lab, proxy, probe)}

    seen = answering(Probe(EXTERNAL[family], 80, count=6))
    entering("node2")
    seen |= answering(Probe(EXTERNAL[family], 80, count=6))
    own = lab.place("node2").addresses[family]
    seen |= answering(Probe(own, 30091, Protocol.UDP, count=6))
    assert len(seen) == 1
    (first,) = seen
    proxy.update(endpoints(lab, first, *[pod for pod in PODS if pod != first][:2]))
    assert answering(Probe(EXTERNAL[family], 80, count=6)) == seen
    proxy.update([replace(WEB, affinity_seconds=0)])


def test_pods_are_balanced_by_chance(lab: Lab, proxy: LabProxy) -> None:
    """At connect time, from the same list, weights included."""
    slices = [replace(piece, endpoints=_weighted(piece)) for piece in endpoints(lab, *PODS)]
    proxy.update([WEB, *slices])
    probe = Probe(EXTERNAL[Family.IPV4], 80, count=300, timeout=60.0)
    (result,) = lab.probe("pod2-2", probe)
    shares = {pod: result.servers[pod] / 300 for pod in PODS}
    assert shares["pod1-2"] == 0.0
    assert abs(shares["pod1-1"] - 0.6) < 0.15
    for protocol in (Protocol.TCP, Protocol.UDP):
        assert differ(lab, proxy, Probe(EXTERNAL[Family.IPV4], 80, protocol, count=60), "node1") == []


def _weighted(piece: EndpointSlice) -> tuple[object, ...]:
    weights = (6, 0, 1, 1, 1, 1)
    return tuple(
        replace(endpoint, traits=replace(endpoint.traits, weight=weight))
        for endpoint, weight in zip(piece.endpoints, weights, strict=True)
    )


def test_the_kernel_holds_the_tables_and_a_wrong_slot_is_noticed(lab: Lab, proxy: LabProxy) -> None:
    node = proxy.nodes["node1"]
    proxy.update([WEB, *endpoints(lab, *PODS)])
    plane, plan = node.plane, node.planner.plan
    assert isinstance(plane, EbpfPlane)
    with netns.netns(node.node.netns):
        assert list(plane_differences(plane, rows(plan))) == []
        held = {entry.key: plane.tables.installed[entry.key] for entry in plan.entries.values()}
        assert all(installed.steady.slots == 16381 for installed in held.values())
        plane.load(plan)  # adopts what is there, as it is
        assert list(plane_differences(plane, rows(plan))) == []
        again = {key: plane.tables.installed[key] for key in held}
        assert {key: one.steady for key, one in again.items()} == {key: one.steady for key, one in held.items()}
        some = next(iter(held.values()))
        slots = plane.tables.maps.memory["slots"].cast("Q")
        at = some.steady.base + 5
        other = next(i for i in some.backends if i != slots[at])
        slots[at] = other
        found = [difference.difference for difference in plane_differences(plane, rows(plan))]
        assert set(found) == {"clients from outside are led by random instead of maglev"}
        plane.load(plan)
        assert list(plane_differences(plane, rows(plan))) == []


@pytest.fixture
def make_plane(namespace: str) -> Iterator[Callable[[Sizes], EbpfPlane]]:
    made: list[EbpfPlane] = []

    def make(sizes: Sizes) -> EbpfPlane:
        with netns.netns(namespace):
            made.append(EbpfPlane(NoSlowPath(), sizes=sizes))
        return made[-1]

    yield make
    for plane in made:
        plane.cleanup()


def external(number: int) -> PlanEntry:
    entry = entry_of(f"s{number}", node_port=30000 + number, address=f"172.30.1.{number}")
    return replace(entry, algorithm=Algorithm.MAGLEV)


def planned(*entries: PlanEntry, size: int, seed: str = "a") -> Plan:
    plan = plan_of(*entries)
    plan.node = replace(plan.node, maglev_table_size=size, hash_seed=seed)
    return plan


def test_who_does_not_fit_is_named_and_drawn_at_random(make_plane: Callable[[Sizes], EbpfPlane]) -> None:
    """Room for one table; the next Service gets it when the first one goes."""
    plane = make_plane(replace(SMALL, slots=2048))
    one, two = external(1), external(2)
    plan = planned(one, two, size=1021)
    plane.load(plan)
    assert plane.read_back() == rows(plan)
    [sentence] = plane.finish_load()
    assert sentence.startswith(f"Service {two.key.service} is balanced at random, not by maglev: 1 tables take up")
    assert plane.tables.installed[two.key].steady.slots == 0
    plane.apply(PlanChange((EntryChange(one, None),)))
    assert plane.finish_load() == []
    assert plane.tables.installed[two.key].steady.slots == 1021
    assert plane.read_back() == rows(planned(two, size=1021))
    plane.apply(PlanChange((EntryChange(None, one),)))
    [sentence] = plane.finish_load()
    assert one.key.service in sentence


def test_who_is_not_in_the_maps_at_all_stays_out_when_a_table_is_free(make_plane: Callable[[Sizes], EbpfPlane]) -> None:
    """Room for one table and two Services: the second gets the table, the third is still served by the slow path."""
    plane = make_plane(replace(SMALL, slots=2048, frontends=4))
    one, two, three = external(1), external(2), external(3)
    plane.load(planned(one, two, three, size=1021))
    assert set(plane.tables.overflow) == {three.key}
    plane.apply(PlanChange((EntryChange(one, replace(one, algorithm=Algorithm.RANDOM)),)))
    assert plane.tables.installed[two.key].steady.slots == 1021
    assert set(plane.tables.overflow) == {three.key}


@pytest.mark.parametrize("changed", ["size", "seed"])
def test_other_tables_replace_those_of_an_earlier_run(make_plane: Callable[[Sizes], EbpfPlane], changed: str) -> None:
    sizes = replace(SMALL, slots=4096)
    first = make_plane(sizes)
    first.load(planned(external(1), size=251))
    first.close()
    second = make_plane(sizes)
    plan = planned(external(1), size=509) if changed == "size" else planned(external(1), size=251, seed="b")
    second.load(plan)
    assert second.read_back() == rows(plan)
    assert second.tables.maps.node()["hash_seed"] == seed_of(plan.node.hash_seed)
    second.apply(PlanChange(node=replace(plan.node, maglev_table_size=1021, hash_seed="c")))
    assert second.read_back() == rows(plan)
    assert [installed.steady.slots for installed in second.tables.installed.values()] == [1021]
    third = make_plane(sizes)
    third.load(planned(external(1), size=0))
    assert third.read_back() != rows(plan)
