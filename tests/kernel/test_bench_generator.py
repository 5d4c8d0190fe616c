"""The kernel's own packets: what is sent is what was asked for, and what comes back out of a node is counted."""

import os
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from dataplane.bench.generator import FRAME_BYTES, RUN_PACKETS, Generator, udp_frame
from dataplane.kernel.links import Links
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec
from dataplane.model.net import Family

MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")


def test_the_packet_is_whole_and_its_checksums_are_right() -> None:
    frame = udp_frame(MACS, ("198.51.100.2", "172.18.0.1"), (40000, 30081))
    assert len(frame) == FRAME_BYTES
    seen = Ether(frame)
    assert (seen.src, seen.dst) == MACS
    assert (seen[IP].src, seen[IP].dst, seen[UDP].sport, seen[UDP].dport) == (
        "198.51.100.2", "172.18.0.1", 40000, 30081,
    )  # fmt: skip
    again = Ether(frame)
    del again[IP].chksum, again[UDP].chksum
    assert bytes(again) == frame


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.up(LabSpec(name=f"generator-{os.getpid()}", nodes=2, pods=1)) as lab:
        yield lab


@pytest.mark.parametrize(("destination", "leaves"), [("pod", True), ("nobody", False)])
def test_what_a_node_forwards_is_counted_and_what_it_keeps_is_not(lab: Lab, destination: str, leaves: bool) -> None:
    node, other = lab.nodes
    switch = lab.topology.underlay.netns
    with Links(switch) as port, Links(node.netns) as uplink, Links(other.netns) as remote:
        uplink.set_gro(node.uplink, True)
        uplink.neighbour(node.uplink, other.addresses[Family.IPV4], remote.mac(other.uplink))
        macs = port.mac(node.name), uplink.mac(node.uplink)
    address = other.pods[0].addresses[Family.IPV4] if destination == "pod" else node.addresses[Family.IPV4]
    frame = udp_frame(macs, (lab.client.addresses[Family.IPV4], address), (40000, 9))
    with Generator(switch, node.name, frame) as generator:
        found = generator.run(0.05)
    assert found["sent"] >= RUN_PACKETS
    if leaves:
        assert 0.9 * found["sent"] <= found["operations"] <= 1.01 * found["sent"] + 10
    else:
        assert found["operations"] <= 0.5 * found["sent"]
