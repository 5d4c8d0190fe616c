"""Packets between nodes, one by one through test runs: every byte of what comes out is what it has to be."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from msgspec.structs import replace
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from dataplane.kernel.ebpf.bpf import ProgramRun
from dataplane.model.net import Family, Protocol
from dataplane.plan.types import PlanEntry
from dataplane.planes.ebpf.flows.entries import FLOW_TABLES
from dataplane.planes.ebpf.maps.layout import constant, unpack
from dataplane.policy.dispatch import endpoint_digest
from dataplane.policy.forwarding import DEFAULT_PORT, DEFAULT_VNI, Forwarding
from tests.kernel.bpf_packets import bench as b
from tests.kernel.bpf_packets.bench import Bench, bench, entry, hops, ip, ip_of, rebuilt

FAMILIES = (Family.IPV4, Family.IPV6)
TRANSPORTS = (TCP, UDP)
CLIENT = {Family.IPV4: b.CLIENT, Family.IPV6: b.CLIENT_6}
NODE = {Family.IPV4: b.NODE, Family.IPV6: b.NODE_6}
NODE2 = {Family.IPV4: b.NODE2, Family.IPV6: b.NODE2_6}
REMOTE = {Family.IPV4: b.REMOTE, Family.IPV6: b.REMOTE_6}
POD = {Family.IPV4: b.POD, Family.IPV6: b.POD_6}
VIP = {Family.IPV4: "192.0.2.1", Family.IPV6: "fd00:192:2::1"}
OVERHEAD = {Family.IPV4: 50, Family.IPV6: 70}
DSR, TUNNEL, LOCAL = 30080, 30081, 30082
"""Node ports: of a remote endpoint by either way, and of a local one."""
ASK, ASK_DSR, ANSWER = (constant(f"TUNNEL_{name}") for name in ("ASK", "ASK_DSR", "ANSWER"))
PROTOCOLS = {TCP: Protocol.TCP, UDP: Protocol.UDP}


def forwarded(made: PlanEntry, way: Forwarding) -> PlanEntry:
    """The entry with its traffic to other nodes forwarded to node 2."""
    node2 = NODE2[made.key.family]
    return replace(made, forwarding=way, tunnels=tuple("" if b.local else node2 for b in made.cluster))


def entries(family: Family, protocol: Protocol) -> Iterator[PlanEntry]:
    """The bench's Services."""
    name = f"{family.name}-{protocol.name}".lower()
    rest: dict[str, Any] = {"protocol": protocol, "family": family}
    remote, pod = [REMOTE[family]], [POD[family]]
    yield forwarded(entry(f"dsr-{name}", remote, node_port=DSR, **rest), Forwarding.DSR)
    yield forwarded(entry(f"tunnel-{name}", remote, node_port=TUNNEL, **rest), Forwarding.TUNNEL)
    yield forwarded(entry(f"local-{name}", pod, node_port=LOCAL, load_balancer=VIP[family], **rest), Forwarding.TUNNEL)


@contextmanager
def forwarding_bench() -> Iterator[Bench]:
    """The bench with these Services, to which node 2 may send."""
    with bench() as made:
        made.accept(*NODE2.values())
        for family in FAMILIES:
            made.install(*entries(family, Protocol.TCP), *entries(family, Protocol.UDP))
        yield made


@pytest.fixture(scope="module")
def _bench() -> Iterator[Bench]:
    with forwarding_bench() as made:
        yield made


@pytest.fixture
def node(_bench: Bench) -> Iterator[Bench]:
    """The bench, without any flow."""
    yield _bench
    _bench.forget()


def segment(transport: Any, source: int, destination: int, flags: str = "S", **fields: Any) -> Any:
    """A TCP segment or a datagram."""
    more = {"flags": flags, **fields} if transport is TCP else {}
    return transport(sport=source, dport=destination, **more)


def mac(endpoint: int) -> str:
    """The inner destination of a packet for an endpoint."""
    raw = endpoint.to_bytes(4, "big")
    return "02:00:" + ":".join(f"{byte:02x}" for byte in raw)


