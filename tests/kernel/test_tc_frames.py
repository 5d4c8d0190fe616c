"""Frames on real devices that are not plain: VLAN tags, which XDP sees inside the packet and the kernel keeps beside it
from then on, and jumbo frames, which a driver may not give to XDP."""

import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from dataplane.kernel import sysctl
from dataplane.kernel.namespaces import netns
from dataplane.kernel.netlink.links import Links
from dataplane.model.net import Family, Protocol
from dataplane.planes.ebpf.attach.devices import DeviceSelection
from dataplane.planes.ebpf.attach.packet_hooks import PacketHook
from dataplane.planes.ebpf.attach.proof import tc_attachment
from dataplane.planes.ebpf.maps.mapset import create_maps
from dataplane.planes.ebpf.maps.pins import PinDirectory
from dataplane.policy.forwarding import DEFAULT_PORT, Forwarding
from tests.kernel import test_forwarding_packets as f
from tests.kernel.bpf_packets import bench as b
from tests.kernel.bpf_packets.bench import Bench, entry, ip_of
from tests.kernel.packet_lab import in_order

_SOL_PACKET, _PACKET_AUXDATA = 263, 8
_AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata: status, lengths, offsets, vlan_tci, vlan_tpid
_VLAN_VALID = 0x10
VLAN = 5
IN_TUNNEL = DEFAULT_PORT.to_bytes(2, "big")


class Wire:
    """The node with its programs attached, and the far end of its uplink."""

    def __init__(self, node: Bench, far: str, pins: PinDirectory) -> None:
        self.node, self._far, self.pins = node, far, pins
        with netns.netns(far):
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.bind(("eth0", 0))
        self.socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        self.socket.settimeout(60)

    def answered(self, frame: bytes, wanted: Callable[[bytes], bool]) -> tuple[bytes, int | None]:
        """Send a frame; out: the first one that comes back and is wanted, and its VLAN, which the kernel tells."""
        self.socket.send(frame)
        while True:
            data, extra, _, sender = self.socket.recvmsg(65536, 256)
            if sender[2] == socket.PACKET_OUTGOING or not wanted(data):
                continue
            _, _, _, _, _, tci, _ = _AUXDATA.unpack(extra[0][2][: _AUXDATA.size])
            (status,) = struct.unpack_from("=I", extra[0][2])
            return data, tci & 0xFFF if status & _VLAN_VALID else None


@contextmanager
def _node(make_namespace: Callable[[str], str], mtu: int) -> Iterator[tuple[Bench, str]]:
    """The bench's node without programs, and the namespace at the far end of its uplink."""
    names = [make_namespace(word) for word in ("node", "far", "pod")]
    with netns.netns(names[0]):
        sysctl.write("net/ipv4/ip_forward", 1)
        sysctl.write("net/ipv6/conf/all/forwarding", 1)
        sysctl.write("net/ipv6/conf/default/accept_dad", 0)
    with Links(names[0]) as links, Links(names[1]) as far, Links(names[2]) as pod, create_maps(b.SIZES) as maps:
        links.add_veth("up0", far, "eth0", mtu)
        links.add_veth("pod0", pod, "eth0", 1500)
        links.set_gro("up0", True)
        far.set_gro("eth0", True)
        far.address("eth0", f"{b.ROUTER}/24")
        for cidr in (f"{b.NODE}/24", f"{b.NODE_6}/64"):
            links.address("up0", cidr)
        for net, via in (("10.244.2.0/24", b.NODE2), ("fd00:10:244:2::/64", b.NODE2_6)):
            links.route(net, via=via)
            links.neighbour("up0", via, b.NODE2_MAC)
        yield Bench(names[0], maps, {}, links), names[1]


