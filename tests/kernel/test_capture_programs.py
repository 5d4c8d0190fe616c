"""Packets that the programs drop by themselves are handed to who captures them, and to nobody else."""

import subprocess
import time

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from dataplane.kernel.ebpf.perf import PerfReader
from dataplane.kernel.namespaces.netns import in_netns
from dataplane.model.net import Family, Protocol
from dataplane.planes.captures import Captured, Link
from dataplane.planes.ebpf.maps.layout import unpack
from dataplane.planes.ebpf.maps.mapset import NODE_KEY
from dataplane.planes.ebpf.views.captures import ProgramCapture
from tests.kernel.bpf_packets import bench as b

REMOTE = {Family.IPV4: ("10.244.2.20", "10.244.2.0/24"), Family.IPV6: ("fd00:10:244:2::20", "fd00:10:244:2::/64")}
CLIENT = {Family.IPV4: "203.0.113.9", Family.IPV6: "2001:db8:9::9"}


def until_taken(capture: ProgramCapture, count: int) -> list[Captured]:
    found: list[Captured] = []
    deadline = time.monotonic() + 60
    while len(found) < count and time.monotonic() < deadline:
        found += capture.poll(0.1)
    return found


@pytest.mark.parametrize("family", list(Family))
def test_a_dropped_packet_comes_with_its_reason_and_first_bytes_and_no_other(family: Family) -> None:
    own = b.NODE if family is Family.IPV4 else b.NODE_6
    backend, route = REMOTE[family]
    with b.bench() as node:
        node.install(b.entry("web", [backend], protocol=Protocol.UDP, node_port=30080, family=family))
        ip = (IP if family is Family.IPV4 else IPv6)(src=CLIENT[family], dst=own)
        frame = node.frame(ip / UDP(sport=4000, dport=30080) / (b"x" * 200))
        assert node.tc(frame).result == b.TC_REDIRECT
        nowhere = f"-{family.value} route replace unreachable {route}"
        subprocess.run(["ip", "-n", node.namespace, *nowhere.split()], check=True)
        assert node.tc(frame).result == b.TC_SHOT, "dropped while nobody captures"

        capture = in_netns(node.namespace, ProgramCapture, node.maps, None, 64)
        assert node.tc(node.frame(ip / UDP(sport=4001, dport=30081) / b"y")).result == b.TC_NEXT, "passed on"
        before = time.time_ns()
        for _ in range(3):
            assert node.tc(frame).result == b.TC_SHOT
        found = in_netns(node.namespace, until_taken, capture, 3)
        assert [(p.hook, p.reason, p.device, p.ifindex, p.link) for p in found] == [
            ("tc_ingress", "no_way_out", "up0", node.up, Link.ETHERNET)
        ] * 3
        for packet in found:
            assert (packet.data, packet.length) == (frame[:64], len(frame))
            assert abs(packet.ns - before) < 60_000_000_000
            assert packet.fate.startswith("dropped: no route any more")
        assert (capture.lost, capture.poll(0)) == (0, [])

        fields = unpack("capture", node.maps.get("capture", NODE_KEY) or b"")
        assert (fields["snaplen"], fields["until_ns"] > time.monotonic_ns()) == (64, True)
        capture.close()


def test_a_capture_that_is_not_renewed_is_over() -> None:
    backend, route = REMOTE[Family.IPV4]
    with b.bench() as node:
        node.install(b.entry("web", [backend], protocol=Protocol.UDP, node_port=30080))
        frame = node.frame(IP(src=CLIENT[Family.IPV4], dst=b.NODE) / UDP(sport=4000, dport=30080) / (b"x" * 200))
        node.tc(frame)
        subprocess.run(["ip", "-n", node.namespace, "route", "replace", "unreachable", route], check=True)
        wanted = (time.monotonic_ns() - 1_000_000_000).to_bytes(8, "little") + (64).to_bytes(4, "little") + bytes(4)
        node.maps.put("capture", NODE_KEY, wanted)
        with PerfReader(node.maps.fds["captured"]) as reader:
            assert node.tc(frame).result == b.TC_SHOT
            assert reader.take(0.2) == []
            assert reader.lost == 0