def wrapped(inner: Any, family: Family, endpoint: int, kind: int, **change: Any) -> Any:
    """What another node makes of a packet. change: what is not as it has to be."""
    outer = {"src": NODE2[family], "dst": NODE[family]} | change.get("ip", {})
    vxlan = {"vni": DEFAULT_VNI, "flags": 8} | change.get("vxlan", {})
    ether = {"dst": mac(endpoint), "src": f"02:00:00:00:00:{kind:02x}"} | change.get("ether", {})
    kept = {"flags": "DF", "id": 0} if family is Family.IPV4 else {}
    udp = UDP(sport=50000, dport=DEFAULT_PORT, chksum=0)
    return ip(family, outer["src"], outer["dst"], **kept) / udp / VXLAN(**vxlan) / Ether(**ether) / inner


def unwrapped(data: bytes, *, whole: bool = True) -> tuple[Any, Any, Any]:
    """Outer IP packet, inner Ethernet frame and inner IP packet of a frame; all of it as it has to be. whole: no
    fragment is inside."""
    outer = ip_of(data)
    assert outer[UDP].dport == DEFAULT_PORT
    assert outer[UDP].sport >= 0xC000
    assert outer[UDP].chksum == 0
    vxlan = VXLAN(bytes(outer[UDP].payload))
    assert (int(vxlan.flags), vxlan.vni) == (8, DEFAULT_VNI)
    inner = vxlan[IP] if IP in vxlan else vxlan[IPv6]
    assert bytes(inner) == rebuilt(inner) if whole else bytes(inner)[:20] == rebuilt_header(inner)
    length = outer.len if IP in outer else outer.plen + 40
    assert length == len(bytes(outer)) == len(bytes(inner)) + OVERHEAD[Family.IPV4 if IP in outer else Family.IPV6]
    assert outer[UDP].len == len(bytes(outer[UDP]))
    if IP in outer:
        assert bytes(IP(bytes(outer)[:20])) == rebuilt_header(outer)
        assert outer.flags == "DF"
    return outer, vxlan[Ether], inner


def rebuilt_header(outer: Any) -> bytes:
    """An IPv4 header with its checksum computed afresh."""
    header = IP(bytes(outer)[:20])
    del header.chksum
    return bytes(header)


