"""Hand-written decisions: every traffic policy, source and frontend, in both families and both kinds of mode."""

from typing import NamedTuple

import pytest

from dataplane.model.net import Family, Protocol
from dataplane.model.objects import (
    EndpointPort,
    EndpointSlice,
    Service,
    ServiceCIDR,
    ServicePortSpec,
    ServiceType,
    make_endpoint,
)
from dataplane.oracle.decide import Decision, Oracle, Packet, Verdict, decide
from dataplane.plan.planner import Planner
from dataplane.policy.node import LocalDetector, NodeConfig, NodePortAddresses


class Places(NamedTuple):
    """Addresses of one family, by their part in the play."""

    near: str  # an endpoint on this node
    far: str  # an endpoint elsewhere
    pod: str
    node: str
    second: str
    outside: str
    vip: str
    external: str
    balancer: str
    free: str  # in the Service range, nobody's
    loopback: str


PLACES = {
    Family.IPV4: Places(
        "10.180.0.1",
        "10.180.1.1",
        "10.180.0.9",
        "192.168.0.2",
        "192.168.1.2",
        "203.0.113.2",
        "172.30.0.41",
        "198.51.100.7",
        "198.51.100.9",
        "172.30.0.99",
        "127.0.0.1",
    ),
    Family.IPV6: Places(
        "fd00:10:0::1",
        "fd00:10:1::1",
        "fd00:10::9",
        "fd00:168::2",
        "fd00:169::2",
        "2001:db8:9::2",
        "fd00:30::41",
        "2001:db8:51::7",
        "2001:db8:51::9",
        "fd00:30::99",
        "::1",
    ),
}
POD_RANGES = ("10.0.0.0/8", "fd00:10::/32")
SERVICE_RANGES = ("172.30.0.0/16", "fd00:30::/112")
ADDRESSES = ("192.168.0.2", "fd00:168::2", "192.168.1.2", "fd00:169::2")

NFTABLES = NodeConfig(
    name="n1",
    addresses=ADDRESSES,
    detector=LocalDetector(POD_RANGES),
    nodeports=NodePortAddresses(addresses=ADDRESSES[:2]),
    reject_unknown_ports=True,
)
IPTABLES = NodeConfig(
    name="n1",
    addresses=ADDRESSES,
    detector=LocalDetector(POD_RANGES),
    nodeports=NodePortAddresses(any_local=True, loopback=True),
    reject_unknown_ports=False,
)


def decision(
    family: Family,
    source: str,
    frontend: str,
    endpoints: tuple[str, ...] = ("near", "far"),
    node: NodeConfig = NFTABLES,
    *,
    port: int = 80,
    protocol: Protocol = Protocol.TCP,
    internal_local: bool = False,
    external_local: bool = False,
    source_ranges: tuple[str, ...] | None = None,
) -> Decision:
    """What happens to a packet between two of the places, under one LoadBalancer Service."""
    place = PLACES[family]
    service = Service(
        "ns",
        "web",
        ServiceType.LOAD_BALANCER,
        cluster_ips=(place.vip,),
        external_ips=(place.external,),
        load_balancer_ips=(place.balancer,),
        ports=(ServicePortSpec("http", Protocol.TCP, 80, 30080),),
        source_ranges=source_ranges,
        internal_local=internal_local,
        external_local=external_local,
    )
    nodes = {"near": "n1", "far": "n2", "node": "n1"}
    listed = tuple(make_endpoint(getattr(place, name), node=nodes[name]) for name in endpoints)
    ports = (EndpointPort("http", Protocol.TCP, 8080),)
    planner = Planner(node)
    planner.update(
        [service, EndpointSlice("ns", "web-1", "web", family, ports, listed), ServiceCIDR("kubernetes", SERVICE_RANGES)]
    )
    packet = Packet(getattr(place, source), getattr(place, frontend), port, protocol)
    return decide(planner.plan, packet)


def outcome(result: Decision, family: Family) -> str:
    """`both masq`, `near`, `drop`…: verdict or the endpoints chosen from, and whether all are masqueraded."""
    if result.verdict is not Verdict.DNAT:
        return str(result.verdict.value)
    place = PLACES[family]
    name: dict[str, str] = {place.near: "near", place.far: "far"}
    assert {backend.port for backend in result.backends} == {8080}
    chosen = "both" if len(result.backends) == 2 else name[result.backends[0].address]
    return f"{chosen} masq" if result.masquerade else chosen


both_families = pytest.mark.parametrize("family", list(Family))
both_modes = pytest.mark.parametrize("node", [NFTABLES, IPTABLES], ids=["nftables", "iptables"])

