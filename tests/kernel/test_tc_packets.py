"""tc and XDP packet by packet, through test runs: every byte of what comes out is what it has to be."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

from dataplane.model.net import Family, Protocol
from dataplane.planes.ebpf.flows.collect import refused
from dataplane.planes.ebpf.flows.ports import snat_fields, snat_runs
from dataplane.planes.ebpf.maps.mapset import NODE_KEY
from dataplane.planes.ebpf.maps.node_settings import NODE
from tests.kernel.bpf_packets import bench as b
from tests.kernel.bpf_packets.bench import Bench, bench, entry, hops, ip, ip_of, rebuilt, too_long
from tests.kernel.bpf_packets.segments import Numbers

UDP_PROTO = 17
ADDRESSES = {
    Family.IPV4: (b.CLIENT, b.NODE, b.REMOTE, b.POD, "10.96.0.1", "192.0.2.1"),
    Family.IPV6: (b.CLIENT_6, b.NODE_6, b.REMOTE_6, b.POD_6, "fd00:10:96::1", "fd00:192:2::1"),
}
FAMILIES = (Family.IPV4, Family.IPV6)
TRANSPORTS = (TCP, UDP)


@pytest.fixture(scope="module")
def _bench() -> Iterator[Bench]:
    with bench() as made_bench:
        for family in FAMILIES:
            _, _, remote, pod, cluster_ip, vip = ADDRESSES[family]
            for protocol in (Protocol.TCP, Protocol.UDP):
                suffix = f"{family.name}-{protocol.name}".lower()
                made_bench.install(
                    entry(f"remote-{suffix}", [remote], protocol=protocol, node_port=30080, ip=cluster_ip,
                          family=family),
                    entry(f"local-{suffix}", [pod], protocol=protocol, node_port=30081, family=family),
                    entry(f"empty-{suffix}", [], protocol=protocol, node_port=30082, family=family),
                    entry(f"policy-{suffix}", [remote], protocol=protocol, node_port=30083, local_policy=True,
                          family=family),
                    entry(f"guarded-{suffix}", [remote], protocol=protocol, load_balancer=vip, family=family,
                          ranges=("203.0.113.0/24",) if family is Family.IPV4 else ("2001:db8::/32",)),
                )  # fmt: skip
        yield made_bench


@pytest.fixture
def node(_bench: Bench) -> Iterator[Bench]:
    """The bench, without any flow."""
    yield _bench
    _bench.forget()


def exact(data: bytes) -> Any:
    """The IP packet of a frame, whose checksums and lengths must all be right."""
    packet = ip_of(data)
    assert bytes(packet) == rebuilt(packet)
    return packet


Runner = Callable[[bytes], Any]


@pytest.fixture(params=["tc", "xdp"])
def run(request: pytest.FixtureRequest, node: Bench) -> Runner:
    return node.tc if request.param == "tc" else node.xdp


SENT = (b.TC_REDIRECT, b.XDP_TX)
PASSED = (b.TC_NEXT, b.XDP_PASS)


def sent(node: Bench, run: Runner, frame: bytes) -> Any:
    """The IP packet that a packet of a flow becomes. One that is lost, or goes to the stack, fails: what XDP leaves to
    tc, now and then (HOP_PROBE in bpf/xdp.c), is tc's to send on."""
    out = run(frame)
    if run == node.xdp and out.result == b.XDP_PASS:
        assert out.data == frame
        out = node.tc(frame)
    assert out.result in SENT
    return ip_of(out.data)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_remote_backend_and_back(node: Bench, run: Runner, family: Family, transport: Any) -> None:
    client, own, remote, *_ = ADDRESSES[family]
    flags = {"flags": "S"} if transport is TCP else {}
    out = run(node.frame(ip(family, client, own, ttl=64) / transport(sport=4000, dport=30080, **flags) / b"question"))
    assert out.result in SENT
    first = exact(out.data)
    assert (first.src, first.dst, hops(first)) == (own, remote, 63)
    assert first[transport].dport == 8080
    assert any(low <= first[transport].sport <= high for low, high in snat_runs(node.maps.node()))
    assert bytes(first[transport].payload) == b"question"
    flags = {"flags": "SA"} if transport is TCP else {}
    answer = ip(family, remote, own, ttl=60) / transport(sport=8080, dport=first[transport].sport, **flags) / b"answer"
    back = run(node.frame(answer))
    assert back.result in SENT
    reply = exact(back.data)
    assert (reply.src, reply.dst, hops(reply)) == (own, client, 59)
    assert (reply[transport].sport, reply[transport].dport) == (30080, 4000)
    assert bytes(reply[transport].payload) == b"answer"
    if run == node.xdp:
        assert Ether(out.data).dst == b.NODE2_MAC
        assert Ether(back.data).dst == b.ROUTER_MAC
        assert Ether(back.data).src == node.up_mac


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_packet_of_a_flow_goes_on(node: Bench, run: Runner, family: Family, transport: Any) -> None:
    """XDP may leave one to tc where it looks for the next hop again, which is ten times a second each way (HOP_NS): of
    32 such looks one (HOP_PROBE)."""
    client, own, remote, *_ = ADDRESSES[family]
    numbers, source, left = Numbers(), 0, 0
    begun = time.monotonic()
    for number, flags in enumerate(("S", "SA", *["A"] * 60)):
        asks = number % 2 == 0
        ports = (4000, 30080) if asks else (8080, source)
        body = UDP(sport=ports[0], dport=ports[1]) / b"x"
        if transport is TCP:
            body = numbers.segment(ports, flags, b"" if "S" in flags else b"x", client=asks)
        frame = node.frame(ip(family, client if asks else remote, own) / body)
        out = run(frame)
        if run == node.xdp and out.result == b.XDP_PASS:
            left, out = left + 1, node.tc(frame)
        assert out.result in SENT
        packet = exact(out.data)
        assert (packet.src, packet.dst) == (own, remote if asks else client)
        source = packet.sport if asks else source
    assert left <= 4 + 20 * (time.monotonic() - begun) / 8  # a busy machine takes long for sixty packets


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_local_backend_keeps_the_client(node: Bench, family: Family, transport: Any) -> None:
    client, own, _, pod, *_ = ADDRESSES[family]
    flags = {"flags": "S"} if transport is TCP else {}
    question = node.frame(ip(family, client, own, ttl=64) / transport(sport=4000, dport=30081, **flags))
    assert node.xdp(question).data == question  # left to tc, with the choice made
    out = node.tc(question)
    assert out.result == b.TC_NEXT
    packet = exact(out.data)
    assert (packet.src, packet.dst, packet[transport].dport, hops(packet)) == (client, pod, 8080, 64)
    answer = ip(family, pod, client, ttl=63) / transport(sport=8080, dport=4000)
    back = exact(node.tc(node.frame(answer), egress=True).data)
    assert (back.src, back.dst, back[transport].sport, hops(back)) == (own, client, 30081, 63)


