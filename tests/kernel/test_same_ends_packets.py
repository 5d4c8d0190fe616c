"""Packets with the ends of a flow and of a connection straight to its endpoint, one at a time: forged ones, and those
that come out of the tunnel between nodes."""

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.packet import Raw

from dataplane.model.net import Family
from dataplane.policy.forwarding import Dispatch
from tests.kernel.bpf_packets import bench as b
from tests.kernel.bpf_packets.bench import Bench, ip, ip_of
from tests.kernel.bpf_packets.formats import Ipip, Vxlan
from tests.kernel.test_forwarding_formats import _bench, node
from tests.kernel.test_forwarding_packets import (
    ASK,
    CLIENT,
    FAMILIES,
    NODE,
    NODE2,
    POD,
    TUNNEL,
    VIP,
    digest,
)

__all__ = ["_bench", "node"]

VXLAN = Vxlan()
each_family = pytest.mark.parametrize("family", FAMILIES)


def through(family: Family, flags: str, **fields: Any) -> Any:
    """A client's segment to the frontend of a pod of this node."""
    return ip(family, CLIENT[family], VIP[family], ttl=60) / TCP(sport=4000, dport=80, flags=flags, **fields)


def straight(family: Family, flags: str, **fields: Any) -> Any:
    """Its segment from the same port to the pod itself."""
    return ip(family, CLIENT[family], POD[family], ttl=60) / TCP(sport=4000, dport=8080, flags=flags, **fields)


def tunneled(node: Bench, family: Family, flags: str, **fields: Any) -> bytes:
    """The segment to the frontend, as node 2 forwards it."""
    inner = through(family, flags, **fields)
    return node.frame(VXLAN.wrapped(inner, family, (NODE2[family], NODE[family]), digest(family, TCP, POD), ASK))


def answer(node: Bench, family: Family, flags: str, **fields: Any) -> None:
    """Have the pod answer, as to the client's own port."""
    told = ip(family, POD[family], CLIENT[family], ttl=60) / TCP(sport=8080, dport=4000, flags=flags, **fields)
    node.tc(node.frame(told), egress=True)


@each_family
def test_flows_that_nobody_answered_move_no_connection(node: Bench, family: Family) -> None:
    """Whoever forges SYNs in a client's name, to a frontend and to the endpoint, cannot have the segments of the
    client's own connection to the endpoint, which the stack serves, leave from another port."""
    node.tc(node.frame(through(family, "S", seq=7)))
    flows = node.flows()
    for segment in (straight(family, "S", seq=900), straight(family, "A", seq=100, ack=500)):
        frame = node.frame(segment)
        assert node.tc(frame).data == frame
    assert node.flows() == flows


@each_family
def test_a_connection_beside_an_answered_flow_gets_another_port(node: Bench, family: Family) -> None:
    node.tc(node.frame(through(family, "S", seq=7)))
    answer(node, family, "SA", seq=70, ack=8)
    out = ip_of(node.tc(node.frame(straight(family, "S", seq=900))).data)
    assert (out.src, out.dst, out[TCP].dport) == (CLIENT[family], POD[family], 8080)
    assert out[TCP].sport != 4000


@each_family
def test_xdp_leaves_flows_beside_a_connection_to_tc(node: Bench, family: Family) -> None:
    """Taken out by XDP, their segments would look to tc like those of the connection; also once they begin anew."""
    node.tc(tunneled(node, family, "S", seq=7))
    answer(node, family, "SA", seq=70, ack=8)
    node.tc(node.frame(straight(family, "S", seq=3_000_000_000)))
    frames = [tunneled(node, family, "A", seq=8, ack=71)]
    node.tc(tunneled(node, family, "R", seq=8))
    frames += [tunneled(node, family, "S", seq=5000), tunneled(node, family, "A", seq=5001, ack=1)]
    node.tc(frames[1])
    for number, frame in enumerate(frames):
        for _ in range(3):
            out = node.xdp(frame)
            assert (out.result, out.data) == (b.XDP_PASS, frame), number


@each_family
def test_xdp_leaves_syns_with_strange_numbers_to_tc(node: Bench, family: Family) -> None:
    """To tc they would look like those of a connection straight to the endpoint."""
    node.xdp(tunneled(node, family, "S", seq=7))
    answer(node, family, "SA", seq=70, ack=8)
    node.xdp(tunneled(node, family, "A", seq=8, ack=71))
    frame = tunneled(node, family, "S", seq=3_000_000_000)
    for _ in range(3):
        out = node.xdp(frame)
        assert (out.result, out.data) == (b.XDP_PASS, frame)


@each_family
def test_errors_go_to_other_nodes_in_a_format_that_says_what_they_are(node: Bench, family: Family) -> None:
    """IP in IP is judged by what is inside, and what an error quotes may have headers that are not read."""
    node.accept(*NODE2.values(), dispatch=Dispatch.IPIP)
    question = ip(family, CLIENT[family], NODE[family], ttl=64) / UDP(sport=4000, dport=TUNNEL)
    Ipip().unwrapped(node.tc(node.frame(question)).data)
    about = ip(family, NODE[family], CLIENT[family]) / UDP(sport=TUNNEL, dport=4000) / Raw(bytes(900))
    if family is Family.IPV4:
        error = IP(src=CLIENT[family], dst=NODE[family], ttl=60) / ICMP(type=3, code=4, nexthopmtu=1300)
        error /= Raw(bytes(about)[:28])
    else:
        error = IPv6(src=CLIENT[family], dst=NODE[family], hlim=60) / ICMPv6PacketTooBig(mtu=1300)
        error /= Raw(bytes(about)[:400])
    out = node.tc(node.frame(error))
    assert out.result == b.TC_REDIRECT
    assert (ICMP in VXLAN.unwrapped(out.data, whole=False).inner) == (family is Family.IPV4)