@pytest.fixture
def wire(make_namespace: Callable[[str], str], request: pytest.FixtureRequest) -> Iterator[Wire]:
    """The parameter, if there is one, is the uplink's MTU. What a test sends comes in that order."""
    pins = PinDirectory(f"hp-{os.getpid()}-frames")
    with in_order(), _node(make_namespace, getattr(request, "param", 1500)) as (node, far):
        for family, remote in ((Family.IPV4, b.REMOTE), (Family.IPV6, b.REMOTE_6)):
            node.install(entry(f"r{family}", [remote], protocol=Protocol.UDP, node_port=30080, family=family))
        wire = Wire(node, far, pins)
        try:
            yield wire
        finally:
            wire.socket.close()
            pins.remove()


def _attach(wire: Wire, hook: PacketHook) -> None:
    with netns.netns(wire.node.namespace):
        hook.attach(wire.node.maps, wire.pins)


def _detach(wire: Wire, hook: PacketHook) -> None:
    with netns.netns(wire.node.namespace):
        hook.detach(wire.pins)


def _question(wire: Wire, family: Family, vlan: int | None) -> tuple[bytes, Callable[[bytes], bool]]:
    """A frame to the node port, with a tag if a VLAN is given; and what tells it when it goes on to the backend."""
    four = family is Family.IPV4
    packet = (IP(src=b.CLIENT, dst=b.NODE) if four else IPv6(src=b.CLIENT_6, dst=b.NODE_6)) / UDP(
        sport=4000, dport=30080
    )
    head = Ether(dst=wire.node.up_mac, src=b.ROUTER_MAC)
    remote = socket.inet_pton(family.socket_family, b.REMOTE if four else b.REMOTE_6)
    frame = bytes((head if vlan is None else head / Dot1Q(vlan=vlan)) / packet / b"question")
    return frame, lambda data: remote in data and b"question" in data


@pytest.mark.parametrize("xdp", [False, True], ids=["tc", "xdp"])
@pytest.mark.parametrize("family", [Family.IPV4, Family.IPV6])
@pytest.mark.parametrize("vlan", [None, 0], ids=["plain", "priority"])
def test_a_frame_of_no_vlan_goes_on(wire: Wire, xdp: bool, family: Family, vlan: int | None) -> None:
    """A priority tag (VLAN 0) is none."""
    hook = PacketHook(DeviceSelection(uplinks=("up0",), pods=("pod*",)), xdp=xdp)
    _attach(wire, hook)
    try:
        assert [s.xdp for s in hook.status() if s.name == "up0"] == ["native" if xdp else ""]
        with wire.node.counted() as counted:
            data, seen = wire.answered(*_question(wire, family, vlan))
        assert seen == vlan
        assert ip_of(data).src == (b.NODE if family is Family.IPV4 else b.NODE_6)
        assert Ether(data).dst == b.NODE2_MAC
        assert sum(count for name, count in counted.items() if name.endswith(":new_flow")) == 1, counted
        hooks = {name.partition(":")[0] for name, count in counted.items() if name.endswith(":new_flow") and count}
        assert hooks == {"xdp" if xdp and vlan is None else "tc_ingress"}
    finally:
        _detach(wire, hook)


@pytest.mark.parametrize("xdp", [False, True], ids=["tc", "xdp"])
@pytest.mark.parametrize("family", [Family.IPV4, Family.IPV6])
def test_a_frame_of_a_vlan_that_the_node_does_not_have_goes_nowhere(wire: Wire, xdp: bool, family: Family) -> None:
    hook = PacketHook(DeviceSelection(uplinks=("up0",), pods=("pod*",)), xdp=xdp)
    _attach(wire, hook)
    try:
        frame, wanted = _question(wire, family, VLAN)
        wire.socket.settimeout(0.5)
        with wire.node.counted() as counted, pytest.raises(TimeoutError):
            wire.answered(frame, wanted)
        assert counted["tc_ingress:vlan"] == 1
        assert wire.node.flows() == 0
        wire.socket.settimeout(60)
        wire.answered(*_question(wire, family, None))  # and the same question without a tag is answered
    finally:
        _detach(wire, hook)