@pytest.mark.parametrize("family", FAMILIES)
def test_parity_masquerades_towards_local_backends(node: Bench, family: Family) -> None:
    client, own, _, pod, *_ = ADDRESSES[family]
    node.configure(node.plan.node, parity=True)
    try:
        out = node.tc(node.frame(ip(family, client, own) / TCP(sport=4000, dport=30081, flags="S")))
        packet = exact(out.data)
        assert out.result == b.TC_REDIRECT
        assert (packet.src, packet.dst) == (own, pod)
        answer = ip(family, pod, own) / TCP(sport=8080, dport=packet.sport, flags="SA")
        back = exact(node.tc(node.frame(answer, pod=True), pod=True).data)
        assert (back.src, back.dst, back.sport, back.dport) == (own, client, 30081, 4000)
    finally:
        node.configure(node.plan.node)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pod_meets_itself(node: Bench, family: Family) -> None:
    _, own, _, pod, *_ = ADDRESSES[family]
    question = ip(family, pod, own) / UDP(sport=4000, dport=30081) / b"x"
    out = node.tc(node.frame(question, pod=True), pod=True)
    packet = exact(out.data)
    assert out.result == b.TC_REDIRECT
    assert (packet.src, packet.dst) == (own, pod)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("unknown port", "not_service"),
        ("no endpoint", "no_endpoint"),
        ("policy local", "policy_drop"),
        ("source range", "source_range"),
        ("no syn", "tcp_no_syn"),
        ("own source", "own_source"),
        ("sctp", "protocol"),
        ("echo", "protocol"),
        ("options", None),
        ("arp", "not_ip"),
        ("cut short", "malformed"),
        ("bad offset", "malformed"),
        ("loopback", "loopback"),
        ("later fragment", None),
    ],
)
def test_passed_on_untouched(node: Bench, run: Runner, family: Family, name: str, reason: str | None) -> None:
    client, own, _, _, _cluster_ip, vip = ADDRESSES[family]
    v4 = family is Family.IPV4
    syn = TCP(sport=4000, dport=30080, flags="S")
    packets = {
        "unknown port": ip(family, client, own) / TCP(sport=4000, dport=30099, flags="S"),
        "no endpoint": ip(family, client, own) / TCP(sport=4000, dport=30082, flags="S"),
        "policy local": ip(family, client, own) / TCP(sport=4000, dport=30083, flags="S"),
        "source range": ip(family, client, vip) / TCP(sport=4000, dport=80, flags="S"),
        "no syn": ip(family, client, own) / TCP(sport=4000, dport=30080, flags="A"),
        "own source": ip(family, own, own) / syn,
        "sctp": ip(family, client, own) / SCTP(sport=4000, dport=30080),
        "echo": (IP(src=client, dst=own) / ICMP())
        if v4
        else (IPv6(src=client, dst=own, nh=58) / Raw(b"\x80" + b"\0" * 7)),
        "options": (IP(src=client, dst=own, options=[IPOption_NOP()] * 4) / syn)
        if v4
        else (too_long(IPv6(src=client, dst=own)) / syn),
        "cut short": Raw(bytes(ip(family, client, own) / syn)[:-6]),
        "bad offset": ip(family, client, own) / TCP(sport=4000, dport=30080, flags="S", dataofs=3),
        "loopback": ip(family, client, "127.0.0.1" if v4 else "::1") / syn,
        "later fragment": (IP(src=client, dst=own, frag=100, proto=17) / Raw(b"x" * 64))
        if v4
        else (IPv6(src=client, dst=own) / IPv6ExtHdrFragment(nh=17, offset=100, id=7) / Raw(b"x" * 64)),
    }
    if name == "arp":
        frame = bytes(Ether(dst=node.up_mac, src=b.ROUTER_MAC, type=0x806) / Raw(b"\0" * 28))
    elif name == "cut short":
        frame = bytes(Ether(dst=node.up_mac, src=b.ROUTER_MAC, type=0x800 if v4 else 0x86DD) / packets[name])
    else:
        frame = node.frame(packets[name])
    if name == "options":
        reason = "ip_options" if v4 else "ipv6_extension"
    if name == "later fragment":
        reason = "left_to_tc" if run == node.xdp else "fragment_unknown"
    with node.counted() as counted:
        out = run(frame)
    assert out.result in PASSED
    assert out.data == frame
    hook = "xdp" if run == node.xdp else "tc_ingress"
    assert counted == {f"{hook}:{reason}": 1}
    assert not node.flows()


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_for_others_are_left_alone(node: Bench, run: Runner, family: Family) -> None:
    client, own, *_ = ADDRESSES[family]
    packet = ip(family, client, own) / TCP(sport=4000, dport=30080, flags="S")
    for destination in ("02:00:00:00:00:99", "ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01"):
        frame = bytes(Ether(dst=destination, src=b.ROUTER_MAC) / packet)
        with node.counted() as counted:
            out = run(frame)
        assert (out.result in PASSED, out.data) == (True, frame)
        assert next(iter(counted)).endswith(":not_for_us")


