"""Packets between nodes where frames on the wire are tagged: the nodes' network is a VLAN, or clients come in by one.

No part of the usual tests, since the kernel that they run on may have no VLANs: `tests/kernels --steps vlan`.
"""

import hashlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from msgspec.structs import replace
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.build import DEFAULT_ROUTE, ENTRY_TABLE
from dataplane.lab.lab import Lab
from dataplane.lab.spec import ROUTER_ON_NODES
from dataplane.lab.traffic.probe import Probe
from dataplane.model.net import Family
from dataplane.planes.ebpf.attach.packet_hooks import PacketHook
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.policy.forwarding import DEFAULT_PORT
from tests.kernel.forwarding_lab import ask
from tests.kernel.packet_lab import counted, look_for_devices
from tests.kernel.services_lab import EXTERNAL, FAMILIES, PROTOCOLS, ServicesLab, services_lab

VLAN = 5
LENGTH = {Family.IPV4: 16, Family.IPV6: 64}
BEHIND = {Family.IPV4: ("172.19.0.1", "172.19.0.254", 24), Family.IPV6: ("fd00:172:19::1", "fd00:172:19::fe", 64)}
"""Of the clients' VLAN: node 1's address, the router's, the length of the prefix."""
WAYS = pytest.mark.parametrize("way", ["snat", "dsr", "tunnel"])
NARROW = 1400
"""The MTU of a VLAN that is narrower than the clients' network."""
OVERHEAD = {Family.IPV4: 50, Family.IPV6: 70}
"""Bytes that the tunnel adds to a packet."""
_MTU = {Family.IPV4: (socket.IPPROTO_IP, 14), Family.IPV6: (socket.IPPROTO_IPV6, 24)}  # IP_MTU, IPV6_MTU
_DISCOVER = {Family.IPV4: (socket.IPPROTO_IP, 10), Family.IPV6: (socket.IPPROTO_IPV6, 23)}  # _MTU_DISCOVER
_DO = 2  # IP_PMTUDISC_DO
BULK = 1 << 20
SECONDS = 20.0
_SOL_PACKET, _PACKET_AUXDATA = 263, 8
_AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata: status, lengths, offsets, vlan_tci, vlan_tpid
_VLAN_VALID = 0x10


def ip(lab: Lab, place: str, *lines: str) -> None:
    """Run commands of ip in a place."""
    lab.run(place, ["ip", "-batch", "-"], input="\n".join(lines))


def address(family: Family, text: str, length: int, device: str) -> str:
    return f"addr add {text}/{length} dev {device}{' nodad' if family is Family.IPV6 else ''}"


def route(to: str, via: str, device: str, more: str = "") -> str:
    return f"route replace {to} via {via} dev {device} {more}"


def tag(lab: Lab) -> None:
    """Move the nodes' network to a VLAN on the same wires."""
    lines = [
        f"link add link br0 name br0.5 type vlan id {VLAN}",
        "link set br0.5 up",
        "addr flush dev br0 scope global",
    ]
    for family in FAMILIES:
        lines.append(address(family, ROUTER_ON_NODES[family], LENGTH[family], "br0.5"))
        for node in lab.nodes:
            own = node.addresses[family]
            lines.append(route(node.pod_cidrs[family], own, "br0.5"))
            lines.append(route(DEFAULT_ROUTE[family], own, "br0.5", f"table {ENTRY_TABLE + node.number}"))
        first = lab.nodes[0].addresses[family]
        lines.append(route(DEFAULT_ROUTE[family], first, "br0.5", f"table {ENTRY_TABLE}"))
    ip(lab, "net", *lines)
    for node in lab.nodes:
        lines = [f"link add link eth0 name eth0.5 type vlan id {VLAN}", "link set eth0.5 up"]
        lines.append("addr flush dev eth0 scope global")
        for family in FAMILIES:
            lines.append(address(family, node.addresses[family], LENGTH[family], "eth0.5"))
            from_here = f"src {node.addresses[family]}"
            lines.append(route(DEFAULT_ROUTE[family], ROUTER_ON_NODES[family], "eth0.5", from_here))
            for pod in node.pods:  # whose routes went with the address that they name
                lines.append(f"route replace {pod.addresses[family]}/{family.bits} dev {pod.device} {from_here}")
            others = (other for other in lab.nodes if other.name != node.name)
            lines += [route(each.pod_cidrs[family], each.addresses[family], "eth0.5") for each in others]
        ip(lab, node.name, *lines)


def clients_by_a_vlan(made: ServicesLab) -> None:
    """Have node 1 get the client's packets to Services by a VLAN of their own, and reach the client by it."""
    outside = ["link add link node1 name clients type vlan id 7", "link set clients up"]
    inside = ["link add link eth0 name eth0.7 type vlan id 7", "link set eth0.7 up"]
    for family, (node, router, length) in BEHIND.items():
        outside.append(address(family, router, length, "clients"))
        outside.append(route(DEFAULT_ROUTE[family], node, "clients", f"table {ENTRY_TABLE}"))
        inside.append(address(family, node, length, "eth0.7"))
        network = "198.51.100.0/24" if family is Family.IPV4 else "fd00:198:51:100::/64"
        inside.append(route(network, router, "eth0.7"))
    ip(made.lab, "net", *outside)
    ip(made.lab, "node1", *inside)
    look_for_devices(made.proxy)


