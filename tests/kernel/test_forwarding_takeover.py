"""A connection goes on at another node than the one that took it: which do, which must not, and what is counted."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether

from dataplane.kernel.namespaces.netns import netns
from dataplane.kernel.netlink.links import Links
from dataplane.policy.algorithm import Algorithm
from dataplane.policy.forwarding import Forwarding
from tests.kernel.forwarding_lab import INGRESS, ForwardingLab, forwarding_lab
from tests.kernel.packet_lab import counted
from tests.kernel.test_forwarding_flows import FAMILIES, Connection, opened_to, used

HELD = 12
WAYS = [Forwarding.DSR, Forwarding.TUNNEL]


@pytest.fixture(scope="module", params=["tc", "xdp"])
def made(request: pytest.FixtureRequest) -> Iterator[ForwardingLab]:
    """The lab; with XDP, checksums are finished, or XDP would leave all to tc."""
    with forwarding_lab(f"take{request.param}", xdp=request.param == "xdp") as lab:
        for place in (lab.lab.client, *lab.lab.pods):
            with Links(place.netns) as links:
                links.set_tx_checksum("eth0", False)
        yield lab


def opened(made: ForwardingLab) -> list[Connection]:
    """Connections to the load-balancer IP, of both families, to all pods."""
    return [connection for family in FAMILIES for connection in opened_to(made, INGRESS[family], 80, HELD)]


def closed(connections: list[Connection]) -> None:
    for connection in connections:
        connection.sock.close()


@contextmanager
def no_resets(made: ForwardingLab) -> Iterator[None]:
    """Nobody sends the client an RST meanwhile, neither pods nor rules of nodes."""
    with netns(made.lab.client.netns):
        heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    with heard:
        heard.bind(("eth0", 0))
        heard.setblocking(False)
        yield
        frames = []
        with suppress(BlockingIOError):
            while True:
                data, sender = heard.recvfrom(2048)
                if sender[2] != socket.PACKET_OUTGOING:
                    frames.append(Ether(data))
    segments = [frame for frame in frames if TCP in frame]
    assert segments
    assert [frame.summary() for frame in segments if "R" in frame[TCP].flags] == []


def begun(made: ForwardingLab) -> int:
    """How many connections the nodes have counted."""
    total = 0
    for each in made.proxy.nodes.values():
        with netns(each.node.netns):
            traffic = each.plane.traffic()
        assert traffic is not None
        total += sum(service.connections for service in traffic.services.values())
    return total


def taken_over(ways: dict[str, int]) -> int:
    return sum(count for name, count in ways.items() if name.endswith(":taken_over"))


@pytest.mark.parametrize("way", WAYS)
def test_a_node_dies(made: ForwardingLab, way: Forwarding) -> None:
    """All connections to pods elsewhere go on at node 2: those of its own pod, which it knows, and those of node 3's.
    No RST is sent, and nobody counts them twice. Then node 1 is back."""
    made.use(way, algorithm=Algorithm.MAGLEV)
    held = opened(made)
    moved = [connection for connection in held if connection.server != "pod1-1"]
    before = begun(made)
    try:
        with no_resets(made), counted(made.proxy) as ways:
            made.lab.run("net", ["ip", "link", "set", "node1", "down"])
            made.lab.set_entry("node2")
            used(moved)
    finally:
        made.lab.run("net", ["ip", "link", "set", "node1", "up"])
        made.lab.set_entry("node1")
    assert taken_over(ways) == sum(connection.server == "pod3-1" for connection in held), ways
    used(held)
    assert begun(made) == before
    closed(held)


@pytest.mark.parametrize("way", WAYS)
def test_a_node_that_knows_nothing_goes_on(made: ForwardingLab, way: Forwarding) -> None:
    """Not even the endpoint's own node has heard of the connection, nor node 1 of those to its own pod."""
    made.use(way, algorithm=Algorithm.MAGLEV)
    held = opened(made)
    before = begun(made)
    made.forget_flows()
    with no_resets(made), counted(made.proxy) as ways:
        used(held)
    assert taken_over(ways) == len(held)
    assert begun(made) == before
    closed(held)


@pytest.mark.parametrize("way", WAYS)
def test_connections_of_the_slow_path_stay_there(made: ForwardingLab, way: Forwarding) -> None:
    """Begun without the programs, so masqueraded by the kernel: connection tracking alone knows where they go. They go
    on when the mode changes, though another endpoint would be
    chosen for most, and what is new is forwarded."""
    node = made.proxy.nodes["node1"]
    made.use(Forwarding.SNAT)
    with netns(node.node.netns):
        node.plane.stand_aside(True)
    held = opened(made)
    with netns(node.node.netns):
        node.plane.stand_aside(False)
    made.use(way, algorithm=Algorithm.MAGLEV)
    with no_resets(made), counted(made.proxy) as ways:
        used(held)
        fresh = opened(made)
    assert taken_over(ways) == 0
    assert ways["tc_ingress:left_flow"] >= len(held)
    closed([*held, *fresh])


def test_who_is_chosen_by_chance_is_not_taken_over(made: ForwardingLab) -> None:
    made.use(Forwarding.DSR)
    held = opened(made)
    lost = next(connection for connection in held if connection.server == "pod3-1")
    made.forget_flows()
    with counted(made.proxy) as ways:
        lost.sock.sendall(b"?\n")
        with pytest.raises(OSError, match="reset"):
            lost.sock.recv(4096)
    assert taken_over(ways) == 0
    for connection in held:  # at once, or what nobody answers any more is sent again in a later test
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    closed(held)
