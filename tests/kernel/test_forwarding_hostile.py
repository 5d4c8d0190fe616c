"""Packets in the tunnel that no node of ours sends, or that somebody else does: each is dropped by a name that people
are told, leaves nothing behind, and nobody gets an answer to it."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, Dot1Q
from scapy.packet import Raw

from dataplane.kernel.ebpf.perf import PerfReader
from dataplane.model.net import Family
from dataplane.planes.decisions import Kind
from dataplane.planes.ebpf.maps.layout import reason_names, size_of, unpack
from dataplane.planes.ebpf.maps.mapset import NODE_KEY
from dataplane.planes.ebpf.views.answers import kind_of
from dataplane.planes.ebpf.views.events import EventStream
from tests.kernel.bpf_packets import bench as b
from tests.kernel.bpf_packets.bench import Bench, ip, ip_of, too_long
from tests.kernel.test_forwarding_packets import (
    ANSWER,
    ASK,
    ASK_DSR,
    CLIENT,
    FAMILIES,
    LOCAL,
    NODE,
    NODE2,
    POD,
    REMOTE,
    TUNNEL,
    VIP,
    _bench,
    digest,
    node,
    wrapped,
)

__all__ = ["_bench", "node"]

OTHER = {Family.IPV4: Family.IPV6, Family.IPV6: Family.IPV4}
TYPES = {Family.IPV4: 0x0800, Family.IPV6: 0x86DD}
HEADER = {Family.IPV4: 20, Family.IPV6: 40}
HEAD = size_of("captured")
OUTER = {Family.IPV4: IP, Family.IPV6: IPv6}
FORMAT, SOURCE, FRONTEND, ENDPOINT, LOST = (
    f"tunnel_{what}" for what in ("format", "source", "frontend", "endpoint", "lost")
)


def asked(family: Family, source: str = "", port: int = 80, flags: str = "S") -> Any:
    """A client's segment to the load-balancer IP."""
    return ip(family, source or CLIENT[family], VIP[family]) / TCP(sport=4000, dport=port, flags=flags)


def cut(packet: Any, family: Family, size: int) -> Any:
    """The packet with so many bytes behind its outer IP header, which say so themselves."""
    short = OUTER[family](bytes(packet)[: HEADER[family] + size])
    for field in ("len", "plen", "chksum"):
        if field in short.fields:
            short.delfieldval(field)
    if UDP in short:
        short[UDP].delfieldval("len")
    return short


def fragment(family: Family, source: str, destination: str, offset: int, data: Any, nh: int = 17) -> Any:
    """A fragment of a datagram at this offset, in units of eight bytes, with more to come."""
    if family is Family.IPV4:
        return IP(src=source, dst=destination, id=77, frag=offset, flags="MF", proto=nh) / data
    return IPv6(src=source, dst=destination) / IPv6ExtHdrFragment(id=77, offset=offset, m=1, nh=nh) / data


def error(family: Family, source: str, destination: str) -> Any:
    """An ICMP error about a segment that the destination would have sent to port 80 of the source."""
    quoted = ip(family, destination, source) / TCP(sport=4001, dport=80)
    about = ICMP(type=3, code=1) if family is Family.IPV4 else ICMPv6DestUnreach()
    return ip(family, source, destination) / about / quoted


