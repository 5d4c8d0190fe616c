"""Ways out that XDP remembers for new flows and for those under way: taken while believed, and not a moment longer."""

import os
import time
from collections.abc import Iterator

import pytest
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether

from dataplane.kernel.ebpf import bpf
from dataplane.model.net import Family
from dataplane.planes.ebpf.maps.encode import address_bytes
from dataplane.planes.ebpf.maps.layout import fields_of, unpack
from tests.kernel.bpf_packets import bench as b
from tests.kernel.bpf_packets.bench import Bench, bench, entry, ip

FAMILIES = (Family.IPV4, Family.IPV6)
ENDS = {Family.IPV4: (b.CLIENT, b.NODE, b.REMOTE, b.NODE2), Family.IPV6: (b.CLIENT_6, b.NODE_6, b.REMOTE_6, b.NODE2_6)}
OTHER_MAC, PLANTED_MAC = "02:00:00:00:00:03", "02:00:00:00:00:04"
BELIEVED = 0.1
"""HOP_NS in bpf/ways.h."""
_LONG = 1 << 62


@pytest.fixture
def node() -> Iterator[Bench]:
    """On one processor, since each remembers ways of its own."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        with bench() as made:
            for family in FAMILIES:
                made.install(entry(f"remote-{family}", [ENDS[family][2]], node_port=30080, family=family))
            yield made
    finally:
        os.sched_setaffinity(0, allowed)


def opened(node: Bench, family: Family, port: int) -> str:
    """Where XDP sends the first packet of a client's connection."""
    client, own, *_ = ENDS[family]
    out = node.xdp(node.frame(ip(family, client, own) / TCP(sport=port, dport=30080, flags="S")))
    assert out.result == b.XDP_TX
    return str(Ether(out.data).dst)


def sent_again(node: Bench, family: Family, port: int) -> str:
    """Where XDP sends the same packet again; of its looks at the FIB, one in 32 is left to tc."""
    client, own, *_ = ENDS[family]
    frame = node.frame(ip(family, client, own) / TCP(sport=port, dport=30080, flags="S"))
    while (out := node.xdp(frame)).result != b.XDP_TX:
        assert out.result == b.XDP_PASS
    return str(Ether(out.data).dst)


def change(node: Bench, family: Family, **fields: bytes) -> None:
    """Give the ways to the family's endpoint other fields, on every processor."""
    spec = node.maps.specs["ways"]
    remote = address_bytes(ENDS[family][2])
    found = 0
    for index in range(spec.max_entries):
        ways = [bytearray(raw) for raw in node.maps.per_cpu("ways", index)]
        ours = [way for way in ways if unpack("way", bytes(way))["destination"] == remote]
        for way in ours:
            for name, value in fields.items():
                at = fields_of("way")[name]
                way[at : at + len(value)] = value
        if ours:
            found += len(ours)
            bpf.map_update(node.maps.fds["ways"], index.to_bytes(4, "little"), b"".join(ways))
    assert found >= 2  # where to, and with which address of its own


@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_neighbour_is_noticed_by_old_flows_and_new_ones(node: Bench, family: Family) -> None:
    assert opened(node, family, 4000) == opened(node, family, 4001) == b.NODE2_MAC
    node.links.neighbour("up0", ENDS[family][3], OTHER_MAC)
    time.sleep(BELIEVED + 0.02)
    assert opened(node, family, 4002) == OTHER_MAC
    assert sent_again(node, family, 4000) == sent_again(node, family, 4001) == OTHER_MAC


@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_route_is_noticed_by_old_flows_and_new_ones(node: Bench, family: Family) -> None:
    four = family is Family.IPV4
    assert opened(node, family, 4000) == b.NODE2_MAC
    node.links.route(f"{ENDS[family][2]}/{family.bits}", via=b.ROUTER if four else b.ROUTER_6)
    time.sleep(BELIEVED + 0.02)
    assert opened(node, family, 4001) == b.ROUTER_MAC
    assert sent_again(node, family, 4000) == b.ROUTER_MAC


@pytest.mark.parametrize("family", FAMILIES)
def test_a_way_is_taken_while_it_is_believed(node: Bench, family: Family) -> None:
    """And only then, and only to where it leads."""
    assert opened(node, family, 4000) == b.NODE2_MAC
    planted = {"hop_destination": bytes.fromhex(PLANTED_MAC.replace(":", ""))}
    change(node, family, until_ns=_LONG.to_bytes(8, "little"), **planted)
    assert opened(node, family, 4001) == PLANTED_MAC
    change(node, family, until_ns=bytes(8))
    assert opened(node, family, 4002) == b.NODE2_MAC
    others = {"protocol": b"\x11", "from": bytes(4), "source": b"\1" * 16}
    for port, (field, value) in enumerate(others.items(), start=4003):
        change(node, family, until_ns=_LONG.to_bytes(8, "little"), **planted, **{field: value})
        assert opened(node, family, port) == b.NODE2_MAC, field


@pytest.mark.parametrize("family", FAMILIES)
def test_what_does_not_fit_a_believed_way_is_left_to_tc(node: Bench, family: Family) -> None:
    client, own, *_ = ENDS[family]
    assert opened(node, family, 4000) == b.NODE2_MAC
    change(node, family, until_ns=_LONG.to_bytes(8, "little"), mtu=(1000).to_bytes(2, "little"))
    syn = ip(family, client, own) / TCP(sport=4001, dport=30080, flags="S") / bytes(1100)
    with node.counted() as counted:
        assert node.xdp(node.frame(syn)).result == b.XDP_PASS
    assert counted["xdp:mtu"] == 1