@pytest.fixture(scope="module", params=["found", "and the parent"])
def made(request: pytest.FixtureRequest) -> Iterator[ServicesLab]:
    """The lab, where the VLAN's device alone has programs, or the one below it, too, with XDP on node 1."""
    with services_lab("vlan", tag, ("eth0*",) if request.param == "and the parent" else ()) as lab:
        yield lab


def test_devices_with_programs(made: ServicesLab, request: pytest.FixtureRequest) -> None:
    plane = made.proxy.nodes["node1"].plane
    assert isinstance(plane, EbpfPlane)
    [hook] = plane.hooks
    assert isinstance(hook, PacketHook)
    with netns(made.lab.place("node1").netns):
        uplinks = {each.name: each.xdp for each in hook.status() if "uplink" in each.roles}
    below = "and the parent" in request.node.name
    assert uplinks == {"eth0.5": ""} | ({"eth0": "native"} if below else {})


class Wire:
    """Listens to node 2's frames. tunnelled: whether some of those that were heard are the tunnel's."""

    tunnelled = False

    def __init__(self, made: ServicesLab) -> None:
        with netns(made.lab.topology.underlay.netns):
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.bind(("node2", 0))
        self.socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        self.socket.setblocking(False)

    def tags(self) -> set[int | None]:
        """The VLANs of TCP and UDP that was heard since the last call; None: of no VLAN."""
        found: set[int | None] = set()
        while True:
            try:
                data, extra, _, _ = self.socket.recvmsg(1 << 16, 256)
            except BlockingIOError:
                return found
            packet = Ether(data)
            if (IP in packet or IPv6 in packet) and (UDP in packet or TCP in packet):
                status, _, _, _, _, tci, _ = _AUXDATA.unpack(extra[0][2][: _AUXDATA.size])
                found.add(tci & 0xFFF if status & _VLAN_VALID else None)
                self.tunnelled |= UDP in packet and packet[UDP].dport == DEFAULT_PORT


def asked(made: ServicesLab, way: str) -> None:
    """Both pods answer the client, whom they see but for SNAT, and all that node 2 gets and sends is tagged; with much
    of it, too."""
    made.serve(way, "pod1-1", "pod2-1")
    wire = Wire(made)
    with closing(wire.socket), counted(made.proxy) as ways:
        for family in FAMILIES:
            probes = [Probe(EXTERNAL[family], 80, each, 15, SECONDS, packets=3) for each in PROTOCOLS]
            known = {made.clients[family]}
            if way == "snat":
                known.add(made.lab.nodes[0].addresses[family])
            for result in made.lab.probe("client", *probes):
                assert set(result.servers) == {"pod1-1", "pod2-1"}
                assert set(result.clients) == known
        assert wire.tags() == {VLAN}
    assert (wire.tunnelled, "tc_ingress:forwarded" in ways) == (way != "snat",) * 2
    for family in FAMILIES:
        bulk(made, family)


def bulk(made: ServicesLab, family: Family) -> None:
    """A megabyte both ways between the client and node 2's pod, in aggregates."""
    sent = hashlib.sha256(str(family).encode()).digest() * (BULK // 32)
    pod = made.lab.place("pod2-1")
    with netns(pod.netns):
        server = socket.create_server((pod.addresses[family], 8081), family=family.socket_family)
    ports = [
        replace(piece, ports=tuple(replace(port, port=8081) for port in piece.ports)) for piece in made.slices("pod2-1")
    ]

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(received(connection))

    made.proxy.update(ports)
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with closing(server), made.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(60)
        client.sendall(sent)
        assert received(client) == sent
        thread.join(60)


def received(sock: socket.socket) -> bytes:
    data = b""
    while len(data) < BULK:
        piece = sock.recv(1 << 16)
        assert piece, "closed"
        data += piece
    return data


@WAYS
def test_the_nodes_network_is_a_vlan(made: ServicesLab, way: str) -> None:
    asked(made, way)


def set_mtu(made: ServicesLab, mtu: int) -> None:
    """Give the VLAN's devices of both nodes an MTU, and have the client forget what it has learnt."""
    for node in made.lab.nodes:
        ip(made.lab, node.name, f"link set eth0.5 mtu {mtu}")
    look_for_devices(made.proxy)
    for family in ("-4", "-6"):
        made.lab.run("client", ["ip", family, "route", "flush", "cache"])


def learnt(made: ServicesLab, family: Family) -> int:
    """The MTU that the client knows after a datagram that was too big; a smaller one is answered."""
    with made.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(*_DISCOVER[family], _DO)
        assert ask(sock)[0] == "pod2-1"
        sock.send(bytes(1420))
        for _ in range(100):
            if (mtu := sock.getsockopt(*_MTU[family])) < 1500:
                break
            time.sleep(0.1)
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # that it was too big
        assert ask(sock)[0] == "pod2-1"
        return mtu


@WAYS
def test_a_vlan_that_is_narrower(made: ServicesLab, way: str) -> None:
    """Clients learn what fits (RFC 1191, RFC 8201), the tunnel included; connections go on with that."""
    set_mtu(made, NARROW)
    for family in FAMILIES:
        made.serve(way, "pod2-1")
        assert learnt(made, family) == NARROW - (OVERHEAD[family] if way != "snat" else 0)
        bulk(made, family)
    set_mtu(made, 1500)


@pytest.mark.parametrize("made", ["and the parent"], indirect=True)
def test_clients_come_in_by_a_vlan_of_their_own(made: ServicesLab) -> None:
    """The last test: the lab's clients stay there."""
    clients_by_a_vlan(made)
    for way in ("snat", "dsr", "tunnel"):
        asked(made, way)