def malformed(family: Family, endpoint: int) -> Iterator[tuple[str, Any]]:
    """What is no packet of ours from its form."""
    good = asked(family)
    whole = wrapped(good, family, endpoint, ASK)
    for size in (8, 12, 20, 29, 30, 31, 30 + HEADER[family] - 1, 30 + HEADER[family], 30 + HEADER[family] + 19):
        yield f"cut to {size} bytes", cut(whole, family, size)
    yield "inner packet of the other family", wrapped(asked(OTHER[family]), family, endpoint, ASK)
    of_the_other = {"type": TYPES[family]}
    yield "that says to be of this one", wrapped(asked(OTHER[family]), family, endpoint, ASK, ether=of_the_other)
    yield "tagged inside", wrapped(Dot1Q(vlan=5) / good, family, endpoint, ASK)
    yield "ARP inside", wrapped(ARP(), family, endpoint, ASK)
    for kind in (0, ANSWER + 1):
        yield f"kind {kind}", wrapped(good, family, endpoint, kind)
    yield "inner link-layer address", wrapped(good, family, endpoint, ASK, ether={"dst": "04:00:00:00:00:01"})
    yield "network identifier", wrapped(good, family, endpoint, ASK, vxlan={"vni": 1})
    yield "VXLAN flags", wrapped(good, family, endpoint, ASK, vxlan={"flags": 0x88})
    echo = ICMP() if family is Family.IPV4 else ICMPv6EchoRequest()
    yield "ping inside", wrapped(ip(family, CLIENT[family], VIP[family]) / echo, family, endpoint, ASK)
    if family is Family.IPV4:
        head = IP(src=CLIENT[family], dst=VIP[family], options=[IPOption_NOP()] * 4)
        yield "IP options", wrapped(head / TCP(dport=80, flags="S"), family, endpoint, ASK)
        return
    head = IPv6(src=CLIENT[family], dst=VIP[family])
    yield "extension headers", wrapped(too_long(head) / TCP(dport=80, flags="S"), family, endpoint, ASK)
    outer = IPv6(src=whole.src, dst=whole.dst) / IPv6ExtHdrDestOpt() / whole.payload
    yield "extension header outside", outer


def cases(family: Family) -> Iterator[tuple[str, Any, list[str]]]:
    """What another node might send: a word for it, the packet, the reasons that are counted."""
    endpoint = digest(family, TCP, POD)
    client, vip = CLIENT[family], VIP[family]
    for word, packet in malformed(family, endpoint):
        yield word, packet, [FORMAT]
    for source in (NODE[family], NODE2[family], POD[family], REMOTE[family]):
        yield f"from {source}", wrapped(asked(family, source), family, endpoint, ASK), [SOURCE]
    yield "SYN and ACK to no frontend", wrapped(asked(family, port=81, flags="SA"), family, endpoint, ASK), [FRONTEND]
    yield "no such endpoint", wrapped(asked(family, flags="A"), family, endpoint ^ 1, ASK_DSR), [ENDPOINT]
    in_it = wrapped(asked(family), family, endpoint, ASK)
    yield "tunnel in tunnel", wrapped(in_it, family, endpoint, ASK), [SOURCE]
    in_it = wrapped(asked(family), family, endpoint, ASK, ip={"src": client})
    yield "tunnel in tunnel, a client's", wrapped(in_it, family, endpoint, ASK), [FRONTEND]
    yield "answer from no frontend", wrapped(ip(family, client, vip) / TCP(), family, 0, ANSWER), [FRONTEND]
    to_pod = ip(family, vip, POD[family]) / TCP(sport=80, flags="SA")
    yield "answer to a pod", wrapped(to_pod, family, 0, ANSWER), [FRONTEND]
    yield "ICMP error", wrapped(error(family, client, vip), family, endpoint, ASK), ["icmp_unrelated", LOST]
    yield "ICMP error as answer", wrapped(error(family, vip, client), family, 0, ANSWER), [FRONTEND]
    data = Raw(bytes(64))
    later = fragment(family, client, vip, 3, data)
    yield "later fragment", wrapped(later, family, endpoint, ASK), ["fragment_unknown", LOST]
    later = fragment(family, vip, client, 3, data)
    yield "later fragment as answer", wrapped(later, family, 0, ANSWER), ["fragment_unknown", LOST]
    first = fragment(family, client, vip, 0, UDP(sport=4000, dport=81, len=200, chksum=1) / data)
    yield "first fragment to no frontend", wrapped(first, family, endpoint, ASK), [FRONTEND]
    last_hop = ip(family, NODE[family], client, ttl=1) / TCP(sport=TUNNEL, dport=4000, flags="SA")
    yield "answer without hops left", wrapped(last_hop, family, 0, ANSWER), ["ttl", LOST]


