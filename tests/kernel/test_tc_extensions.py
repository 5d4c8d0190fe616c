"""Extension headers and IPv4 options through tc, packet by packet: each byte of what comes out is as it has to be."""

from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.packet import Raw

from dataplane.model.net import Family, Protocol
from tests.kernel.bpf_packets import bench as b
from tests.kernel.bpf_packets.bench import Bench, bench, entry, hops, ip_of
from tests.kernel.test_tc_packets import ADDRESSES, FAMILIES, SENT, TRANSPORTS, exact, right_error


@pytest.fixture(scope="module")
def _bench() -> Iterator[Bench]:
    with bench() as made:
        for family in FAMILIES:
            _, _, remote, pod, *_ = ADDRESSES[family]
            for protocol in (Protocol.TCP, Protocol.UDP):
                for name, backend, port in (("remote", remote, 30080), ("local", pod, 30081)):
                    made.install(
                        entry(f"{name}-{family.name}-{protocol.name}".lower(), [backend], protocol=protocol,
                              node_port=port, family=family)
                    )  # fmt: skip
        yield made


@pytest.fixture
def node(_bench: Bench) -> Iterator[Bench]:
    """The bench, without any flow."""
    yield _bench
    _bench.forget()


def headed(family: Family, source: str, destination: str, size: int = 0) -> Any:
    """An IP header with options, or with extension headers of about so many bytes."""
    if family is Family.IPV4:
        return IP(src=source, dst=destination, ttl=64, options=[IPOption_NOP()] * 4)
    padding = [PadN(optdata=bytes(size))] if size else []
    head = IPv6(src=source, dst=destination, hlim=64) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt(options=padding)
    return head / IPv6ExtHdrRouting(addresses=[b.CLIENT_6], segleft=0)


def plain(family: Family, source: str, destination: str) -> Any:
    head = IP if family is Family.IPV4 else IPv6
    return head(src=source, dst=destination)


def body(transport: Any, source: int, destination: int, flags: str = "S") -> Any:
    more = {"flags": flags, "options": [("Timestamp", (7, 0))]} if transport is TCP else {}
    return transport(sport=source, dport=destination, **more) / Raw(b"data")


@pytest.mark.parametrize("size", [0, 200])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_flow_to_another_node(node: Bench, transport: Any, size: int) -> None:
    """From its first packet on, and back."""
    family = Family.IPV6
    client, own, remote, *_ = ADDRESSES[family]
    out = node.tc(node.frame(headed(family, client, own, size) / body(transport, 4000, 30080)))
    assert out.result in SENT
    first = exact(out.data)
    assert (first.src, first.dst, hops(first), first[transport].dport) == (own, remote, 63, 8080)
    port = first[transport].sport
    out = node.tc(node.frame(headed(family, remote, own, size) / body(transport, 8080, port, "SA")))
    back = exact(out.data)
    assert (back.src, back.dst, back[transport].sport, back[transport].dport) == (own, client, 30080, 4000)
    answers = node.flow(remote, 8080, own, port, 6 if transport is TCP else 17)
    assert answers is not None
    assert answers["packets"] == 1


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_of_a_pod_here(node: Bench, family: Family, transport: Any) -> None:
    client, own, _, pod, *_ = ADDRESSES[family]
    out = node.tc(node.frame(plain(family, client, own) / body(transport, 4000, 30081)))
    assert ip_of(out.data).dst == pod
    with node.counted() as counted:
        out = node.tc(node.frame(headed(family, pod, client) / body(transport, 8080, 4000, "SA")), egress=True)
    back = exact(out.data)
    assert (out.result, back.src, back[transport].sport) == (b.TC_NEXT, own, 30081)
    assert counted == {"tc_egress:reply": 1}


@pytest.mark.parametrize("remote", [False, True])
def test_clients_ipv4_options_are_the_stacks(node: Bench, remote: bool) -> None:
    """Whether a source route is followed (accept_source_route) is for the stack to say, in the middle of a flow too. An
    answer of a pod is translated."""
    family, port = Family.IPV4, 30080 if remote else 30081
    client, own, elsewhere, *_ = ADDRESSES[family]
    asked = node.frame(headed(family, client, own) / body(UDP, 4000, port))
    for _ in range(2):
        with node.counted() as counted:
            out = node.tc(asked)
        assert (out.result, out.data, counted) == (b.TC_NEXT, asked, {"tc_ingress:ip_options": 1})
        out = node.tc(node.frame(plain(family, client, own) / body(UDP, 4000, port)))
        assert ip_of(out.data).dst != own
    if remote:
        answer = headed(family, elsewhere, own) / body(UDP, 8080, ip_of(out.data).sport)
        assert exact(node.tc(node.frame(answer)).data).dst == client


@pytest.mark.parametrize("here", [False, True])
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_errors_about_such_packets(node: Bench, family: Family, transport: Any, here: bool) -> None:
    """An ICMP error quotes the answer of a pod, as it left: the pod hears of it."""
    client, own, remote, pod, *_ = ADDRESSES[family]
    router, backend = b.ROUTER if family is Family.IPV4 else b.ROUTER_6, pod if here else remote
    asked = node.tc(node.frame(plain(family, client, own) / body(transport, 4000, 30081 if here else 30080)))
    to, port = (client, 4000) if here else (own, ip_of(asked.data).sport)
    answer = node.frame(headed(family, backend, to) / body(transport, 8080, port, "SA"))
    left = ip_of(node.tc(answer, egress=here).data)
    quoted = Raw(bytes(left)[: 52 if family is Family.IPV4 else 400])
    error = (
        IP(src=router, dst=own) / ICMP(type=3, code=4, nexthopmtu=1300) / quoted
        if family is Family.IPV4
        else IPv6(src=router, dst=own) / ICMPv6PacketTooBig(mtu=1300) / quoted
    )
    told = ip_of(node.tc(node.frame(error)).data)
    right_error(told)
    inner = bytes(told)[28 if family is Family.IPV4 else 48 :]
    again = (IP if family is Family.IPV4 else IPv6)(inner)
    assert (told.dst, again.src, again.dst) == (backend, backend, to)
    sent = bytes(ip_of(answer))
    at = len(sent) - len(bytes(ip_of(answer)[transport]))
    assert inner[at : at + 4] == sent[at : at + 4]
    if len(inner) == len(sent):
        check = at + (16 if transport is TCP else 6)
        assert inner[check : check + 2] == sent[check : check + 2]


def test_the_pods_own_errors_about_such_packets(node: Bench) -> None:
    """They leave as the frontend's."""
    family = Family.IPV6
    client, own, _, pod, *_ = ADDRESSES[family]
    asked = ip_of(node.tc(node.frame(headed(family, client, own) / body(UDP, 4000, 30081))).data)
    error = IPv6(src=pod, dst=client) / IPv6ExtHdrDestOpt() / ICMPv6PacketTooBig(mtu=1300) / Raw(bytes(asked))
    with node.counted() as counted:
        told = ip_of(node.tc(node.frame(error), egress=True).data)
    assert counted == {"tc_egress:icmp_error": 1}
    right_error(told)
    quoted = IPv6(bytes(told[ICMPv6PacketTooBig].payload))
    assert (told.src, quoted.src, quoted.dst) == (own, client, own)
    assert (quoted[UDP].sport, quoted[UDP].dport) == (4000, 30081)