@pytest.mark.parametrize("family", FAMILIES)
def test_syn_retry_reaches_the_same_backend(node: Bench, run: Runner, family: Family) -> None:
    client, _, remote, _pod, _, _vip = ADDRESSES[family]
    prefix = remote.rpartition("." if family is Family.IPV4 else ":")[0] + ("." if family is Family.IPV4 else ":")
    many = entry(f"many-{family.name}", [f"{prefix}{n}" for n in range(20, 60)], node_port=30090, family=family)
    node.install(many)
    try:
        frame = node.frame(ip(family, client, ADDRESSES[family][1]) / TCP(sport=4001, dport=30090, flags="S", seq=7))
        seen = {(sent(node, run, frame).dst, sent(node, run, frame).sport) for _ in range(30)}
        assert len(seen) == 1
        frames = [
            node.frame(ip(family, client, ADDRESSES[family][1]) / TCP(sport=5000 + n, dport=30090, flags="S"))
            for n in range(200)
        ]
        assert len({ip_of(run(frame).data).dst for frame in frames}) > 30
    finally:
        node.remove(many)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_backend_is_drawn(node: Bench, run: Runner, family: Family) -> None:
    client, own, remote, *_ = ADDRESSES[family]
    few = [remote[:-1] + str(n) for n in range(2, 6)]
    service = entry(f"few-{family.name}", few, node_port=30088, family=family)
    node.install(service)
    try:
        frames = [node.frame(ip(family, client, own) / TCP(sport=n, dport=30088, flags="S")) for n in range(5000, 5200)]
        seen = Counter(sent(node, run, frame).dst for frame in frames)
    finally:
        node.remove(service)
    assert sorted(seen) == few
    assert min(seen.values()) > 15  # 5 standard deviations below 50