def digest(family: Family, transport: Any, address: dict[Family, str]) -> int:
    return endpoint_digest(address[family], 8080, PROTOCOLS[transport])


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("port", "kind"), [(DSR, ASK_DSR), (TUNNEL, ASK)], ids=["dsr", "tunnel"])
def test_a_client_is_forwarded_as_it_is(node: Bench, family: Family, transport: Any, port: int, kind: int) -> None:
    sent = ip(family, CLIENT[family], NODE[family], ttl=64) / segment(transport, 4000, port) / b"question"
    with node.counted() as counted:
        out = node.tc(node.frame(sent))
    assert out.result == b.TC_REDIRECT
    outer, frame, inner = unwrapped(out.data)
    assert (outer.src, outer.dst, hops(outer)) == (NODE[family], NODE2[family], 64)
    assert (frame.dst, frame.src) == (mac(digest(family, transport, REMOTE)), f"02:00:00:00:00:{kind:02x}")
    assert Ether(out.data).dst in (b.NODE2_MAC, node.up_mac)  # the stack's neighbour code has yet to write it
    expected = ip(family, CLIENT[family], NODE[family], ttl=63) / segment(transport, 4000, port) / b"question"
    assert bytes(inner) == bytes(expected)
    assert counted["tc_ingress:forwarded"] == 1
    again = node.tc(node.frame(ip(family, CLIENT[family], NODE[family]) / segment(transport, 4000, port, "A")))
    assert unwrapped(again.data)[1].dst == frame.dst


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [ASK_DSR, ASK])
@pytest.mark.parametrize("to", ["node port", "load balancer"])
def test_an_endpoint_sees_the_client_and_answers_as_the_frontend(
    node: Bench, family: Family, transport: Any, kind: int, to: str
) -> None:
    frontend, port = (NODE2[family], LOCAL) if to == "node port" else (VIP[family], 80)
    sent = ip(family, CLIENT[family], frontend, ttl=60) / segment(transport, 4000, port) / b"question"
    out = node.tc(node.frame(wrapped(sent, family, digest(family, transport, POD), kind)))
    assert out.result == b.TC_NEXT
    inner = ip_of(out.data)
    assert bytes(inner) == rebuilt(inner)
    assert (inner.src, inner.dst, hops(inner)) == (CLIENT[family], POD[family], 60)
    assert (inner[transport].sport, inner[transport].dport) == (4000, 8080)
    assert bytes(inner[transport].payload) == b"question"
    assert Ether(out.data).dst == node.up_mac
    answer = ip(family, POD[family], CLIENT[family], ttl=62) / segment(transport, 8080, 4000, "SA") / b"answer"
    back = node.tc(node.frame(answer), egress=True)
    if kind == ASK_DSR:
        assert back.result == b.TC_NEXT
        said = ip_of(back.data)
        assert bytes(said) == rebuilt(said)
    else:
        assert back.result in (b.TC_NEXT, b.TC_REDIRECT)  # one in 32 goes by the stack's neighbour code
        outer, frame, said = unwrapped(back.data)
        assert (outer.src, outer.dst) == (NODE[family], NODE2[family])
        assert (frame.dst, frame.src) == (mac(0), f"02:00:00:00:00:{ANSWER:02x}")
    assert (said.src, said.dst, hops(said)) == (frontend, CLIENT[family], 62)
    assert (said[transport].sport, said[transport].dport) == (port, 4000)
    assert bytes(said[transport].payload) == b"answer"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_into_the_tunnel_goes_on_where_it_leaves_anyway(node: Bench, family: Family) -> None:
    """Without a redirect to the device at hand, where it would come to the same program again."""
    ask = ip(family, CLIENT[family], VIP[family]) / UDP(sport=4000, dport=80)
    node.tc(node.frame(wrapped(ask, family, digest(family, UDP, POD), ASK)))
    answer = ip(family, POD[family], CLIENT[family]) / UDP(sport=8080, dport=4000) / b"answer"
    went_on = [out for out in (node.tc(node.frame(answer), egress=True) for _ in range(20)) if out.result == b.TC_NEXT]
    assert len(went_on) > 10
    for out in went_on:
        assert (Ether(out.data).dst, Ether(out.data).src) == (b.NODE2_MAC, node.up_mac)
        unwrapped(out.data)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_through_the_tunnel_go_on_to_the_client(node: Bench, family: Family, transport: Any) -> None:
    node.tc(node.frame(ip(family, CLIENT[family], NODE[family]) / segment(transport, 4000, TUNNEL)))
    answer = ip(family, NODE[family], CLIENT[family], ttl=62) / segment(transport, TUNNEL, 4000, "SA") / b"answer"
    out = node.tc(node.frame(wrapped(answer, family, 0, ANSWER)))
    assert out.result == b.TC_REDIRECT
    said = ip_of(out.data)
    assert bytes(said) == rebuilt(said)
    assert (said.src, said.dst, hops(said)) == (NODE[family], CLIENT[family], 61)
    assert (said[transport].sport, said[transport].dport) == (TUNNEL, 4000)
    assert Ether(out.data).dst in (b.ROUTER_MAC, node.up_mac)
    protocol = PROTOCOLS[transport]
    assert node.flow(NODE[family], TUNNEL, CLIENT[family], 4000, protocol)["packets"] == 1  # type: ignore[index]


def refused(node: Bench, packet: Any) -> str:
    """The reason for which a packet is dropped; nothing of it is left."""
    before = node.flows()
    with node.counted() as counted:
        out = node.tc(node.frame(packet))
    assert out.result == b.TC_SHOT
    assert node.flows() == before
    [reason] = counted
    return reason.partition(":")[2]