INTERNAL = {
    ("Cluster", "pod"): "both",
    ("Cluster", "node"): "both masq",
    ("Cluster", "outside"): "both masq",
    ("Local", "pod"): "near",
    ("Local", "node"): "near masq",
    ("Local", "outside"): "near masq",
}
EXTERNAL = {
    ("Cluster", "pod"): "both masq",
    ("Cluster", "node"): "both masq",
    ("Cluster", "outside"): "both masq",
    ("Local", "pod"): "both",
    ("Local", "node"): "both masq",
    ("Local", "outside"): "near",
}
ONLY_FAR = {
    ("vip", "Cluster", "pod"): "far",
    ("vip", "Local", "pod"): "drop",
    ("vip", "Local", "node"): "drop",
    ("vip", "Local", "outside"): "drop",
    ("balancer", "Cluster", "outside"): "far masq",
    ("balancer", "Local", "pod"): "far",
    ("balancer", "Local", "node"): "far masq",
    ("balancer", "Local", "outside"): "drop",
}


@both_modes
@both_families
@pytest.mark.parametrize(("policy", "source"), INTERNAL)
def test_internal_policy(family: Family, node: NodeConfig, policy: str, source: str) -> None:
    result = decision(family, source, "vip", node=node, internal_local=policy == "Local", external_local=True)
    assert outcome(result, family) == INTERNAL[policy, source]


@both_modes
@both_families
@pytest.mark.parametrize(("frontend", "port"), [("external", 80), ("balancer", 80), ("node", 30080)])
@pytest.mark.parametrize(("policy", "source"), EXTERNAL)
def test_external_policy(family: Family, node: NodeConfig, frontend: str, port: int, policy: str, source: str) -> None:
    local = policy == "Local"
    result = decision(family, source, frontend, node=node, port=port, external_local=local, internal_local=True)
    assert outcome(result, family) == EXTERNAL[policy, source]


@both_modes
@both_families
@pytest.mark.parametrize(("frontend", "policy", "source"), ONLY_FAR)
def test_endpoints_only_elsewhere(family: Family, node: NodeConfig, frontend: str, policy: str, source: str) -> None:
    local = policy == "Local"
    result = decision(family, source, frontend, ("far",), node, external_local=local, internal_local=local)
    assert outcome(result, family) == ONLY_FAR[frontend, policy, source]


@both_modes
@both_families
@pytest.mark.parametrize("source", ["pod", "node", "outside"])
@pytest.mark.parametrize(("frontend", "port"), [("vip", 80), ("external", 80), ("balancer", 80), ("node", 30080)])
def test_no_endpoints_reject_everybody(family: Family, node: NodeConfig, source: str, frontend: str, port: int) -> None:
    """Also under policy Local. Whom the source ranges do not let in is dropped, but in iptables mode rejected, too."""
    ranges = ("192.0.2.0/24",)
    result = decision(
        family,
        source,
        frontend,
        (),
        node,
        port=port,
        internal_local=True,
        external_local=True,
        source_ranges=ranges,
    )
    assert outcome(result, family) == ("drop" if frontend == "balancer" and node is NFTABLES else "reject")


@both_families
@pytest.mark.parametrize(
    ("node", "destination", "port", "expected"),
    [
        (NFTABLES, "node", 30080, "both masq"),
        (NFTABLES, "second", 30080, "accept"),
        (NFTABLES, "loopback", 30080, "accept"),
        (NFTABLES, "vip", 81, "reject"),
        (NFTABLES, "vip", 30080, "reject"),
        (NFTABLES, "free", 80, "drop"),
        (NFTABLES, "external", 81, "accept"),
        (NFTABLES, "balancer", 81, "accept"),
        (NFTABLES, "outside", 80, "accept"),
        (NFTABLES, "node", 80, "accept"),
        (IPTABLES, "node", 30080, "both masq"),
        (IPTABLES, "second", 30080, "both masq"),
        (IPTABLES, "vip", 81, "accept"),
        (IPTABLES, "vip", 30080, "accept"),
        (IPTABLES, "free", 80, "accept"),
        (IPTABLES, "outside", 80, "accept"),
    ],
)
def test_what_is_claimed(family: Family, node: NodeConfig, destination: str, port: int, expected: str) -> None:
    """Node ports on the primary address alone and never on loopback, and clusterIPs that answer for every port:
    the nftables mode differs from the iptables mode in this and nothing else."""
    assert outcome(decision(family, "outside", destination, node=node, port=port), family) == expected


@pytest.mark.parametrize("protocol", list(Protocol))
@both_families
def test_unknown_port_of_every_protocol_is_rejected(family: Family, protocol: Protocol) -> None:
    port = 81 if protocol is Protocol.TCP else 80
    assert decision(family, "pod", "vip", port=port, protocol=protocol).verdict is Verdict.REJECT
    assert decision(family, "pod", "vip", port=port, protocol=protocol, node=IPTABLES).verdict is Verdict.ACCEPT


def test_localhost_node_ports_are_for_ipv4_alone() -> None:
    v4 = decision(Family.IPV4, "loopback", "loopback", port=30080, node=IPTABLES)
    assert outcome(v4, Family.IPV4) == "both masq"
    v6 = decision(Family.IPV6, "loopback", "loopback", port=30080, node=IPTABLES)
    assert outcome(v6, Family.IPV6) == "accept"


