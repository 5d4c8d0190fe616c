"""The kernel's own Geneve, IPIP and ip6ip6 devices take out what hotplane puts in.

No part of the usual tests, as the kernel that they run on may have no such devices: `tests/kernels --steps dispatch`.
"""

import socket
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from dataplane.kernel.namespaces.netns import netns
from dataplane.model.net import Family
from dataplane.policy.forwarding import DEFAULT_PORT, DEFAULT_VNI, Dispatch, Forwarding
from tests.kernel.forwarding_lab import NODE_PORT, ForwardingLab, forwarding_lab

FAMILIES = (Family.IPV4, Family.IPV6)
_EVERYTHING = socket.htons(3)


@pytest.fixture(scope="module")
def made() -> Iterator[ForwardingLab]:
    """The lab, whose node 3 does without hotplane."""
    with forwarding_lab("devs") as lab:
        lab.proxy.nodes["node3"].cleanup()
        lab.use(Forwarding.DSR, "node1")
        yield lab


def device(form: Dispatch, family: Family, own: str, other: str) -> list[str]:
    """What follows `ip link add NAME`."""
    if form is Dispatch.GENEVE:
        more = ["udp6zerocsumrx"] if family is Family.IPV6 else []
        port = ["dstport", str(DEFAULT_PORT)]
        return ["type", "geneve", "id", str(DEFAULT_VNI), "remote", other, *port, "innerprotoinherit", *more]
    ends = ["local", own, "remote", other]
    return ["type", "ipip", *ends] if family is Family.IPV4 else ["type", "ip6tnl", "mode", "ip6ip6", *ends]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", [Dispatch.GENEVE, Dispatch.IPIP])
def test_the_kernels_own_device_understands_it(made: ForwardingLab, form: Dispatch, family: Family) -> None:
    """It hands on the client's packet, as the client sent it. Geneve devices can since Linux 5.18 (435fe1c0c1f7), and
    since then in stable kernels that took it over, as Debian's 5.10 did."""
    made.send_in(form, "node1")
    lab, node1, node3 = made.lab, made.lab.nodes[0], made.lab.nodes[2]
    ends = node3.addresses[family], node1.addresses[family]
    lab.run("node3", ["ip", "link", "add", "tun9", *device(form, family, *ends)])
    if form is Dispatch.GENEVE:  # a kernel that does not know the attribute ignores it
        assert "innerprotoinherit" in lab.run("node3", ["ip", "-d", "link", "show", "tun9"]).stdout
    lab.run("node3", ["ip", "link", "set", "tun9", "up"])
    with netns(node3.netns):
        heard = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, _EVERYTHING)
    with heard:
        heard.bind(("tun9", 0))
        heard.settimeout(20)
        with netns(lab.client.netns):
            clients = [socket.socket(family.socket_family, socket.SOCK_DGRAM) for _ in range(40)]
        for client in clients:
            client.sendto(b"through", (node1.addresses[family], NODE_PORT))
        kind = IP if family is Family.IPV4 else IPv6
        data, (_, _, direction, *_) = heard.recvfrom(2048)
        packet = kind(data)
        while direction == socket.PACKET_OUTGOING or UDP not in packet or packet[UDP].dport != NODE_PORT:
            data, (_, _, direction, *_) = heard.recvfrom(2048)
            packet = kind(data)
        for client in clients:
            client.close()
    assert (packet.src, packet.dst) == (lab.client.addresses[family], node1.addresses[family])
    assert bytes(packet[UDP].payload) == b"through"
    lab.run("node3", ["ip", "link", "del", "tun9"])
