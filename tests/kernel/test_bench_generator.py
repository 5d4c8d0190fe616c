"""The kernel's own packets: what is sent is what was asked for, and what comes back out of a node is counted."""

import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from dataplane.bench.load.generator import (
    DRIVER_MODE,
    FRAME_BYTES,
    RUN_PACKETS,
    XDP_DROP,
    End,
    Generator,
    take_frames,
    udp_frame,
    uplink_ends,
    uplink_macs,
)
from dataplane.bench.load.instructions import leave
from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import AttachType, ProgramType
from dataplane.kernel.namespaces.netns import netns
from dataplane.kernel.netlink.links import Links
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec
from dataplane.model.net import Family
from tests.kernel.lost_packets import lost_packets

XDP_TX = 3
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")


@pytest.mark.parametrize(
    "addresses", [("198.51.100.2", "172.18.0.1"), ("fd00:198:51:100::2", "fd00:172:18::1")], ids=["IPv4", "IPv6"]
)
def test_the_packet_is_whole_and_its_checksums_are_right(addresses: tuple[str, str]) -> None:
    frame = udp_frame(MACS, addresses, (40000, 30081))
    assert len(frame) == FRAME_BYTES
    seen, again = Ether(frame), Ether(frame)
    assert (seen.src, seen.dst) == MACS
    assert (seen.payload.src, seen.payload.dst, seen[UDP].sport, seen[UDP].dport) == (*addresses, 40000, 30081)
    del again[UDP].chksum
    if IP in again:
        del again[IP].chksum
    assert bytes(again) == frame


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.up(LabSpec(name=f"generator-{os.getpid()}", nodes=2, pods=1)) as lab:
        yield lab


class Aim(NamedTuple):
    """The two ends of a node's uplink, and packets to enter there."""

    uplink: End
    far: End
    to_pod: bytes
    to_node: bytes


@pytest.fixture
def aim(lab: Lab) -> Aim:
    node, other = lab.nodes
    ends = uplink_ends(lab.topology.underlay.netns, node)
    take_frames(node, other, Family.IPV4)
    macs = uplink_macs(*ends)
    frames = (
        udp_frame(macs, (lab.client.addresses[Family.IPV4], address), (40000, 9))
        for address in (other.pods[0].addresses[Family.IPV4], node.addresses[Family.IPV4])
    )
    return Aim(*ends, *frames)


def test_what_a_node_forwards_is_counted(aim: Aim) -> None:
    with Generator(aim.uplink, aim.far, aim.to_pod) as generator, lost_packets(aim.uplink) as lost:
        found = generator.run(0.0)
    assert found["sent"] == RUN_PACKETS
    assert max(0.99 * RUN_PACKETS - lost(), 0.5 * RUN_PACKETS) <= found["operations"] <= RUN_PACKETS + 10
    assert found["seconds"] > 0


def test_what_a_node_keeps_is_not_counted(aim: Aim) -> None:
    with Generator(aim.uplink, aim.far, aim.to_node) as generator:
        assert generator.run(0.0)["operations"] <= 0.1 * RUN_PACKETS


@pytest.mark.parametrize(("verdict", "leaves"), [(XDP_TX, True), (XDP_DROP, False)])
def test_the_program_that_the_uplink_carries_decides(aim: Aim, verdict: int, leaves: bool) -> None:
    """Sent back although the stack would keep it, or dropped although the stack would forward it."""
    program = bpf.program_load(leave(verdict), ProgramType.XDP, AttachType.XDP, "verdict")
    with netns(aim.uplink.namespace), Links(aim.uplink.namespace) as links:
        link = bpf.link_create(program, links.index(aim.uplink.device), AttachType.XDP, DRIVER_MODE)
    try:
        frame = aim.to_node if leaves else aim.to_pod
        with Generator(aim.uplink, aim.far, frame) as generator, lost_packets(aim.uplink) as lost:
            came = generator.run(0.0)["operations"]
    finally:
        os.close(link)
        os.close(program)
    assert max(0.99 * RUN_PACKETS - lost(), 0.5 * RUN_PACKETS) <= came <= RUN_PACKETS + 10 if leaves else came <= 10
