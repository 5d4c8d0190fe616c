"""Which UDP flows a change makes stale: every case in which a client would stay with a wrong decision."""

from msgspec.structs import replace

from dataplane.model.net import Family, Protocol
from dataplane.model.objects import Endpoint, EndpointPort, EndpointSlice, ObjectRef, Service, ServicePortSpec
from dataplane.plan.planner import Planner
from dataplane.plan.udp import StaleFlows, stale_udp
from dataplane.policy.node import NodeConfig, NodePortAddresses

NODE = NodeConfig(name="here", addresses=("172.18.0.2",), nodeports=NodePortAddresses(addresses=("172.18.0.2",)))
DNS = Service("kube-system", "dns", cluster_ips=("10.96.0.10",), ports=(ServicePortSpec("", Protocol.UDP, 53),))
V4 = Family.IPV4


def pods(*addresses: str) -> EndpointSlice:
    ports = (EndpointPort("", Protocol.UDP, 5353),)
    return EndpointSlice("kube-system", "dns-1", "dns", V4, ports, tuple(Endpoint(a, node="x") for a in addresses))


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
    whole = [StaleFlows(V4, "10.96.0.10", 53)]
    assert stale_udp(planner.update([pods()]), NODE) == whole
    assert stale_udp(planner.update([pods("10.0.0.1")]), NODE) == whole


def test_service_deleted_and_created() -> None:
    planner = planned(DNS, pods("10.0.0.1"))
    whole = [StaleFlows(V4, "10.96.0.10", 53)]
    assert stale_udp(planner.update(deletes=[DNS.ref]), NODE) == whole
    assert stale_udp(planner.update([DNS]), NODE) == whole


def test_node_port_changed() -> None:
    old = replace(DNS, ports=(ServicePortSpec("", Protocol.UDP, 53, 30053),))
    new = replace(DNS, ports=(ServicePortSpec("", Protocol.UDP, 53, 30054),))
    assert stale_udp(planned(old, pods("10.0.0.1")).update([new]), NODE) == [
        StaleFlows(V4, "172.18.0.2", 30053),
        StaleFlows(V4, "172.18.0.2", 30054),
    ]


def test_node_ports_on_every_local_address_and_loopback() -> None:
    node = replace(NODE, nodeports=NodePortAddresses(any_local=True, loopback=True))
    old = replace(DNS, ports=(ServicePortSpec("", Protocol.UDP, 53, 30053),))
    change = planned(old, pods("10.0.0.1")).update(deletes=[ObjectRef("Service", "kube-system", "dns")])
    assert {(f.address, f.port) for f in stale_udp(change, node)} == {
        ("10.96.0.10", 53),
        ("172.18.0.2", 30053),
        ("127.0.0.1", 30053),
    }


def test_tcp_is_left_alone() -> None:
    service = replace(DNS, ports=(ServicePortSpec("", Protocol.TCP, 53),))
    piece = replace(pods("10.0.0.1"), ports=(EndpointPort("", Protocol.TCP, 5353),))
    assert stale_udp(planned(service, piece).update([replace(piece, endpoints=())]), NODE) == []


def test_still_without_endpoints_is_no_reason() -> None:
    change = planned(DNS, pods()).update([replace(DNS, affinity_seconds=10)])
    assert change
    assert stale_udp(change, NODE) == []