@pytest.mark.parametrize("family", FAMILIES)
def test_who_may_send(node: Bench, family: Family) -> None:
    """Other nodes alone, in our own format, for clients alone, to frontends and endpoints that there are."""
    stranger = {Family.IPV4: "172.18.0.66", Family.IPV6: "fd00:172:18::66"}[family]
    loopback = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}[family]
    endpoint = digest(family, TCP, POD)

    def ask(source: str, frontend: str = VIP[family], port: int = 80, to: int = endpoint, **change: Any) -> Any:
        return wrapped(ip(family, source, frontend) / TCP(sport=4000, dport=port, flags="S"), family, to, ASK, **change)

    client = CLIENT[family]
    assert refused(node, ask(client, ip={"src": stranger})) == "tunnel_sender"
    assert refused(node, ask(client, ip={"src": client})) == "tunnel_sender"
    assert refused(node, ask(client, vxlan={"vni": DEFAULT_VNI + 1})) == "tunnel_format"
    assert refused(node, ask(client, vxlan={"flags": 0x88})) == "tunnel_format"
    assert refused(node, ask(client, ether={"src": "02:00:00:00:00:04"})) == "tunnel_format"
    assert refused(node, ask(client, ether={"type": 0x0806})) == "tunnel_format"
    for source in (NODE[family], NODE2[family], POD[family], REMOTE[family], loopback):
        assert refused(node, ask(source)) == "tunnel_source", source
    assert refused(node, ask(client, port=81)) == "tunnel_frontend"
    assert refused(node, ask(client, frontend=POD[family], port=LOCAL)) == "tunnel_frontend"
    assert refused(node, ask(client, to=endpoint ^ 1)) == "tunnel_endpoint"
    assert refused(node, ask(client, to=digest(family, TCP, REMOTE))) == "tunnel_endpoint"
    strange = ip(family, client, client) / TCP(sport=TUNNEL, dport=4000, flags="SA")
    assert refused(node, wrapped(strange, family, 0, ANSWER)) == "tunnel_frontend"
    assert node.tc(node.frame(ask(client))).result == b.TC_NEXT  # the very packet that is fine


def test_a_packet_for_somebody_else_is_none_of_ours(node: Bench) -> None:
    """VXLAN of the same port that only passes by."""
    inner = IP(src=b.CLIENT, dst="192.0.2.1") / TCP(dport=80, flags="S")
    frame = node.frame(wrapped(inner, Family.IPV4, 0, ASK, ip={"dst": "203.0.113.9", "src": b.NODE2}))
    out = node.tc(frame)
    assert (out.result, out.data) == (b.TC_NEXT, frame)


def too_big(out: ProgramRun) -> tuple[Any, int]:
    """The IP packet of an answer to a packet that was too big, and the MTU that it tells."""
    packet = ip_of(out.data)
    copy = packet.copy()
    for layer, field in ((IP, "chksum"), (ICMP, "chksum"), (ICMPv6PacketTooBig, "cksum")):
        if layer in packet:  # the outermost of each
            copy[layer].delfieldval(field)
    assert bytes(packet) == bytes(copy)
    if IP in packet:
        assert (packet[ICMP].type, packet[ICMP].code) == (3, 4)
        return packet, packet[ICMP].nexthopmtu
    return packet, packet[ICMPv6PacketTooBig].mtu


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_does_not_fit_into_the_tunnel_is_answered(node: Bench, family: Family, transport: Any) -> None:
    """With the MTU less the tunnel's bytes, by the frontend. What just fits is forwarded."""
    fits = 1500 - OVERHEAD[family]
    header = (20 if family is Family.IPV4 else 40) + (20 if transport is TCP else 8)
    kept = {"flags": "DF"} if family is Family.IPV4 else {}
    for port in (DSR, TUNNEL):
        node.tc(node.frame(ip(family, CLIENT[family], NODE[family]) / segment(transport, 4000, port)))
        head = ip(family, CLIENT[family], NODE[family], **kept) / segment(transport, 4000, port, "A")
        out = node.tc(node.frame(head / Raw(bytes(fits - header))))
        assert len(bytes(unwrapped(out.data)[0])) == 1500
        out = node.tc(node.frame(head / Raw(bytes(fits - header + 1))))
        assert out.result == b.TC_REDIRECT
        answer, mtu = too_big(out)
        assert (answer.src, answer.dst, mtu) == (NODE[family], CLIENT[family], fits)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_that_does_not_fit_is_answered_to_its_pod(node: Bench, family: Family) -> None:
    """By an error that comes in from outside, as if a router there had sent it."""
    ask = ip(family, CLIENT[family], VIP[family]) / UDP(sport=4000, dport=80)
    node.tc(node.frame(wrapped(ask, family, digest(family, UDP, POD), ASK)))
    fits = 1500 - OVERHEAD[family]
    kept = {"flags": "DF"} if family is Family.IPV4 else {}
    header = 28 if family is Family.IPV4 else 48
    frame = node.frame(
        ip(family, POD[family], CLIENT[family], **kept) / UDP(sport=8080, dport=4000) / Raw(bytes(fits - header + 1))
    )
    out = node.tc(frame, egress=True)
    assert out.result == b.TC_REDIRECT
    answer, mtu = too_big(out)
    assert (answer.src, answer.dst, mtu) == (CLIENT[family], POD[family], fits)