@pytest.mark.parametrize("family", FAMILIES)
def test_removed_endpoint_gets_nothing_new(node: Bench, run: Runner, family: Family) -> None:
    client, own, remote, *_ = ADDRESSES[family]
    separator = "." if family is Family.IPV4 else ":"
    other = remote.rpartition(separator)[0] + separator + "77"
    name = f"churn-{family.name}"
    for protocol, transport in ((Protocol.TCP, TCP), (Protocol.UDP, UDP)):
        node.install(entry(name, [remote], protocol=protocol, node_port=30091, family=family))
        flags = {"flags": "S"} if transport is TCP else {}
        start = node.frame(ip(family, client, own) / transport(sport=4000, dport=30091, **flags))
        first = sent(node, run, start)
        assert first.dst == remote
        back = {"flags": "SA"} if transport is TCP else {}
        answer = ip(family, remote, own) / transport(sport=8080, dport=first.sport, **back)
        assert sent(node, run, node.frame(answer)).dst == client
        more = {"flags": "A"} if transport is TCP else {}
        going_on = node.frame(ip(family, client, own) / transport(sport=4000, dport=30091, **more))
        assert sent(node, run, going_on).dst == remote
        last = entry(name, [other], protocol=protocol, node_port=30091, family=family)
        node.install(last)
        assert sent(node, run, going_on).dst == (remote if transport is TCP else other)
        new = node.frame(ip(family, client, own) / transport(sport=4000, dport=30091, **flags))
        assert sent(node, run, new).dst == other
        node.remove(last)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_icmp_errors_both_ways(node: Bench, family: Family, transport: Any) -> None:
    client, own, remote, *_ = ADDRESSES[family]
    router = b.ROUTER if family is Family.IPV4 else b.ROUTER_6
    flags = {"flags": "S"} if transport is TCP else {}
    question = ip(family, client, own, ttl=64) / transport(sport=4000, dport=30080, **flags) / (b"x" * 600)
    sent = ip_of(node.tc(node.frame(question)).data)

    def error(about: Any, to: str) -> bytes:
        quoted = bytes(about)[: 28 if family is Family.IPV4 else 400]
        if family is Family.IPV4:
            return node.frame(IP(src=router, dst=to, ttl=60) / ICMP(type=3, code=4, nexthopmtu=1300) / Raw(quoted))
        return node.frame(IPv6(src=router, dst=to, hlim=60) / ICMPv6PacketTooBig(mtu=1300) / Raw(quoted))

    out = node.tc(error(sent, own))  # about the packet to the backend: the client must hear of it
    assert out.result == b.TC_REDIRECT
    told = ip_of(out.data)
    assert (told.src, told.dst, hops(told)) == (own, client, 59)
    inner = _quoted(told)
    assert (inner.src, inner.dst) == (client, own)
    assert _ports(inner) == (4000, 30080)
    checked = type(question)(bytes(question))[transport]
    if transport is UDP or len(bytes(inner)) > 100:  # eight bytes are quoted of TCP over IPv4
        at = len(bytes(inner)) - len(bytes(inner.payload)) + (6 if transport is UDP else 16)
        assert bytes(inner)[at : at + 2] == checked.chksum.to_bytes(2, "big")
    right_error(told)
    answer = ip(family, remote, own, ttl=64) / transport(sport=8080, dport=sent.sport) / (b"y" * 600)
    returned = ip_of(node.tc(node.frame(answer)).data)
    out = node.tc(error(returned, own))  # about the answer to the client: the backend must hear of it
    told = ip_of(out.data)
    assert (told.src, told.dst) == (own, remote)
    inner = _quoted(told)
    assert (inner.src, inner.dst) == (remote, own)
    assert _ports(inner) == (8080, sent.sport)
    right_error(told)


