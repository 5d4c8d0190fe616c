"""Real connections through the iptables plane's rules."""

import contextlib
import socket
from collections import Counter
from collections.abc import Iterator

import pytest
from msgspec.structs import replace
from pyroute2 import IPRoute

from dataplane.kernel.iptables import Variant
from dataplane.model.net import Protocol
from dataplane.model.objects import EndpointSlice, ModelObject, Service, ServicePortSpec
from dataplane.oracle.decide import Oracle, Packet
from dataplane.planes.iptables.plane import IptablesPlane
from dataplane.policy.node import NodePortAddresses
from tests.golden.iptables.net import Cluster, cluster, inside
from tests.golden.iptables.plans import NODE, plan_of, slice_of, tcp

A, B = ("10.42.0.9", "fd00:10:42::9"), ("10.42.0.10", "fd00:10:42::10")
_NODAD = 2
BOTH_FAMILIES = pytest.mark.parametrize("v6", [False, True], ids=["ipv4", "ipv6"])


def slices(
    name: str, *pods: tuple[str, str], here: bool = True, protocol: Protocol = Protocol.TCP
) -> list[EndpointSlice]:
    found = []
    for family in (0, 1):
        addresses = tuple(pod[family] for pod in pods)
        found.append(slice_of(name, *addresses, local=addresses if here else (), protocol=protocol))
    return found


OBJECTS: tuple[ModelObject, ...] = (
    Service("default", "pair", cluster_ips=("10.96.0.1", "fd00:96::1"), ports=(tcp(80, 30080),)),
    *slices("pair", A, B),
    Service("default", "sticky", cluster_ips=("10.96.0.2", "fd00:96::2"), ports=(tcp(80),), affinity_seconds=60),
    *slices("sticky", A, B),
    Service("default", "alone", cluster_ips=("10.96.0.3", "fd00:96::3"), ports=(tcp(80),)),
    *slices("alone", A),
    Service("default", "nobody", cluster_ips=("10.96.0.4", "fd00:96::4"), ports=(tcp(80, 30084),)),
    Service("default", "away", cluster_ips=("10.96.0.5", "fd00:96::5"), ports=(tcp(80, 30085),), external_local=True),
    *slices("away", B, here=False),
    Service("default", "home", cluster_ips=("10.96.0.6", "fd00:96::6"), ports=(tcp(80, 30086),), external_local=True),
    *slices("home", A),
    Service(
        "default",
        "guarded",
        cluster_ips=("10.96.0.7", "fd00:96::7"),
        load_balancer_ips=("198.51.100.7", "2001:db8:2::7"),
        ports=(tcp(80),),
        source_ranges=("192.168.0.9/32", "2001:db8:3::/48"),
    ),
    *slices("guarded", A),
    Service(
        "default", "udp", cluster_ips=("10.96.0.8", "fd00:96::8"), ports=(ServicePortSpec("", Protocol.UDP, 53),)
    ),
    *slices("udp", B, protocol=Protocol.UDP),
)  # fmt: skip
PLAN = plan_of(*OBJECTS)
NARROW = replace(
    NODE,
    addresses=(*NODE.addresses, "198.18.0.1", "2001:db8:18::1"),
    nodeports=NodePortAddresses(addresses=NODE.addresses),
)


@pytest.fixture(scope="module", params=list(Variant), ids=lambda variant: variant.value)
def programmed(request: pytest.FixtureRequest) -> Iterator[tuple[Cluster, IptablesPlane]]:
    with cluster() as made:
        with inside(made.node):
            plane = IptablesPlane(variant=request.param)
            plane.load(PLAN)
        yield made, plane


@pytest.fixture(scope="module")
def net(programmed: tuple[Cluster, IptablesPlane]) -> Cluster:
    return programmed[0]


def pick(v6: bool, ipv4: str, ipv6: str) -> str:
    return ipv6 if v6 else ipv4


@BOTH_FAMILIES
def test_a_cluster_ip_is_spread_over_its_endpoints(net: Cluster, v6: bool) -> None:
    vip = pick(v6, "10.96.0.1", "fd00:96::1")
    hosts = Counter(net.ask(net.node, vip, 80)[0] for _ in range(60))
    # Each of the two takes 60 of 60 with probability 2^-60.
    assert set(hosts) == {"9", "10"}


@BOTH_FAMILIES
def test_sources_outside_the_pods_are_masqueraded_and_pods_are_not(net: Cluster, v6: bool) -> None:
    vip = pick(v6, "10.96.0.8", "fd00:96::8")
    assert net.ask(net.client, vip, 53, udp=True) == ("10", pick(v6, "10.42.0.1", "fd00:10:42::1"))
    assert net.ask(net.pods[0], vip, 53, udp=True) == ("10", A[v6])