@both_families
def test_hairpin(family: Family) -> None:
    """A pod that gets itself is masqueraded; the only endpoint always gets itself."""
    alone = decision(family, "near", "vip", ("near",))
    assert outcome(alone, family) == "near masq"
    either = decision(family, "near", "vip")
    assert not either.masquerade
    assert {str(backend): either.masquerades(backend) for backend in either.backends} == {
        str(backend): backend.address == PLACES[family].near for backend in either.backends
    }
    assert any("(hairpin)" in reason for reason in either.reasons)


@both_families
def test_a_process_of_the_node_sees_who_comes_from_elsewhere(family: Family) -> None:
    """Nothing is masqueraded that is delivered on the node (POSTROUTING sees what leaves); what the node itself sends
    to its own address is."""
    for source, kept in (("outside", True), ("node", False)):
        found = decision(family, source, "balancer", ("node", "far"))
        place = PLACES[family]
        assert [backend.address for backend in found.kept] == ([place.node] if kept else []), source


RANGES = {Family.IPV4: ("203.0.113.0/24", "192.168.0.0/24"), Family.IPV6: ("2001:db8:9::/48", "fd00:168::/64")}


@both_families
def test_source_ranges(family: Family) -> None:
    """They guard the load-balancer IP alone; a node inside them may use its own VIP as its source."""
    ranges = RANGES[family]
    assert outcome(decision(family, "outside", "balancer", source_ranges=ranges), family) == "both masq"
    assert outcome(decision(family, "node", "balancer", source_ranges=ranges), family) == "both masq"
    assert outcome(decision(family, "balancer", "balancer", source_ranges=ranges), family) == "both masq"
    assert outcome(decision(family, "balancer", "balancer", source_ranges=ranges[:1]), family) == "drop"
    assert outcome(decision(family, "pod", "balancer", source_ranges=ranges), family) == "drop"
    assert outcome(decision(family, "pod", "external", source_ranges=ranges), family) == "both masq"
    assert outcome(decision(family, "outside", "node", port=30080, source_ranges=ranges[1:]), family) == "both masq"


@both_families
def test_source_ranges_that_hold_nobody(family: Family) -> None:
    """An invalid list, and a list for the other family alone, let nobody in."""
    other = RANGES[Family.IPV6 if family is Family.IPV4 else Family.IPV4]
    for ranges in ((), other):
        assert outcome(decision(family, "outside", "balancer", source_ranges=ranges), family) == "drop"
        assert outcome(decision(family, "outside", "vip", source_ranges=ranges), family) == "both masq"


@both_families
def test_masquerade_all_and_no_detection(family: Family) -> None:
    everything = NodeConfig(name="n1", addresses=ADDRESSES, detector=LocalDetector(POD_RANGES), masquerade_all=True)
    assert outcome(decision(family, "pod", "vip", node=everything), family) == "both masq"
    blind = NodeConfig(name="n1", addresses=ADDRESSES)
    for source in ("pod", "node", "outside"):
        assert outcome(decision(family, source, "vip", node=blind), family) == "both"
    # What cannot be told to be a pod is outside.
    assert outcome(decision(family, "pod", "balancer", node=blind, external_local=True), family) == "near"


@pytest.mark.parametrize(
    ("detector", "device", "masquerade"),
    [
        (LocalDetector(interface="cni0"), "cni0", False),
        (LocalDetector(interface="cni0"), "cni01", True),
        (LocalDetector(interface="cni0"), "", True),
        (LocalDetector(interface="veth", interface_is_prefix=True), "veth12ab", False),
        (LocalDetector(interface="veth", interface_is_prefix=True), "eth0", True),
    ],
)
def test_pods_known_by_their_device(detector: LocalDetector, device: str, masquerade: bool) -> None:
    place = PLACES[Family.IPV4]
    planner = Planner(NodeConfig(name="n1", addresses=ADDRESSES, detector=detector))
    ports = (ServicePortSpec("", Protocol.UDP, 53),)
    planner.update(
        [
            Service("ns", "dns", cluster_ips=(place.vip,), ports=ports, affinity_seconds=60),
            EndpointSlice(
                "ns", "dns-1", "dns", Family.IPV4, (EndpointPort("", Protocol.UDP, 5353),), (make_endpoint(place.far),)
            ),
        ]
    )
    result = decide(planner.plan, Packet(place.pod, place.vip, 53, Protocol.UDP, device))
    assert result.masquerade is masquerade
    assert (result.service, result.affinity_seconds) == ("ns/dns", 60)
    assert device in " ".join(result.reasons)


def test_families_do_not_mix() -> None:
    planner = Planner(NFTABLES)
    with pytest.raises(ValueError, match="different IP families"):
        Oracle(planner.plan).decide(Packet("10.0.0.1", "::1", 80, Protocol.TCP))