def _quoted(packet: Any) -> Any:
    if IP in packet:
        return IP(bytes(packet[ICMP].payload))
    return IPv6(bytes(packet[ICMPv6PacketTooBig].payload))


def _ports(packet: Any) -> tuple[int, int]:
    raw = bytes(packet)[20 if IP in packet else 40 :]
    return int.from_bytes(raw[:2], "big"), int.from_bytes(raw[2:4], "big")


def right_error(packet: Any) -> None:
    """The ICMP checksum is right over all bytes, and the quoted IPv4 header's over itself."""
    copy = packet.copy()
    layer = copy[ICMP] if IP in copy else copy[ICMPv6PacketTooBig]
    field = "chksum" if IP in copy else "cksum"
    layer.remove_payload()
    layer.add_payload(Raw(bytes(packet)[len(packet) - len(bytes(packet[type(layer)].payload)) :]))
    right = getattr(layer, field)
    delattr(layer, field)
    again = (IP if IP in copy else IPv6)(bytes(copy))
    assert getattr(again[type(layer)], field) == right
    if IP in copy:
        quoted = bytes(packet[ICMP].payload)
        header = quoted[: (quoted[0] & 15) * 4]
        assert IP(header).chksum == IP(bytes(_without_checksum(header))).chksum


def _without_checksum(header: bytes) -> Any:
    quoted = IP(header)
    length = quoted.len
    del quoted.chksum
    quoted.len = length
    return quoted


@pytest.mark.parametrize("family", FAMILIES)
def test_fragments_follow_their_first(node: Bench, family: Family) -> None:
    client, own, remote, *_ = ADDRESSES[family]
    payload = bytes(range(256)) * 12
    whole = ip(family, client, own) / UDP(sport=4000, dport=30080) / payload
    datagram = bytes(rebuilt(whole))[20 if family is Family.IPV4 else 40 :]
    fragments = [datagram[:1400], datagram[1400:2800], datagram[2800:]]
    collected = b""
    for number, fragment in enumerate(fragments):
        more = int(number < len(fragments) - 1)
        if family is Family.IPV4:
            packet = IP(src=client, dst=own, id=99, flags=more, frag=number * 175, proto=17) / Raw(fragment)
        else:
            packet = (
                IPv6(src=client, dst=own)
                / IPv6ExtHdrFragment(nh=17, id=99, m=more, offset=number * 175)
                / Raw(fragment)
            )
        out = ip_of(node.tc(node.frame(packet)).data)
        assert (out.src, out.dst) == (own, remote)
        collected += bytes(out)[20 if family is Family.IPV4 else 48 :]
    fresh = ip(family, own, remote) / UDP(collected)
    assert bytes(fresh[UDP]) == bytes(ip_of(bytes(Ether() / type(fresh)(rebuilt(fresh))))[UDP])
    assert collected[8:] == payload