def _forwarding(wire: Wire, family: Family) -> None:
    """Have node port 30090 lead to node 2's pod by dsr, and 30091 to this node's."""
    for port, backend in ((30090, f.REMOTE[family]), (30091, f.POD[family])):
        made = entry(f"f{port}{family}", [backend], protocol=Protocol.UDP, node_port=port, family=family)
        wire.node.install(f.forwarded(made, Forwarding.DSR))


def _tagged(wire: Wire, packet: Packet, vlan: int | None) -> bytes:
    head = Ether(dst=wire.node.up_mac, src=b.ROUTER_MAC)
    return bytes((head if vlan is None else head / Dot1Q(vlan=vlan)) / packet)


def test_what_is_forwarded_comes_in_tagged(wire: Wire) -> None:
    """Clients' packets and those of other nodes: with a priority tag like others, with a VLAN's nobody's. XDP leaves
    both to tc."""
    hook = PacketHook(DeviceSelection(uplinks=("up0",), pods=("pod*",)))
    for to, via in (("0.0.0.0/0", b.ROUTER), ("::/0", b.ROUTER_6)):
        wire.node.links.route(to, via=via)
        wire.node.links.neighbour("up0", via, b.ROUTER_MAC)
    wire.node.tables.accept(f.NODE2.values())
    wire.node.configure(wire.node.plan.node)
    _attach(wire, hook)
    try:
        with netns.netns(wire.node.namespace):
            hook.forward()
        for family in (Family.IPV4, Family.IPV6):
            _forwarding(wire, family)
            ask = b.ip(family, f.CLIENT[family], f.NODE[family]) / UDP(sport=4000, dport=30090) / b"question"
            inner = b.ip(family, f.CLIENT[family], f.NODE2[family]) / UDP(sport=4001, dport=30091) / b"question"
            from_node2 = f.wrapped(inner, family, f.digest(family, UDP, f.POD), f.ASK_DSR)
            with wire.node.counted() as counted:
                for packet in (ask, from_node2):
                    wire.socket.send(_tagged(wire, packet, VLAN))
                data, seen = wire.answered(
                    _tagged(wire, ask, 0), lambda data: b"question" in data and IN_TUNNEL in data
                )
                taken_out, _ = wire.answered(
                    _tagged(wire, from_node2, 0), lambda data: b"question" in data and IN_TUNNEL not in data
                )  # by the way out, as the node has no route to the pod
            assert (counted["tc_ingress:vlan"], counted["tc_ingress:forwarded"]) == (2, 1)
            outer, _, inside = f.unwrapped(data)
            assert (outer.dst, inside.src, seen) == (f.NODE2[family], f.CLIENT[family], 0)
            assert (ip_of(taken_out).src, ip_of(taken_out).dst) == (f.CLIENT[family], f.POD[family])
            assert wire.node.flows() == (3 if family is Family.IPV4 else 6)
    finally:
        _detach(wire, hook)


@pytest.mark.parametrize("wire", [9000], indirect=True)
def test_jumbo_frames_are_given_to_generic_xdp_and_why_is_said(wire: Wire) -> None:
    hook = PacketHook(DeviceSelection(uplinks=("up0",), pods=("none*",)))
    _attach(wire, hook)
    try:
        [status] = hook.status()
        assert (status.tc, status.xdp) == (tc_attachment()[0], "generic")
        assert status.problem.startswith("XDP on up0 is generic, which is slower; native was refused")
        packet = IP(src=b.CLIENT, dst=b.NODE) / UDP(sport=4000, dport=30080) / (b"question" * 1100)
        remote = socket.inet_aton(b.REMOTE)
        with wire.node.counted() as counted:
            data, _ = wire.answered(
                bytes(Ether(dst=wire.node.up_mac, src=b.ROUTER_MAC) / packet), lambda data: remote in data[26:34]
            )
        assert bytes(ip_of(data)[UDP].payload) == b"question" * 1100
        assert counted["xdp:new_flow"] == 1
    finally:
        _detach(wire, hook)
