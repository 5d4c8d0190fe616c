"""Forwarding between three nodes with real clients: each pod sees the client under policy Cluster, gets its share."""

import socket
from collections import Counter
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.traffic.probe import Outcome, Probe
from dataplane.model.net import Family, Protocol
from dataplane.policy.dispatch import endpoint_digest
from dataplane.policy.forwarding import DEFAULT_PORT, DEFAULT_VNI, Forwarding
from tests.kernel.forwarding_lab import INGRESS, NODE_PORT, PORT, ForwardingLab, forwarding_lab
from tests.kernel.packet_lab import counted

FAMILIES = (Family.IPV4, Family.IPV6)
COUNT = 120
LEAST = 15
"""Of COUNT choices among three pods one gets fewer in 1 of 8,000,000."""
WAYS = [Forwarding.DSR, Forwarding.TUNNEL]


@pytest.fixture(scope="module")
def made() -> Iterator[ForwardingLab]:
    with forwarding_lab("fwd") as lab:
        yield lab


def share(made: ForwardingLab, frontend: dict[Family, str], port: int, count: int = COUNT, least: int = LEAST) -> None:
    """Ask a frontend, of which the addresses are given, so many times from outside: see the test. least: how many of
    them each pod has to get."""
    probes = [
        Probe(frontend[family], port, protocol, count, timeout=60, packets=3)
        for family in FAMILIES
        for protocol in (Protocol.TCP, Protocol.UDP)
    ]
    for probe, result in zip(probes, made.lab.probe("client", *probes), strict=True):
        attempts = result.attempts
        assert [a for a in attempts if a.outcome is not Outcome.ANSWERED] == [], probe
        assert {a.client for a in attempts} == {a.local for a in attempts}, probe
        shares = Counter(a.servers[0] for a in attempts)
        assert len(shares) == 3 and min(shares.values()) >= least, (probe, shares)  # noqa: PT018
        assert all(len(set(a.servers)) == 1 for a in attempts), probe


@pytest.mark.parametrize("way", WAYS)
def test_every_pod_sees_the_client_and_gets_its_share(made: ForwardingLab, way: Forwarding) -> None:
    """Over TCP and UDP, node ports and load-balancer IPs. An answer from anywhere else than the frontend is none, to
    a socket that is connected."""
    made.use(way)
    with counted(made.proxy) as ways:
        for address, port in ((made.lab.nodes[0].addresses, NODE_PORT), (INGRESS, 80)):
            made.forget_flows()  # or a socket of the last round may have the port of one of this
            share(made, address, port)
    assert ways["tc_ingress:forwarded"] > COUNT
    assert (ways.get("tc_egress:forwarded", 0) > COUNT) is (way is Forwarding.TUNNEL)


def test_pods_and_nodes_are_clients_as_before(made: ForwardingLab) -> None:
    """Pods of any node, and nodes themselves: answered, by every pod."""
    made.use(Forwarding.DSR)
    lab = made.lab
    for place in ("pod1-1", "pod2-1", "node1", "node3"):
        for family in FAMILIES:
            node = lab.nodes[0].addresses[family]
            [result] = lab.probe(place, Probe(node, NODE_PORT, count=60, timeout=60))
            assert {a.outcome for a in result.attempts} == {Outcome.ANSWERED}, (place, family)
            assert len({a.servers[0] for a in result.attempts}) == 3, (place, family)


def test_the_kernels_own_vxlan_device_understands_it(made: ForwardingLab) -> None:
    """One with our network identifier, whose address is an endpoint's name, receives the client's packet. The last
    test: node 3 does without hotplane from here on."""
    made.use(Forwarding.DSR)
    lab, node3 = made.lab, made.lab.nodes[2]
    made.proxy.nodes["node3"].cleanup()
    for family in FAMILIES:
        digest = endpoint_digest(node3.pods[0].addresses[family], PORT, Protocol.UDP)
        mac = "02:00:" + ":".join(f"{byte:02x}" for byte in digest.to_bytes(4, "big"))
        ends = ["id", str(DEFAULT_VNI), "dstport", str(DEFAULT_PORT), "local", node3.addresses[family], "nolearning"]
        more = ["udp6zerocsumrx"] if family is Family.IPV6 else []
        lab.run("node3", ["ip", "link", "add", "vx0", "address", mac, "type", "vxlan", *ends, *more])
        lab.run("node3", ["ip", "link", "set", "vx0", "up"])
        with netns(node3.netns):
            heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        with heard:
            heard.bind(("vx0", 0))
            heard.settimeout(60)
            with netns(lab.client.netns):
                clients = [socket.socket(family.socket_family, socket.SOCK_DGRAM) for _ in range(40)]
            for client in clients:
                client.sendto(b"through", (lab.nodes[0].addresses[family], NODE_PORT))
            packet = Ether(heard.recv(2048))
            while UDP not in packet or packet[UDP].dport != NODE_PORT:
                packet = Ether(heard.recv(2048))
            for client in clients:
                client.close()
        inner = packet[IP] if family is Family.IPV4 else packet[IPv6]
        assert packet.dst == mac
        assert (inner.src, inner.dst) == (lab.client.addresses[family], lab.nodes[0].addresses[family])
        assert bytes(inner[UDP].payload) == b"through"
        lab.run("node3", ["ip", "link", "del", "vx0"])