@pytest.mark.parametrize("family", FAMILIES)
def test_too_big_for_the_way_out_is_answered(node: Bench, family: Family) -> None:
    client, own, *_ = ADDRESSES[family]
    fields = {"flags": "DF"} if family is Family.IPV4 else {}
    question = ip(family, client, own, **fields) / UDP(sport=4000, dport=30080)
    assert node.tc(node.frame(question / b"x")).result == b.TC_REDIRECT
    big = node.frame(question / (b"x" * 1600))
    with node.counted() as counted:
        out = node.tc(big)
    assert counted == {"tc_ingress:too_big": 1}
    assert out.result == b.TC_REDIRECT
    told = ip_of(out.data)
    assert (told.src, told.dst) == (own, client)
    assert (Ether(out.data).src, Ether(out.data).dst) == (node.up_mac, b.ROUTER_MAC)
    error = told[ICMP] if family is Family.IPV4 else told[ICMPv6PacketTooBig]
    assert (error.nexthopmtu if family is Family.IPV4 else error.mtu) == 1500
    assert bytes(_quoted(told)) == big[14 : 14 + 128]
    right_error(told)


@pytest.mark.parametrize("family", FAMILIES)
def test_xdp_leaves_what_is_too_big_to_tc(node: Bench, family: Family) -> None:
    client, own, *_ = ADDRESSES[family]
    fields = {"flags": "DF"} if family is Family.IPV4 else {}
    question = ip(family, client, own, **fields) / UDP(sport=4001, dport=30080)
    assert node.tc(node.frame(question / b"x")).result == b.TC_REDIRECT
    big = node.frame(question / (b"x" * 1600))
    assert node.xdp(big).data == big


@pytest.mark.parametrize("family", FAMILIES)
def test_too_big_from_the_start_is_the_slow_paths(node: Bench, family: Family) -> None:
    client, own, *_ = ADDRESSES[family]
    fields = {"flags": "DF"} if family is Family.IPV4 else {}
    frame = node.frame(ip(family, client, own, **fields) / UDP(sport=4000, dport=30080) / (b"x" * 1600))
    for _ in range(2):
        out = node.tc(frame)
        assert (out.result, out.data) == (b.TC_NEXT, frame)
    assert not node.flows()


def test_too_big_and_without_df_is_cut(node: Bench) -> None:
    client, own, remote, *_ = ADDRESSES[Family.IPV4]
    whole = IP(src=client, dst=own, id=77) / UDP(sport=4000, dport=30080) / (b"x" * 1600)
    for reason in ("new_flow", "flow"):
        with node.counted() as counted:
            out = node.tc(node.frame(whole))
        assert (out.result, counted) == (b.TC_REDIRECT, {f"tc_ingress:{reason}": 1, "tc_ingress:cut": 1})
        head = ip_of(out.data)
        assert (head.src, head.dst, head.id, head.flags, head.frag, head.len) == (own, remote, 77, "MF", 0, 276)
        assert head[UDP].len == 1608
        uncut = IP(src=own, dst=remote) / UDP(sport=head[UDP].sport, dport=head[UDP].dport) / (b"x" * 1600)
        assert head[UDP].chksum == IP(rebuilt(uncut))[UDP].chksum


@pytest.mark.parametrize("family", FAMILIES)
def test_the_direct_way_to_a_backend_ends_the_other_for_who_owns_the_flow(node: Bench, family: Family) -> None:
    """A pod's device tells that a datagram is that pod's. Of others anybody could send one in its name."""
    _, own, _, pod, *_ = ADDRESSES[family]
    client = pod[:-1] + "5"
    node.tc(node.frame(ip(family, client, own) / UDP(sport=4000, dport=30081), pod=True), pod=True)
    answer = node.frame(ip(family, pod, client) / UDP(sport=8080, dport=4000))
    direct = ip(family, client, pod) / UDP(sport=4000, dport=8080)
    assert node.tc(node.frame(direct)).data == node.frame(direct)
    assert ip_of(node.tc(answer, egress=True, pod=True).data).src == own
    assert node.tc(node.frame(direct, pod=True), pod=True).data == node.frame(direct, pod=True)
    assert node.tc(answer, egress=True, pod=True).data == answer


