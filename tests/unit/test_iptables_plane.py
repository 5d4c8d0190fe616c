"""The iptables plane against tables in memory: any plan, any change, failures, leftovers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dataplane.errors import UsageError
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import (
    EndpointPort,
    EndpointSlice,
    ModelObject,
    ObjectRef,
    Service,
    ServicePortSpec,
    ServiceType,
    make_endpoint,
)
from dataplane.plan.planner import Planner
from dataplane.plan.rows import rows
from dataplane.planes.base import PlaneError
from dataplane.planes.iptables.fake import FakeTables
from dataplane.planes.iptables.plane import IptablesPlane
from dataplane.planes.iptables.readback import chains_of
from dataplane.planes.iptables.rules.names import is_service_chain
from dataplane.policy.node import LocalDetector, NodeConfig, NodePortAddresses
from tests.golden.iptables.plans import NODE, every_kind, slice_of, tcp

RANGES = ("192.168.0.0/16", "0.0.0.0/0", "203.0.113.0/24", "198.51.100.1/32", "2001:db8::/32", "2001:db8:2::1/128")


@st.composite
def services(draw: st.DrawFn, index: int) -> list[ModelObject]:
    """A Service and its slices: any mix of frontends, policies, affinity and endpoints."""
    flags = st.booleans()
    ports = tuple(
        ServicePortSpec(protocol.text, protocol, 80 + i, draw(st.sampled_from([0, 30000 + index * 10 + i])))
        for i, protocol in enumerate(draw(st.lists(st.sampled_from(list(Protocol)), min_size=1, unique=True)))
    )
    number = index + 1
    service = Service(
        "ns",
        f"s{index}",
        ServiceType.LOAD_BALANCER,
        cluster_ips=(f"10.96.0.{number}", f"fd00:96::{number}"),
        external_ips=(f"203.0.113.{number}", f"2001:db8:1::{number}") if draw(flags) else (),
        load_balancer_ips=(f"198.51.100.{number}", f"198.51.101.{number}", f"2001:db8:2::{number}")
        if draw(flags)
        else (),
        ports=ports,
        source_ranges=draw(st.none() | st.lists(st.sampled_from(RANGES), unique=True, max_size=3).map(tuple)),
        internal_local=draw(flags),
        external_local=draw(flags),
        affinity_seconds=draw(st.sampled_from([0, 60, 10800])),
        health_check_node_port=draw(st.sampled_from([0, 32000 + index])),
    )
    return [service, *draw(slices(index, ports))]


@st.composite
def slices(draw: st.DrawFn, index: int, ports: tuple[ServicePortSpec, ...]) -> list[EndpointSlice]:
    found = []
    for family, prefix in ((Family.IPV4, "10.42.0."), (Family.IPV6, "fd00:10:42::")):
        hosts = draw(st.lists(st.integers(1, 30), unique=True, max_size=4))
        endpoints = tuple(
            make_endpoint(
                f"{prefix}{host}",
                ready=draw(st.booleans()),
                terminating=draw(st.booleans()),
                node=draw(st.sampled_from(["here", "there"])),
            )
            for host in hosts
        )
        numbers = tuple(EndpointPort(port.name, port.protocol, 8080) for port in ports)
        found.append(EndpointSlice("ns", f"s{index}-{family.value}", f"s{index}", family, numbers, endpoints))
    return found


NODES = st.builds(
    NodeConfig,
    name=st.just("here"),
    addresses=st.just(("192.168.0.2", "2001:db8::2")),
    detector=st.sampled_from(
        [
            LocalDetector(),
            LocalDetector(cidrs=("10.42.0.0/16",)),
            LocalDetector(cidrs=("10.42.0.0/16", "fd00:10:42::/48")),
            LocalDetector(interface="cni0"),
            LocalDetector(interface="veth", interface_is_prefix=True),
        ]
    ),
    nodeports=st.sampled_from(
        [
            NodePortAddresses(any_local=True),
            NodePortAddresses(any_local=True, loopback=True),
            NodePortAddresses(addresses=("192.168.0.2", "2001:db8::2")),
        ]
    ),
    masquerade_all=st.booleans(),
    reject_unknown_ports=st.just(False),
)


def loaded(planner: Planner) -> tuple[IptablesPlane, list[FakeTables]]:
    tables = [FakeTables(family) for family in Family]
    plane = IptablesPlane(tables=tables, ensure_sysctl=lambda name, value: None)
    plane.load(planner.plan)
    return plane, tables


def service_chains(tables: list[FakeTables]) -> set[str]:
    return {chain for each in tables for chain in chains_of(each.save("nat")) if is_service_chain(chain)}


@settings(deadline=None)
@given(st.data())
def test_what_is_read_back_is_the_plan(data: st.DataObject) -> None:
    planner = Planner(data.draw(NODES))
    planner.update(item for index in range(3) for item in data.draw(services(index)))
    plane, tables = loaded(planner)
    assert plane.read_back() == rows(planner.plan)
    for _ in range(3):
        index = data.draw(st.integers(0, 3))
        deletes = [ObjectRef("Service", "ns", f"s{i}") for i in data.draw(st.sets(st.integers(0, 3), max_size=1))]
        plane.apply(planner.update(data.draw(services(index)), deletes))
        assert plane.read_back() == rows(planner.plan)
    plane.apply(planner.set_node(data.draw(NODES)))
    assert plane.read_back() == rows(planner.plan)
    fresh_plane, fresh = loaded(planner)
    assert service_chains(tables) == service_chains(fresh)
    assert fresh_plane.read_back() == plane.read_back()
    plane.apply(planner.update(deletes=[ObjectRef("Service", "ns", f"s{i}") for i in range(4)]))
    assert not service_chains(tables)
    assert plane.read_back() == {}


def both() -> tuple[Planner, IptablesPlane, list[FakeTables]]:
    planner = Planner(NODE)
    planner.update(every_kind())
    plane, tables = loaded(planner)
    return planner, plane, tables


def test_loading_over_the_same_table_changes_nothing_and_over_another_says_what() -> None:
    planner, _, tables = both()
    again = IptablesPlane(tables=tables, ensure_sysctl=lambda name, value: None)
    assert not again.load(planner.plan)
    gone = planner.update([slice_of("plain", "10.42.0.77")], [ObjectRef("Service", "default", "sticky")])
    change = IptablesPlane(tables=tables, ensure_sysctl=lambda name, value: None).load(planner.plan)
    assert {(c.key, c.new) for c in change.entries} == {(c.key, c.new) for c in gone.entries}
    old = {c.key: c.old for c in change.entries}
    for entry in gone.entries:
        held = old[entry.key]
        assert held is not None
        assert entry.old is not None
        assert {f.key for f in held.frontends} == {f.key for f in entry.old.frontends}
        assert [(b.address, b.port) for b in held.cluster] == [(b.address, b.port) for b in entry.old.cluster]


def test_foreign_rules_and_chains_stay() -> None:
    tables = FakeTables(Family.IPV4)
    tables.restore(
        "*nat\n:CNI-HOSTPORT - [0:0]\n-A PREROUTING -j CNI-HOSTPORT\n-A CNI-HOSTPORT -p tcp -j ACCEPT\nCOMMIT\n"
    )
    before = tables.save("nat")
    plane = IptablesPlane(tables=[tables], ensure_sysctl=lambda name, value: None)
    planner = Planner(NODE)
    planner.update(every_kind())
    plane.load(planner.plan)
    plane.cleanup()
    assert tables.save("nat") == before


@pytest.mark.parametrize("refuse", ["KUBE-SERVICES -d 10.96.0.77/32", "KUBE-SERVICES -d fd00:96::77/128"])
def test_a_refused_change_leaves_everything_as_it_was(refuse: str) -> None:
    planner, plane, tables = both()
    before = [t.save("filter") + t.save("nat") for t in tables]
    for each in tables:
        each.refuse = refuse
    change = planner.update(
        [
            Service("default", "new", cluster_ips=("10.96.0.77", "fd00:96::77"), ports=(tcp(80),)),
            slice_of("new", "10.42.0.9"),
            slice_of("new", "fd00:10:42::9"),
        ]
    )
    with pytest.raises(PlaneError, match="as they were before"):
        plane.apply(change)
    assert [t.save("filter") + t.save("nat") for t in tables] == before
    for each in tables:
        each.refuse = ""
    plane.apply(change)
    assert plane.read_back() == rows(planner.plan)


def test_a_refused_load_leaves_everything_as_it_was() -> None:
    planner, _, tables = both()
    before = [set((t.save("filter") + t.save("nat")).splitlines()) for t in tables]
    planner.update([slice_of("plain", "10.42.0.77"), slice_of("plain", "fd00:10:42::77")])
    tables[1].refuse = "[fd00:10:42::77]"
    with pytest.raises(PlaneError, match="old rules are back"):
        IptablesPlane(tables=tables, ensure_sysctl=lambda name, value: None).load(planner.plan)
    assert [set((t.save("filter") + t.save("nat")).splitlines()) for t in tables] == before


@pytest.mark.parametrize("lost", ["-D PREROUTING", "-D OUTPUT"])
def test_a_lost_jump_shows_and_a_load_repairs_it(lost: str) -> None:
    planner, plane, tables = both()
    verb = f'{lost} -m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
    tables[0].restore(f"*nat\n{verb}\nCOMMIT\n")
    assert {key.family for key in plane.read_back()} == {Family.IPV6}
    plane.load(planner.plan)
    assert plane.read_back() == rows(planner.plan)


def test_a_large_cluster_drops_endpoint_comments_and_deletes_stale_chains_later() -> None:
    now = 0.0
    tables = FakeTables(Family.IPV4)
    plane = IptablesPlane(tables=[tables], clock=lambda: now, ensure_sysctl=lambda name, value: None)
    planner = Planner(NODE)
    pods = [f"10.42.{i // 250}.{i % 250 + 1}" for i in range(1001)]
    planner.update([Service("default", "big", cluster_ips=("10.96.0.1",), ports=(tcp(80),)), slice_of("big", *pods)])
    plane.load(planner.plan)
    assert '"default/big -> ' not in tables.save("nat")
    assert plane.read_back() == rows(planner.plan)
    planner.update(small := [Service("default", "small", cluster_ips=("10.96.0.2",), ports=(tcp(80),))])
    plane.load(planner.plan)
    plane.apply(planner.update([slice_of("small", "10.42.9.1")]))
    plane.apply(planner.update([slice_of("small", "10.42.9.2")]))
    kept = service_chains([tables])
    now = 31.0
    plane.apply(planner.update([slice_of("small", "10.42.9.3")]))
    assert len(service_chains([tables])) == len(kept) - 1
    plane.apply(planner.update(deletes=[small[0].ref, ObjectRef("Service", "default", "big")]))
    assert not service_chains([tables])


def test_a_sync_is_full_again_after_an_hour_and_puts_back_a_lost_jump() -> None:
    now = 0.0
    tables = FakeTables(Family.IPV4)
    plane = IptablesPlane(tables=[tables], clock=lambda: now, ensure_sysctl=lambda name, value: None)
    planner = Planner(NODE)
    planner.update(every_kind())
    plane.load(planner.plan)
    lost = '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
    tables.restore(f"*nat\n-D OUTPUT {lost}\nCOMMIT\n")
    plane.apply(planner.update([slice_of("plain", "10.42.0.1")]))
    assert lost not in tables.save("nat").partition("-A OUTPUT ")[2].partition("\n")[0]
    now = 3601.0
    plane.apply(planner.update([slice_of("plain", "10.42.0.2")]))
    assert plane.read_back() == {key: row for key, row in rows(planner.plan).items() if key.family is Family.IPV4}


def test_node_ports_that_answer_nowhere_are_read_back() -> None:
    """kube-proxy keeps their rules and has no jump to them then: nothing is amiss."""
    nowhere = replace(NODE, nodeports=NodePortAddresses(addresses=("192.0.2.99",)))
    planner = Planner(nowhere)
    planner.update(every_kind())
    tables = [FakeTables(Family.IPV4), FakeTables(Family.IPV6)]
    plane = IptablesPlane(tables=tables, ensure_sysctl=lambda name, value: None)
    plane.load(planner.plan)
    assert "-j KUBE-NODEPORTS" in tables[0].save("nat")
    assert "-j KUBE-NODEPORTS" not in tables[1].save("nat")
    assert plane.read_back() == rows(planner.plan)
    fresh = IptablesPlane(tables=tables, loaded_for=nowhere)
    assert fresh.read_back() == rows(planner.plan)


def test_localhost_node_ports_set_route_localnet_and_cleanup_takes_it_back() -> None:
    written: list[tuple[str, int]] = []
    tables = FakeTables(Family.IPV4)
    plane = IptablesPlane(tables=[tables], ensure_sysctl=lambda name, value: written.append((name, value)))
    planner = Planner(NODE)
    plane.load(planner.plan)
    assert written == [("net/ipv4/conf/all/route_localnet", 1)]
    plane.cleanup()
    assert written[1:] == [("net/ipv4/conf/all/route_localnet", 0)]


def test_the_firewall_chain_of_a_kubelet_stays() -> None:
    tables = FakeTables(Family.IPV4)
    tables.restore("*filter\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n")
    plane = IptablesPlane(tables=[tables], ensure_sysctl=lambda name, value: None)
    plane.load(Planner(NODE).plan)
    plane.cleanup()
    kept = tables.save("filter")
    assert "block incoming localnet connections" in kept
    assert "-A INPUT -j KUBE-FIREWALL" in kept
    assert "KUBE-SERVICES" not in kept


def test_after_a_cleanup_that_failed_a_plan_is_loaded_before_it_changes() -> None:
    planner, plane, tables = both()
    tables[1].refuse = "-X KUBE-SERVICES"
    with pytest.raises(PlaneError, match="cleaning up iptables: refused"):
        plane.cleanup()
    written = [len(each.restored) for each in tables]
    with pytest.raises(PlaneError, match="has no plan yet"):
        plane.apply(planner.update([slice_of("plain", "10.42.0.77")]))
    assert [len(each.restored) for each in tables] == written


def test_two_pod_cidrs_of_a_family_are_refused_before_anything_is_written() -> None:
    planner, plane, tables = both()
    written = [len(each.restored) for each in tables]
    detector = LocalDetector(cidrs=("10.42.0.0/16", "10.43.0.0/16"))
    with pytest.raises(UsageError, match=r"one pod CIDR for each family, not 10.42.0.0/16, 10.43.0.0/16"):
        plane.apply(planner.set_node(NodeConfig(name="here", detector=detector)))
    assert [len(each.restored) for each in tables] == written


def test_applying_before_loading_is_refused() -> None:
    planner = Planner(NODE)
    with pytest.raises(PlaneError, match="load one"):
        IptablesPlane(tables=[FakeTables(Family.IPV4)]).apply(planner.update(every_kind()))
