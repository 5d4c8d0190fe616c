"""Forwarding of what is hard on it: bulk, big datagrams, ways that are narrower than the client knows."""

import hashlib
import socket
from collections.abc import Iterator
from contextlib import nullcontext, suppress

import pytest

from dataplane.kernel.namespaces.netns import netns
from dataplane.model.net import Family
from dataplane.policy.forwarding import Forwarding
from tests.kernel.forwarding_lab import NODE_PORT, ForwardingLab, forwarding_lab
from tests.kernel.packet_lab import counted
from tests.kernel.test_tc_traffic import BYTES, Server, ip_route, narrowed, receive

FAMILIES = (Family.IPV4, Family.IPV6)
OVERHEAD = {Family.IPV4: 50, Family.IPV6: 70}
WAYS = [Forwarding.DSR, Forwarding.TUNNEL]


@pytest.fixture(scope="module")
def made() -> Iterator[ForwardingLab]:
    """The lab with the one endpoint on node 2."""
    with forwarding_lab("size", only="pod2-1") as lab:
        server = Server([lab.lab.nodes[1].pods[0].netns])
        try:
            yield lab
        finally:
            server.close()


def client(made: ForwardingLab, family: Family, kind: socket.SocketKind) -> socket.socket:
    """A socket of the outside client, connected to the node port of node 1."""
    with netns(made.lab.client.netns):
        sock = socket.socket(family.socket_family, kind)
    sock.settimeout(20)
    sock.connect((made.lab.nodes[0].addresses[family], NODE_PORT))
    return sock


def transfer(made: ForwardingLab, family: Family) -> None:
    """Many bytes both ways over one connection."""
    sent = hashlib.sha256(str(family).encode()).digest() * (BYTES // 32)
    with client(made, family, socket.SOCK_STREAM) as sock:
        sock.sendall(sent)
        assert receive(sock, 32) == hashlib.sha256(sent).digest()
        assert receive(sock, BYTES) == sent


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
def test_bulk(made: ForwardingLab, way: Forwarding, family: Family) -> None:
    """Aggregates of segments, which are as big as they get before the tunnel makes them bigger."""
    made.use(way)
    with counted(made.proxy) as ways:
        transfer(made, family)
    assert ways["tc_ingress:forwarded"] > 10, ways


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [1, 1400, 1450, 1472, 4000, 20000])
def test_datagrams(made: ForwardingLab, way: Forwarding, family: Family, size: int) -> None:
    """The first one may only teach the client how much fits."""
    made.use(way)
    with client(made, family, socket.SOCK_DGRAM) as sock:
        for number in range(5):
            learning = number < 2 and size > 1380
            sock.settimeout(1.5 if learning else 60)
            with suppress(OSError) if learning else nullcontext():  # too long, or no answer
                sock.send(bytes([number]) * size)
                while sock.recv(65536) != bytes([number]) * size:
                    assert number > 0, "an answer to an earlier one may come late"
    if way is Forwarding.TUNNEL and size == 1450:  # which fits as it is, but not into the tunnel
        known = made.lab.run("pod2-1", [*ip_route(family), "show", "cache"]).stdout
        assert f"mtu {1500 - OVERHEAD[family]}" in known


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("narrow", ["towards the client", "towards the pod"])
def test_a_narrow_way(made: ForwardingLab, way: Forwarding, family: Family, narrow: str) -> None:
    """A hop passes 1300 bytes only, and says so. Whoever sends more learns it, through the tunnel too."""
    made.use(way)
    node2 = made.lab.nodes[1]
    where, device, learner = {
        "towards the client": ("net", "client", "pod2-1"),
        "towards the pod": (node2.name, node2.bridge or node2.pods[0].device, made.lab.client.name),
    }[narrow]
    with narrowed(made.lab, where, device, family):
        transfer(made, family)
        assert "mtu 1300" in made.lab.run(learner, [*ip_route(family), "show", "cache"]).stdout


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
def test_a_narrow_way_between_the_nodes(made: ForwardingLab, way: Forwarding, family: Family) -> None:
    """The client learns how much of it the tunnel leaves. Answers, which are aggregates, are cut to fit."""
    made.use(way)
    node1, node2 = made.lab.nodes[0], made.lab.nodes[1]
    ways = [(node1, node2), (node2, node1)][: 2 if way is Forwarding.TUNNEL else 1]
    for here, there in ways:
        to = [there.addresses[family], "dev", "eth0", "mtu", "lock", "1400"]
        made.lab.run(here.name, [*ip_route(family), "add", *to])
    try:
        transfer(made, family)
    finally:
        for here, there in ways:
            made.lab.run(here.name, [*ip_route(family), "del", there.addresses[family], "dev", "eth0"])
    known = made.lab.run(made.lab.client.name, [*ip_route(family), "show", "cache"]).stdout
    assert f"mtu {1400 - OVERHEAD[family]}" in known
