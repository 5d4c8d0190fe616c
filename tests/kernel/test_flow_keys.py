"""Keys of flows: those of IPv6 are digests, so what lies under a packet's key may be another flow's."""

import random
import socket
import struct
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from dataplane.model.net import Family
from dataplane.planes.ebpf.flows.entries import flow_key, own_tuple
from dataplane.planes.ebpf.maps.encode import address_bytes
from dataplane.planes.ebpf.maps.layout import constant, fields_of
from dataplane.planes.ebpf.views.events import TUPLE
from tests.kernel.bpf_packets import bench as b
from tests.kernel.bpf_packets.bench import Bench, bench, entry

OWN = fields_of("translation")["own"]


@pytest.fixture
def node() -> Iterator[Bench]:
    with bench() as made:
        for family, remote in ((Family.IPV4, b.REMOTE), (Family.IPV6, b.REMOTE_6)):
            made.install(entry(f"remote-{family}", [remote], node_port=30080, family=family))
        yield made


def tuple_of(source: str, port: int, destination: str, target: int) -> bytes:
    """A TCP packet's."""
    ends = (address_bytes(source), address_bytes(destination), socket.htons(port), socket.htons(target))
    return TUPLE.pack(*ends, socket.IPPROTO_TCP, 0, 0, 0)


def test_the_programs_and_the_daemon_name_flows_alike(node: Bench) -> None:
    chance = random.Random(7)
    for _ in range(100):
        groups = [f"{chance.randrange(1, 0x10000):x}" for _ in range(7)]
        for packet in (
            IPv6(src=":".join(["2001", *groups]), dst=b.NODE_6),
            IP(src=f"198.{chance.randrange(20, 200)}.{chance.randrange(256)}.7", dst=b.NODE),
        ):
            node.xdp(node.frame(packet / TCP(sport=chance.randrange(1, 0x10000), dport=30080, flags="S")))
    found = list(node.maps.items("tcp_flows"))
    assert len(found) == 2 * 200
    assert [key for key, value in found if key != flow_key(own_tuple(value))] == []
    assert {key[0] == 0 for key, value in found if not own_tuple(value).startswith(bytes(10))} == {True}


@pytest.mark.parametrize("way", ["xdp", "tc"])
def test_an_entry_of_another_flow_under_the_same_key_is_not_taken(node: Bench, way: str) -> None:
    """Nor replaced: the slow path has the newcomer."""
    run = getattr(node, way)
    syn = IPv6(src=b.CLIENT_6, dst=b.NODE_6) / TCP(sport=4000, dport=30080, flags="S")
    run(node.frame(syn))
    key = flow_key(tuple_of(b.CLIENT_6, 4000, b.NODE_6, 30080))
    value = node.maps.get("tcp_flows", key)
    assert value is not None
    other = tuple_of(b.CLIENT_6, 4001, b.NODE_6, 30080)
    planted = value[:OWN] + other + value[OWN + len(other) :]
    flags = fields_of("translation")["flags"]
    (said,) = struct.unpack_from("=I", planted, flags)
    said |= constant("FLOW_ESTABLISHED")
    planted = planted[:flags] + struct.pack("=I", said) + planted[flags + 4 :]
    until = fields_of("translation")["hop_until_ns"]  # the short way believes in a next hop for a tenth of a second
    planted = planted[:until] + struct.pack("=Q", 1 << 62) + planted[until + 8 :]
    node.maps.put("tcp_flows", key, planted)
    for tcp, reason in (("S", "changed"), ("A", "tcp_no_syn")):
        syn[TCP].flags = tcp
        frame = node.frame(syn)
        with node.counted() as counted:
            out = run(frame)
        assert (out.result, out.data) == (b.XDP_PASS if way == "xdp" else b.TC_NEXT, frame)
        assert counted == {f"{'xdp' if way == 'xdp' else 'tc_ingress'}:{reason}": 1}
    assert node.maps.get("tcp_flows", key) == planted


def test_no_ipv4_packet_has_the_key_of_an_ipv6_flow(node: Bench) -> None:
    node.xdp(node.frame(IPv6(src=b.CLIENT_6, dst=b.NODE_6) / TCP(sport=4000, dport=30080, flags="S")))
    key = flow_key(tuple_of(b.CLIENT_6, 4000, b.NODE_6, 30080))
    source, destination = socket.inet_ntoa(key[:4]), socket.inet_ntoa(key[4:8])
    ports = struct.unpack("!HH", key[8:])
    for flags in ("S", "A", "R"):
        frame = node.frame(IP(src=source, dst=destination) / TCP(sport=ports[0], dport=ports[1], flags=flags))
        assert node.xdp(frame).data == frame
        assert node.tc(frame).data == frame
    assert node.flows() == 2