@pytest.mark.parametrize("family", FAMILIES)
def test_choices_are_even_where_xdp_leaves_some_to_tc(node: Bench, family: Family) -> None:
    client, own, remote, pod, *_ = ADDRESSES[family]
    mixed = entry(f"mixed-{family.name}", [remote, pod], node_port=30092, family=family)
    node.install(mixed)
    try:
        seen = {remote: 0, pod: 0}
        for number in range(600):
            frame = node.frame(ip(family, client, own) / TCP(sport=2000 + number, dport=30092, flags="S"))
            out = node.xdp(frame)
            seen[ip_of(out.data if out.result == b.XDP_TX else node.tc(out.data).data).dst] += 1
    finally:
        node.remove(mixed)
    assert min(seen.values()) > 225  # 6 standard deviations below 300; a second choice would bring 150


@pytest.mark.parametrize("family", FAMILIES)
def test_last_hop_is_left_to_the_stack(node: Bench, run: Runner, family: Family) -> None:
    client, own, *_ = ADDRESSES[family]
    frame = node.frame(ip(family, client, own, ttl=1) / UDP(sport=4000, dport=30080) / b"x")
    out = run(frame)
    assert out.result in PASSED
    assert out.data == frame


def test_udp_without_checksum_stays_without(node: Bench, run: Runner) -> None:
    out = run(node.frame(IP(src=b.CLIENT, dst=b.NODE) / UDP(sport=4000, dport=30080, chksum=0) / b"x"))
    assert ip_of(out.data)[UDP].chksum == 0


def test_a_flood_of_syns_is_refused_when_the_table_is_full(node: Bench, soak: bool) -> None:
    """Nothing in it goes: not an established flow, and not one of the flood's own."""
    own = node.frame(IP(src=b.CLIENT, dst=b.NODE) / TCP(sport=4000, dport=30080, flags="S"))
    sent = ip_of(node.tc(own).data)
    flood = bytearray(node.frame(IP(src="203.0.113.1", dst=b.NODE, chksum=0) / TCP(sport=1, dport=30081, flags="S")))
    with node.counted() as counted:
        for number in range(1_000_000 if soak else 3 * b.SIZES.tcp_flows):
            flood[26:30] = (0xCB000000 + number).to_bytes(4, "big")
            flood[34:36] = (1024 + number % 60000).to_bytes(2, "big")
            node.tc(bytes(flood))
    assert counted["tc_ingress:new_flow"] == b.SIZES.tcp_flows // 2 - 1
    assert counted["tc_ingress:tcp_flows_full"] > 2 * b.SIZES.tcp_flows
    assert refused(node.maps)["tcp_flows"] == counted["tc_ingress:tcp_flows_full"]
    assert node.flows("tcp_flows") == b.SIZES.tcp_flows
    again = ip_of(node.tc(own).data)
    assert (again.dst, again.sport) == (b.REMOTE, sent.sport)
    datagram = node.frame(IP(src=b.CLIENT, dst=b.NODE) / UDP(sport=4000, dport=30080))
    assert node.tc(datagram).result == b.TC_REDIRECT  # UDP has room of its own


def test_ports_that_run_out_are_left_to_the_slow_path(node: Bench) -> None:
    settings = dict(node.maps.node())
    raw = node.maps.get("node", NODE_KEY)
    assert raw is not None
    fields = list(NODE.unpack(raw))
    fields[3:8] = snat_fields([(61000, 61003)])
    node.maps.put("node", NODE_KEY, NODE.pack(*fields))
    try:
        ports = []
        with node.counted() as counted:
            for number in range(40):
                frame = node.frame(IP(src=b.CLIENT, dst=b.NODE) / TCP(sport=5000 + number, dport=30080, flags="S"))
                out = node.tc(frame)
                if out.result == b.TC_REDIRECT:
                    ports.append(ip_of(out.data).sport)
                else:
                    assert out.data == frame
        assert sorted(ports) == [61000, 61001, 61002, 61003]
        assert counted["tc_ingress:snat_exhausted"] == 36
    finally:
        node.maps.put("node", NODE_KEY, raw)
        assert node.maps.node() == settings