def held(node: Bench) -> list[int]:
    """How much the programs remember."""
    return [node.flows(), node.flows("fragments"), node.flows("affinity")]


def dropped(node: Bench, events: EventStream, packet: Any) -> list[str]:
    """The reasons for which a packet is dropped, as they are told, which XDP leaves to tc."""
    frame, before = node.frame(packet), held(node)
    by_xdp = node.xdp(frame)
    assert (by_xdp.result, by_xdp.data) == (b.XDP_PASS, frame)
    assert node.tc(frame).result == b.TC_SHOT
    assert held(node) == before
    return [each.reason for each in events.poll(1.0) if each.hook == "tc_ingress"]


@contextmanager
def captured(node: Bench) -> Iterator[Callable[[], list[str]]]:
    """Has packets captured for an hour at most; returns the reasons of those that were since the last call."""
    with PerfReader(node.maps.fds["captured"]) as reader:
        until = time.monotonic_ns() + 3600 * 10**9
        node.maps.put("capture", NODE_KEY, until.to_bytes(8, "little") + (512).to_bytes(4, "little") + bytes(4))
        yield lambda: [reason_names()[unpack("captured", raw[:HEAD])["reason"]] for raw in reader.take(0)]
        node.maps.put("capture", NODE_KEY, bytes(16))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_is_dropped_by_name_and_told(node: Bench, family: Family) -> None:
    """Counters, monitor and capture all have it, as something that was refused. From elsewhere the sender decides."""
    wanted: Counter[str] = Counter()
    with EventStream(node.maps) as events, captured(node) as taken, node.counted() as counted:
        for word, packet, reasons in cases(family):
            for source, named in (("", reasons), (CLIENT[family], ["tunnel_sender"])):
                sent = packet.copy()
                sent.src = source or sent.src
                assert dropped(node, events, sent) == named, (word, source)
                assert taken() == named[-1:], (word, source)
                wanted.update(f"tc_ingress:{name}" for name in named)
    assert {name: count for name, count in counted.items() if name.startswith("tc_")} == wanted
    assert {kind_of(name) for name in (FORMAT, SOURCE, FRONTEND, ENDPOINT, LOST, "tunnel_sender")} == {Kind.REFUSED}


@pytest.mark.parametrize("family", FAMILIES)
def test_who_was_a_node_once_goes_on_and_begins_nothing(node: Bench, family: Family) -> None:
    endpoint = digest(family, TCP, POD)
    first, later = (wrapped(asked(family, flags=flags), family, endpoint, ASK) for flags in ("S", "A"))
    assert node.tc(node.frame(first)).result == b.TC_NEXT
    node.accept(*(address for address in NODE2.values() if address != NODE2[family]))
    try:
        assert node.tc(node.frame(later)).result == b.TC_NEXT
        other = asked(family)
        other[TCP].sport = 4001
        with EventStream(node.maps) as events:
            assert dropped(node, events, wrapped(other, family, endpoint, ASK)) == ["tunnel_sender"]
    finally:
        node.accept(*NODE2.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_parity_concerns_clients_of_the_node_alone(node: Bench, family: Family) -> None:
    """With `--masquerade kube-proxy` a local endpoint sees the node, as there. What another node forwards keeps its
    client: that node was asked to."""
    config = node.plan.node
    node.configure(config, parity=True)
    try:
        at_node = ip(family, CLIENT[family], NODE[family]) / TCP(sport=4000, dport=LOCAL, flags="S")
        assert ip_of(node.tc(node.frame(at_node)).data).src == NODE[family]
        out = node.tc(node.frame(wrapped(asked(family), family, digest(family, TCP, POD), ASK)))
        assert (ip_of(out.data).src, ip_of(out.data).dst) == (CLIENT[family], POD[family])
    finally:
        node.configure(config)