def test_a_big_datagram_without_df_is_cut(node: Bench) -> None:
    """Into fragments that fit; later fragments go where the first went."""
    sent = IP(src=b.CLIENT, dst=b.NODE, id=7) / UDP(sport=4000, dport=DSR) / Raw(bytes(1472))
    out = node.tc(node.frame(sent))
    assert out.result == b.TC_REDIRECT
    _, frame, first = unwrapped(out.data, whole=False)
    assert (first.flags, first.frag, first.len) == ("MF", 0, 276)
    later = IP(src=b.CLIENT, dst=b.NODE, id=7, frag=32, proto=17) / Raw(bytes(1224))
    out = node.tc(node.frame(later))
    _, behind, second = unwrapped(out.data, whole=False)
    assert (behind.dst, second.frag) == (frame.dst, 32)


@pytest.mark.parametrize("family", FAMILIES)
def test_pods_and_nodes_as_clients_are_masqueraded_as_before(node: Bench, family: Family) -> None:
    for source in (NODE2[family],):
        out = node.tc(node.frame(ip(family, source, NODE[family]) / TCP(sport=4000, dport=DSR, flags="S")))
        assert out.result == b.TC_REDIRECT
        assert (ip_of(out.data).src, ip_of(out.data).dst) == (NODE[family], REMOTE[family])
    pod = ip(family, POD[family], NODE[family]) / TCP(sport=4000, dport=DSR, flags="S")
    assert ip_of(node.tc(node.frame(pod, pod=True), pod=True).data).dst == REMOTE[family]


def test_both_digests_are_the_same(node: Bench) -> None:
    """Python's and the programs': over many addresses and ports."""
    for number in range(1, 60):
        made = entry(f"many-{number}", [f"10.244.2.{number}"], node_port=31000 + number, target=8000 + 37 * number)
        node.install(forwarded(made, Forwarding.DSR))
        out = node.tc(node.frame(IP(src=b.CLIENT, dst=b.NODE) / TCP(sport=4000, dport=31000 + number, flags="S")))
        wanted = endpoint_digest(f"10.244.2.{number}", 8000 + 37 * number, 6)
        assert unwrapped(out.data)[1].dst == mac(wanted)
        node.remove(node.plan.entries[made.key])


def by_xdp(node: Bench, frame: bytes) -> ProgramRun:
    """Run XDP, once more where it left the frame to tc: one look for a known next hop in 32 does."""
    for _ in range(8):
        out = node.xdp(frame)
        if out.data != frame:
            break
    return out


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("port", "kind"), [(DSR, ASK_DSR), (TUNNEL, ASK)], ids=["dsr", "tunnel"])
def test_xdp_forwards_what_tc_does(node: Bench, family: Family, transport: Any, port: int, kind: int) -> None:
    """New flows and known ones, to the byte; and the answers that come back."""
    for flags, number in (("S", 64), ("A", 63)):
        sent = (
            ip(family, CLIENT[family], NODE[family], ttl=number) / segment(transport, 4000, port, flags) / b"question"
        )
        out = by_xdp(node, node.frame(sent))
        assert out.result == b.XDP_TX
        outer, frame, inner = unwrapped(out.data)
        assert (outer.src, outer.dst, hops(outer)) == (NODE[family], NODE2[family], 64)
        assert (frame.dst, frame.src) == (mac(digest(family, transport, REMOTE)), f"02:00:00:00:00:{kind:02x}")
        assert (Ether(out.data).dst, Ether(out.data).src) == (b.NODE2_MAC, node.up_mac)
        expected = ip(family, CLIENT[family], NODE[family], ttl=number - 1) / segment(transport, 4000, port, flags)
        assert bytes(inner) == bytes(expected / b"question")
    entry = node.flow(CLIENT[family], 4000, NODE[family], port, PROTOCOLS[transport])
    assert entry is not None
    assert entry["packets"] == 2
    answer = ip(family, NODE[family], CLIENT[family], ttl=62) / segment(transport, port, 4000, "SA") / b"answer"
    back = node.xdp(node.frame(wrapped(answer, family, 0, ANSWER)))
    if kind == ASK_DSR:
        assert back.result == b.XDP_PASS
        return
    assert back.result == b.XDP_TX
    said = ip_of(back.data)
    assert bytes(said) == rebuilt(said)
    assert (said.src, said.dst, hops(said)) == (NODE[family], CLIENT[family], 61)
    assert bytes(said[transport].payload) == b"answer"
    assert (Ether(back.data).dst, Ether(back.data).src) == (b.ROUTER_MAC, node.up_mac)


