"""Host routing: which packets go past the node's stack, by every way and in both families. Real packets, in labs whose
first node counts in a forward chain what its stack forwards."""

import socket
from collections.abc import Iterator

import pytest

from dataplane.lab.spec import PodLink, Routing
from dataplane.lab.traffic.probe import Probe
from dataplane.model.net import Family, Protocol
from tests.kernel.host_lab import CLUSTER_IP, FAMILIES, LOCAL, PORT, HostLab, fetch, host_lab

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
SHAPES = ((Routing.DIRECT, PodLink.VETH), (Routing.VXLAN, PodLink.BRIDGE))


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def lab(request: pytest.FixtureRequest) -> Iterator[HostLab]:
    with host_lab(*request.param, connect=True) as made:
        yield made


def _target(lab: HostLab, name: str, family: Family) -> tuple[str, int]:
    """Where a test's client sends to, by a name."""
    if name in CLUSTER_IP:
        return CLUSTER_IP[name][family], 80
    if name == "node port":
        return lab.node.addresses[family], LOCAL
    return lab.address(name, family), PORT


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [TCP, UDP], ids=["tcp", "udp"])
@pytest.mark.parametrize(
    ("client", "to", "server", "into", "out"),
    [
        ("pod1-1", "pod1-2", "pod1-2", 6, 0),
        ("pod1-1", "local", "pod1-2", 6, 0),
        ("pod1-1", "pod2-1", "pod2-1", 3, 3),
        ("pod1-1", "remote", "pod2-1", 3, 3),
        ("pod2-1", "pod1-1", "pod1-1", 3, 3),
        ("pod2-1", "local", "pod1-2", 3, 3),
        ("client", "pod1-1", "pod1-1", 3, 3),
        ("client", "node port", "pod1-2", 3, 3),
    ],
)
def test_packets_go_past_the_stack(
    lab: HostLab,
    family: Family,
    kind: socket.SocketKind,
    client: str,
    to: str,
    server: str,
    into: int,
    out: int,
) -> None:
    """Both directions of three exchanges, to pods and through Services by tc, in and out by the uplink. The client
    keeps its address everywhere."""
    with lab.ways() as ways:
        answered, seen = fetch(lab, client, _target(lab, to, family), kind)
    assert (answered, seen) == (server, lab.address(client, family))
    assert ways["forwarded"] == 0, ways
    assert ways["into_pod"] >= into, ways
    assert ways["out_of_node"] >= out, ways
    if kind is UDP:
        assert (ways["into_pod"], ways["out_of_node"]) == (into, out)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_flows_of_connect_time_go_past_the_stack(lab: HostLab, family: Family, protocol: Protocol) -> None:
    """They are plain packets between pods: no entry of a translation is made for them."""
    with lab.ways() as ways:
        [result] = lab.lab.probe("pod1-1", Probe(CLUSTER_IP["local"][family], 80, protocol, count=3, timeout=60.0))
    assert [attempt.servers for attempt in result.attempts] == [("pod1-2",)] * 3
    assert ways["forwarded"] == 0
    assert ways["into_pod"] >= 6
    assert ways["translated"] == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pod_that_meets_itself_through_a_service(lab: HostLab, family: Family) -> None:
    """It gets the node's address as client, as without host routing."""
    for kind in (TCP, UDP):
        answered, seen = fetch(lab, "pod1-2", _target(lab, "local", family), kind)
        assert answered == "pod1-2"
        assert seen in lab.lab.node_addresses()["node1"]


@pytest.mark.parametrize("family", FAMILIES)
def test_bulk_and_big_datagrams(lab: HostLab, family: Family) -> None:
    """Aggregates of segments, and fragments, which the stack gets."""
    with lab.connected("pod1-1", _target(lab, "pod1-2", family), UDP) as sock:
        for size in (1400, 4000, 20000):
            sock.send(b"?" * size)
            assert b'"server":"pod1-2"' in sock.recv(65536)
    with lab.ways() as ways:
        lab.transfer("pod1-1", "pod1-2", family, 8 << 20)
    assert ways["forwarded"] == 0