@BOTH_FAMILIES
def test_a_pod_reaches_itself_masqueraded(net: Cluster, v6: bool) -> None:
    vip = pick(v6, "10.96.0.3", "fd00:96::3")
    assert net.ask(net.pods[0], vip, 80) == ("9", pick(v6, "10.42.0.1", "fd00:10:42::1"))
    assert net.ask(net.pods[1], vip, 80) == ("9", B[v6])


@BOTH_FAMILIES
def test_affinity_keeps_a_client_with_its_endpoint(net: Cluster, v6: bool) -> None:
    vip = pick(v6, "10.96.0.2", "fd00:96::2")
    assert len({net.ask(net.client, vip, 80)[0] for _ in range(30)}) == 1


@BOTH_FAMILIES
def test_no_endpoints_is_refused_at_once(net: Cluster, v6: bool) -> None:
    for where in (net.node, net.client, net.pods[0]):
        with pytest.raises(ConnectionRefusedError):
            net.ask(where, pick(v6, "10.96.0.4", "fd00:96::4"), 80)
    with pytest.raises(ConnectionRefusedError):
        net.ask(net.client, pick(v6, "192.168.0.2", "2001:db8::2"), 30084)


@BOTH_FAMILIES
def test_policy_local_without_local_endpoints_drops_outsiders_only(net: Cluster, v6: bool) -> None:
    node = pick(v6, "192.168.0.2", "2001:db8::2")
    with pytest.raises(TimeoutError):
        net.ask(net.client, node, 30085, wait=0.5)
    assert net.ask(net.node, node, 30085)[0] == "10"
    assert net.ask(net.pods[0], node, 30085) == ("10", A[v6])


@BOTH_FAMILIES
def test_node_ports_that_nobody_serves_are_refused_where_they_do_not_answer_too(
    programmed: tuple[Cluster, IptablesPlane], v6: bool
) -> None:
    """A local address without node ports, with a server on the node port's number: it is not reached."""
    net, plane = programmed
    address = pick(v6, "198.18.0.1", "2001:db8:18::1")
    client = pick(v6, "192.168.0.9", "2001:db8::9")
    family, nodad = (socket.AF_INET6, {"flags": _NODAD}) if v6 else (socket.AF_INET, {})
    oracle = Oracle(plan_of(*OBJECTS, node=NARROW))
    with inside(net.node), IPRoute() as netlink:
        netlink.addr(
            "replace", index=netlink.link_lookup(ifname="lo")[0], address=address, prefixlen=128 if v6 else 32, **nodad
        )
        with contextlib.ExitStack() as servers:
            for port in (30080, 30084, 30085):
                servers.enter_context(socket.create_server((address, port), family=family))
            try:
                plane.load(plan_of(*OBJECTS, node=NARROW))
                for port, wanted in ((30080, "accept"), (30084, "reject"), (30085, "drop")):
                    found = oracle.decide(Packet(client, address, port, Protocol.TCP))
                    seconds = 3 if wanted == "drop" else 60
                    seen = _attempt(net.client, address, port, seconds)
                    assert (found.verdict.value, seen) == (wanted, wanted), found.reasons
            finally:
                plane.load(PLAN)


def _attempt(where: str, address: str, port: int, seconds: float) -> str:
    with inside(where):
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    with sock:
        sock.settimeout(seconds)  # an error that comes while connect() holds the socket waits for the next SYN
        try:
            sock.connect((address, port))
        except ConnectionRefusedError:
            return "reject"
        except TimeoutError:
            return "drop"
        return "accept"


@BOTH_FAMILIES
def test_policy_local_keeps_the_client_and_cluster_does_not(net: Cluster, v6: bool) -> None:
    node = pick(v6, "192.168.0.2", "2001:db8::2")
    assert net.ask(net.client, node, 30086) == ("9", pick(v6, "192.168.0.9", "2001:db8::9"))
    assert net.ask(net.client, node, 30080)[1] == pick(v6, "10.42.0.1", "fd00:10:42::1")


def test_source_ranges_let_in_only_whom_they_name(net: Cluster) -> None:
    assert net.ask(net.client, "198.51.100.7", 80, source="192.168.0.9")[0] == "9"
    with pytest.raises(TimeoutError):
        net.ask(net.client, "198.51.100.7", 80, source="172.20.0.9", wait=0.5)
    with pytest.raises(TimeoutError):
        net.ask(net.client, "2001:db8:2::7", 80, wait=0.5)


def test_node_ports_answer_on_localhost(net: Cluster) -> None:
    assert net.ask(net.node, "127.0.0.1", 30080)[1] == "10.42.0.1"
    assert NODE.nodeports.loopback