def asked(node: Bench, family: Family, transport: Any, flags: str, kind: int) -> bytes:
    """A client's packet for the local endpoint, as node 2 forwards it."""
    sent = ip(family, CLIENT[family], VIP[family], ttl=60) / segment(transport, 4000, 80, flags) / b"question"
    return node.frame(wrapped(sent, family, digest(family, transport, POD), kind))


def timeless(node: Bench) -> dict[str, dict[bytes, dict[str, Any]]]:
    """All flows, without times and who made them."""
    found: dict[str, dict[bytes, dict[str, Any]]] = {}
    for table in FLOW_TABLES:
        each = {key: unpack("translation", raw) for key, raw in node.maps.items(table)}
        for flow in each.values():
            flow.update(last_ns=0, begun=0, flags=flow["flags"] & ~constant("FLOW_BY_XDP"))
        found[table] = each
    return found


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [ASK_DSR, ASK])
def test_xdp_takes_packets_out_as_tc_does(node: Bench, family: Family, transport: Any, kind: int) -> None:
    """What begins, goes on, and asks for another way back from now on: packets and flows."""
    other = ASK if kind == ASK_DSR else ASK_DSR
    frames = [asked(node, family, transport, flags, way) for flags, way in (("S", kind), ("A", kind), ("A", other))]
    by_tc = []
    for frame in frames:
        out = node.tc(frame)
        assert out.result == b.TC_NEXT
        by_tc.append((bytes(ip_of(out.data)), timeless(node)))
    node.forget()
    for frame, (packet, flows) in zip(frames, by_tc, strict=True):
        with node.counted() as counted:
            out = node.xdp(frame)
        assert counted == {"xdp:flow": 1}
        assert out.result == b.XDP_PASS
        assert Ether(out.data).dst == node.up_mac
        inner = ip_of(out.data)
        assert bytes(inner) == packet == rebuilt(inner)
        assert (inner.src, inner.dst, hops(inner)) == (CLIENT[family], POD[family], 60)
        assert timeless(node) == flows
    assert sum(len(table) for table in flows.values()) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_xdp_begins_nothing_where_flows_may_go_past_the_stack(node: Bench, family: Family) -> None:
    """The program behind it would take a SYN to a pod for the first packet of such a flow."""
    first, later = asked(node, family, TCP, "S", ASK), asked(node, family, TCP, "A", ASK)
    until = constant("HOST_ROUTING_UNTIL").to_bytes(4, "little")
    node.maps.put("host_times", until, (1 << 62).to_bytes(8, "little"))
    try:
        out = node.xdp(first)
        assert (out.result, out.data) == (b.XDP_PASS, first)
        assert node.tc(first).result == b.TC_NEXT
        assert node.xdp(later).data != later
    finally:
        node.maps.put("host_times", until, bytes(8))


@pytest.mark.parametrize("family", FAMILIES)
def test_xdp_leaves_to_tc_what_is_too_big_or_refused(node: Bench, family: Family) -> None:
    node.xdp(node.frame(ip(family, CLIENT[family], NODE[family]) / TCP(sport=4000, dport=DSR, flags="S")))
    big = ip(family, CLIENT[family], NODE[family]) / TCP(sport=4000, dport=DSR, flags="A") / Raw(bytes(1440))
    client = ip(family, CLIENT[family], VIP[family]) / TCP(sport=4000, dport=80, flags="S")
    endpoint = digest(family, TCP, POD)
    for packet in (
        big,
        wrapped(client, family, endpoint, ASK, ip={"src": CLIENT[family]}),
        wrapped(client, family, endpoint, ASK, vxlan={"vni": 1}),
        wrapped(client, family, endpoint ^ 1, ASK),
    ):
        frame = node.frame(packet)
        out = node.xdp(frame)
        assert (out.result, out.data) == (b.XDP_PASS, frame)
