"""rp_filter on real devices: what the programs send on from there, past the stack, they judge as the stack would."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from dataplane.kernel import sysctl
from dataplane.kernel.namespaces import netns
from dataplane.model.net import Protocol
from dataplane.planes.ebpf.attach.devices import DeviceSelection
from dataplane.planes.ebpf.attach.packet_hooks import PacketHook
from tests.kernel.bpf_packets import bench as b
from tests.kernel.bpf_packets.bench import entry
from tests.kernel.test_tc_frames import Wire, wire

__all__ = ["wire"]

VIP, RANGE, INSIDE, MULTICAST = "192.0.2.1", "203.0.113.0/24", "203.0.113.9", "224.0.0.5"


@contextmanager
def _attached(wire: Wire, own: int, everywhere: int, xdp: bool) -> Iterator[None]:
    hook = PacketHook(DeviceSelection(uplinks=("up0",), pods=("pod*",)), xdp=xdp)
    with netns.netns(wire.node.namespace):
        sysctl.write("net/ipv4/conf/up0/rp_filter", own)
        sysctl.write("net/ipv4/conf/all/rp_filter", everywhere)
        hook.attach(wire.node.maps, wire.pins)
    try:
        yield
    finally:
        with netns.netns(wire.node.namespace):
            hook.detach(wire.pins)


def _reaches(wire: Wire, source: str) -> bool:
    """Whether a datagram to the guarded address comes to its remote endpoint. A good one follows, which does."""
    target = socket.inet_aton(b.REMOTE)

    def frame(sender: str, mark: bytes) -> bytes:
        packet = IP(src=sender, dst=VIP) / UDP(sport=4000, dport=80) / mark
        return bytes(Ether(dst=wire.node.up_mac, src=b.ROUTER_MAC) / packet)

    wire.socket.send(frame(source, b"forged"))
    data, _ = wire.answered(frame("203.0.113.200", b"honest"), lambda data: data[30:34] == target)
    return b"forged" in data


@pytest.fixture
def guarded(wire: Wire) -> Wire:
    """The first half of what may reach the guarded address is behind the pod's device, the rest behind the router."""
    wire.node.install(entry("guarded", [b.REMOTE], protocol=Protocol.UDP, load_balancer=VIP, ranges=(RANGE,)))
    wire.node.links.route("203.0.113.0/25", device="pod0", source=b.NODE)
    wire.node.links.route("0.0.0.0/0", via=b.ROUTER)
    wire.node.links.neighbour("up0", b.ROUTER, b.ROUTER_MAC)
    return wire


@pytest.mark.parametrize("xdp", [False, True], ids=["tc", "xdp"])
@pytest.mark.parametrize(
    ("own", "everywhere", "reached"), [(0, 0, True), (1, 0, False), (0, 1, False), (2, 0, True), (1, 2, True)]
)
def test_a_source_that_is_elsewhere(guarded: Wire, xdp: bool, own: int, everywhere: int, reached: bool) -> None:
    """Of the device's own setting and that of all the larger one is in effect."""
    with _attached(guarded, own, everywhere, xdp):
        assert _reaches(guarded, INSIDE) is reached


@pytest.mark.parametrize("xdp", [False, True], ids=["tc", "xdp"])
def test_a_source_that_is_nowhere(guarded: Wire, xdp: bool) -> None:
    guarded.node.links.route(f"{INSIDE}/32", kind="unreachable")
    for setting in (0, 2):
        with _attached(guarded, setting, 0, xdp):
            assert _reaches(guarded, INSIDE) is (setting == 0)
        _forget(guarded)


def _forget(wire: Wire) -> None:
    keys = [key for key, _ in wire.node.maps.items("udp_flows")]
    wire.node.maps.remove("udp_flows", keys)


@pytest.mark.parametrize("xdp", [False, True], ids=["tc", "xdp"])
def test_a_source_that_nobody_can_have(guarded: Wire, xdp: bool) -> None:
    open_to_all = entry("guarded", [b.REMOTE], protocol=Protocol.UDP, load_balancer=VIP)
    guarded.node.install(open_to_all)
    with _attached(guarded, 0, 0, xdp):
        for source in (MULTICAST, "0.0.0.1", "255.255.255.255"):
            assert not _reaches(guarded, source)
            _forget(guarded)
