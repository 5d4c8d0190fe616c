"""Which UDP flows a change makes stale: every case in which a client would stay with a wrong decision."""

import pytest
from msgspec.structs import replace

from dataplane.model.net import Family, Protocol
from dataplane.model.objects import EndpointPort, EndpointSlice, ObjectRef, Service, ServicePortSpec, make_endpoint
from dataplane.plan.change import PlanChange, diff
from dataplane.plan.planner import Planner
from dataplane.plan.types import EntryKey
from dataplane.plan.udp import StaleFlows, stale_udp
from dataplane.policy.node import NodeConfig, NodePortAddresses

NODE = NodeConfig(name="here", addresses=("172.18.0.2",), nodeports=NodePortAddresses(addresses=("172.18.0.2",)))
DNS = Service("kube-system", "dns", cluster_ips=("10.96.0.10",), ports=(ServicePortSpec("", Protocol.UDP, 53),))
V4 = Family.IPV4
KEY = EntryKey("kube-system", "dns", "", Protocol.UDP, V4)
ONE = frozenset({("10.0.0.1", 5353)})
BUT_ONE = StaleFlows(V4, "10.96.0.10", 53, keep=ONE)


def pods(*addresses: str) -> EndpointSlice:
    ports = (EndpointPort("", Protocol.UDP, 5353),)
    return EndpointSlice("kube-system", "dns-1", "dns", V4, ports, tuple(make_endpoint(a, node="x") for a in addresses))


def planned(*objects: Service | EndpointSlice) -> Planner:
    planner = Planner(NODE)
    planner.update(objects)
    return planner


def test_endpoint_removed() -> None:
    change = planned(DNS, pods("10.0.0.1", "10.0.0.2")).update([pods("10.0.0.2")])
    assert stale_udp(change, NODE) == [StaleFlows(V4, "10.96.0.10", 53, ("10.0.0.1", 5353))]


def test_endpoint_added_leaves_flows_alone() -> None:
    change = planned(DNS, pods("10.0.0.1")).update([pods("10.0.0.1", "10.0.0.2")])
    assert stale_udp(change, NODE) == []


def test_scaled_to_zero_and_back() -> None:
    planner = planned(DNS, pods("10.0.0.1"))
    assert stale_udp(planner.update([pods()]), NODE) == [StaleFlows(V4, "10.96.0.10", 53)]
    assert stale_udp(planner.update([pods("10.0.0.1")]), NODE) == [BUT_ONE]


def test_service_deleted_and_created() -> None:
    planner = planned(DNS, pods("10.0.0.1"))
    assert stale_udp(planner.update(deletes=[DNS.ref]), NODE) == [StaleFlows(V4, "10.96.0.10", 53)]
    assert stale_udp(planner.update([DNS]), NODE) == [BUT_ONE]


def test_node_port_changed() -> None:
    old = replace(DNS, ports=(ServicePortSpec("", Protocol.UDP, 53, 30053),))
    new = replace(DNS, ports=(ServicePortSpec("", Protocol.UDP, 53, 30054),))
    assert stale_udp(planned(old, pods("10.0.0.1")).update([new]), NODE) == [
        StaleFlows(V4, "", 30053),
        StaleFlows(V4, "172.18.0.2", 30053),
        StaleFlows(V4, "", 30054, keep=ONE),
        StaleFlows(V4, "172.18.0.2", 30054, keep=ONE),
    ]


def test_node_ports_on_every_local_address_and_loopback() -> None:
    node = replace(NODE, nodeports=NodePortAddresses(any_local=True, loopback=True))
    old = replace(DNS, ports=(ServicePortSpec("", Protocol.UDP, 53, 30053),))
    change = planned(old, pods("10.0.0.1")).update(deletes=[ObjectRef("Service", "kube-system", "dns")])
    assert {(f.address, f.port) for f in stale_udp(change, node)} == {
        ("10.96.0.10", 53),
        ("", 30053),
        ("172.18.0.2", 30053),
        ("127.0.0.1", 30053),
    }


def test_tcp_is_left_alone() -> None:
    service = replace(DNS, ports=(ServicePortSpec("", Protocol.TCP, 53),))
    piece = replace(pods("10.0.0.1"), ports=(EndpointPort("", Protocol.TCP, 5353),))
    assert stale_udp(planned(service, piece).update([replace(piece, endpoints=())]), NODE) == []


GOING = {"ready": False, "serving": True, "terminating": True}
FAILED = {"ready": False, "serving": False}


def conditions(first: dict[str, bool], second: dict[str, bool] | None = None) -> EndpointSlice:
    """Two pods, of which the first, and perhaps the second, is in some condition."""
    piece = pods("10.0.0.1", "10.0.0.2")
    one, two = piece.endpoints
    return replace(
        piece,
        endpoints=tuple(
            replace(e, traits=replace(e.traits, **changes)) for e, changes in ((one, first), (two, second or {}))
        ),
    )


def test_a_draining_endpoint_keeps_its_flows_until_it_no_longer_serves() -> None:
    planner = planned(DNS, pods("10.0.0.1", "10.0.0.2"))
    gone = [StaleFlows(V4, "10.96.0.10", 53, ("10.0.0.1", 5353))]
    assert stale_udp(planner.update([conditions(GOING)]), NODE) == []
    assert [b.address for b in planner.plan.entries[KEY].cluster] == ["10.0.0.2"]
    assert stale_udp(planner.update([conditions({**GOING, "serving": False})]), NODE) == gone
    assert stale_udp(planned(DNS, pods("10.0.0.1", "10.0.0.2")).update([conditions(FAILED)]), NODE) == gone
    assert stale_udp(planned(DNS, conditions(GOING)).update([pods("10.0.0.2")]), NODE) == gone


def test_policy_and_topology_are_no_reason() -> None:
    hinted = replace(pods("10.0.0.1", "10.0.0.2"), endpoints=(
        make_endpoint("10.0.0.1", node="here", zone_hints=("a",)),
        make_endpoint("10.0.0.2", node="x", zone_hints=("b",)),
    ))  # fmt: skip
    external = replace(DNS, external_ips=("198.51.100.1",))
    planner = Planner(replace(NODE, zone="a"))
    planner.update([external, pods("10.0.0.1", "10.0.0.2")])
    for change in (hinted, replace(external, external_local=True), replace(external, internal_local=True)):
        assert stale_udp(planner.update([change]), NODE) == []
    assert [b.address for b in planner.plan.entries[KEY].cluster] == ["10.0.0.1"]


def test_a_port_that_gets_another_name_keeps_its_flows() -> None:
    named = replace(DNS, ports=(ServicePortSpec("dns", Protocol.UDP, 53),))
    piece = replace(pods("10.0.0.1"), ports=(EndpointPort("dns", Protocol.UDP, 5353),))
    assert stale_udp(planned(DNS, pods("10.0.0.1")).update([named, piece]), NODE) == []


def test_a_load_removes_whatever_points_elsewhere() -> None:
    plan = planned(DNS, conditions(GOING)).plan
    nothing = PlanChange()
    both = frozenset({("10.0.0.1", 5353), ("10.0.0.2", 5353)})
    assert stale_udp(nothing, NODE, plan) == [StaleFlows(V4, "10.96.0.10", 53, keep=both)]
    old = planned(replace(DNS, cluster_ips=("10.96.0.11",)), pods("10.0.0.1")).plan
    assert set(stale_udp(diff(old, plan), NODE, plan)) == {
        StaleFlows(V4, "10.96.0.10", 53, keep=both),
        StaleFlows(V4, "10.96.0.11", 53),
    }


@pytest.mark.parametrize(
    ("flows", "address", "backend", "hit"),
    [
        (BUT_ONE, "10.96.0.10", ("10.0.0.1", 5353), False),
        (BUT_ONE, "10.96.0.10", ("10.0.0.1", 5354), True),
        (BUT_ONE, "10.96.0.10", ("10.96.0.10", 53), True),
        (BUT_ONE, "10.96.0.11", ("10.0.0.2", 5353), False),
        (StaleFlows(V4, "", 30053, keep=ONE), "172.18.0.9", ("10.0.0.2", 5353), True),
        (StaleFlows(V4, "", 30053, keep=ONE), "172.18.0.9", ("10.0.0.1", 5353), False),
        # A flow to somebody else's port of that number, and one to an endpoint in the node's own network.
        (StaleFlows(V4, "", 30053), "192.0.2.1", ("192.0.2.1", 30053), False),
        (StaleFlows(V4, "", 30053), "172.18.0.2", ("172.18.0.2", 53), True),
    ],
)
def test_which_flows_are_meant(flows: StaleFlows, address: str, backend: tuple[str, int], hit: bool) -> None:
    assert flows.hit(address, backend) is hit


def test_still_without_endpoints_is_no_reason() -> None:
    change = planned(DNS, pods()).update([replace(DNS, affinity_seconds=10)])
    assert change
    assert stale_udp(change, NODE) == []
