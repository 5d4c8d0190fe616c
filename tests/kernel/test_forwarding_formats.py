"""Each format of packets between nodes, one packet at a time: byte for byte what it has to be, opened whoever sends it,
and changed from one to another under flows that live."""

from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace
from scapy.contrib.geneve import GeneveOptions
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from dataplane.model.net import Family, Protocol
from dataplane.policy.dispatch import endpoint_digest
from dataplane.policy.forwarding import Dispatch, Forwarding
from tests.kernel.bpf_packets import bench as b
from tests.kernel.bpf_packets.bench import Bench, entry, hops, ip, ip_of, rebuilt
from tests.kernel.bpf_packets.formats import (
    FORMATS,
    HEADER,
    OPTION_CLASS,
    SHORT_NAME,
    TYPES,
    Format,
    Geneve,
    Ipip,
    Vxlan,
)
from tests.kernel.test_forwarding_packets import (
    ANSWER,
    ASK,
    ASK_DSR,
    CLIENT,
    DSR,
    FAMILIES,
    LOCAL,
    NODE,
    NODE2,
    POD,
    PROTOCOLS,
    REMOTE,
    TRANSPORTS,
    TUNNEL,
    VIP,
    _bench,
    by_xdp,
    digest,
    forwarded,
    refused,
    segment,
    timeless,
    too_big,
)

__all__ = ["_bench"]

NEW = [form for form in FORMATS if not isinstance(form, Vxlan)]
"""VXLAN has its own tests."""
GENEVE, IPIP = Geneve(), Ipip()
each_new = pytest.mark.parametrize("form", NEW, ids=lambda form: form.dispatch.value)
each_family = pytest.mark.parametrize("family", FAMILIES)
each_transport = pytest.mark.parametrize("transport", TRANSPORTS)


@pytest.fixture
def node(_bench: Bench) -> Iterator[Bench]:
    """The bench, without any flow, with node 2 as one that gets VXLAN."""
    use(_bench, FORMATS[0])
    yield _bench
    _bench.forget()


def use(node: Bench, form: Format) -> None:
    """Have packets to node 2 sent in this format."""
    node.accept(*NODE2.values(), dispatch=form.dispatch)


def from_node2(family: Family) -> tuple[str, str]:
    return NODE2[family], NODE[family]


def asked(form: Format, family: Family, transport: Any, flags: str = "S", kind: int = ASK, **change: Any) -> Any:
    """A client's packet for the local endpoint, as node 2 forwards it."""
    inner = ip(family, CLIENT[family], VIP[family], ttl=60) / segment(transport, 4000, 80, flags) / b"question"
    return form.wrapped(inner, family, from_node2(family), digest(family, transport, POD), kind, **change)


@each_transport
@each_family
@each_new
@pytest.mark.parametrize(("port", "kind"), [(DSR, ASK_DSR), (TUNNEL, ASK)], ids=["dsr", "tunnel"])
def test_a_client_is_forwarded(node: Bench, form: Format, family: Family, transport: Any, port: int, kind: int) -> None:
    """By tc and by XDP, of which the second packet takes the short way: the same to the byte."""
    use(node, form)
    sent = {
        flags: ip(family, CLIENT[family], NODE[family], ttl=64) / segment(transport, 4000, port, flags) / b"question"
        for flags in ("S", "A")
    }
    for result in (b.TC_REDIRECT, b.XDP_TX):
        for flags, packet in sent.items():
            frame = node.frame(packet)
            out = by_xdp(node, frame) if result == b.XDP_TX else node.tc(frame)
            assert out.result == result
            found = form.unwrapped(out.data)
            assert (found.outer.src, found.outer.dst) == (NODE[family], NODE2[family])
            assert (found.endpoint, found.kind) == (form.name(digest(family, transport, REMOTE)), kind)
            expected = ip(family, CLIENT[family], NODE[family], ttl=63) / segment(transport, 4000, port, flags)
            assert bytes(found.inner) == bytes(expected / b"question")
            if result == b.XDP_TX:
                assert (Ether(out.data).dst, Ether(out.data).src) == (b.NODE2_MAC, node.up_mac)
        node.forget()


@each_transport
@each_family
@each_new
@pytest.mark.parametrize("kind", [ASK_DSR, ASK])
def test_an_endpoint_sees_the_client(node: Bench, form: Format, family: Family, transport: Any, kind: int) -> None:
    """Whatever format this node sends itself; its answers go back in the one that it sends."""
    for sends in FORMATS:
        use(node, sends)
        out = node.tc(node.frame(asked(form, family, transport, kind=kind)))
        assert out.result == b.TC_NEXT
        inner = ip_of(out.data)
        assert bytes(inner) == rebuilt(inner)
        assert (inner.src, inner.dst, hops(inner)) == (CLIENT[family], POD[family], 60)
        assert (inner[transport].dport, bytes(inner[transport].payload)) == (8080, b"question")
        answer = ip(family, POD[family], CLIENT[family], ttl=62) / segment(transport, 8080, 4000, "SA") / b"answer"
        back = node.tc(node.frame(answer), egress=True)
        if kind == ASK_DSR:
            said = ip_of(back.data)
        else:
            found = sends.unwrapped(back.data)
            assert (found.outer.src, found.outer.dst) == (NODE[family], NODE2[family])
            assert (found.endpoint, found.kind) == (0, ANSWER)
            said = found.inner
        assert (said.src, said.dst, said[transport].sport) == (VIP[family], CLIENT[family], 80)
        node.forget()


@each_transport
@each_family
@each_new
def test_answers_go_on_to_the_client(node: Bench, form: Format, family: Family, transport: Any) -> None:
    """By tc and by XDP, though their question went out in VXLAN."""
    node.xdp(node.frame(ip(family, CLIENT[family], NODE[family]) / segment(transport, 4000, TUNNEL)))
    answer = ip(family, NODE[family], CLIENT[family], ttl=62) / segment(transport, TUNNEL, 4000, "SA") / b"answer"
    frame = node.frame(form.wrapped(answer, family, from_node2(family), 0, ANSWER))
    for run, result in ((node.tc, b.TC_REDIRECT), (node.xdp, b.XDP_TX)):
        out = run(frame)
        assert out.result == result
        said = ip_of(out.data)
        assert bytes(said) == rebuilt(said)
        assert (said.src, said.dst, hops(said)) == (NODE[family], CLIENT[family], 61)
        assert bytes(said[transport].payload) == b"answer"


@each_transport
@each_family
@each_new
@pytest.mark.parametrize("kind", [ASK_DSR, ASK])
def test_xdp_takes_packets_out_as_tc_does(node: Bench, form: Format, family: Family, transport: Any, kind: int) -> None:
    frames = [node.frame(asked(form, family, transport, flags, kind)) for flags in ("S", "A")]
    by_tc = [(bytes(ip_of(node.tc(frame).data)), timeless(node)) for frame in frames]
    node.forget()
    for frame, (packet, flows) in zip(frames, by_tc, strict=True):
        with node.counted() as counted:
            out = node.xdp(frame)
        assert (counted, out.result) == ({"xdp:flow": 1}, b.XDP_PASS)
        assert (Ether(out.data).dst, Ether(out.data).type) == (node.up_mac, TYPES[family])
        assert bytes(ip_of(out.data)) == packet == rebuilt(ip_of(out.data))
        assert timeless(node) == flows


@each_family
def test_flows_go_on_when_the_format_changes(node: Bench, family: Family) -> None:
    """There and back again, through every format: the very next packet, on the short way as well; and what comes back
    or still arrives in the old one is taken."""
    question = ip(family, CLIENT[family], NODE[family], ttl=64) / TCP(sport=4000, dport=TUNNEL, flags="S")
    node.xdp(node.frame(question))
    handshake = ip(family, NODE[family], CLIENT[family], ttl=62) / TCP(sport=TUNNEL, dport=4000, flags="SA", ack=1)
    assert node.xdp(node.frame(FORMATS[0].wrapped(handshake, family, from_node2(family), 0, ANSWER))).result == b.XDP_TX
    segments = ip(family, CLIENT[family], NODE[family], ttl=64) / TCP(sport=4000, dport=TUNNEL, flags="A", seq=1, ack=1)
    assert by_xdp(node, node.frame(segments)).result == b.XDP_TX
    flows = node.flows()
    for form in (*FORMATS, *reversed(FORMATS)):
        use(node, form)
        for out in (
            by_xdp(node, node.frame(segments)),
            node.tc(node.frame(segments)),
            by_xdp(node, node.frame(segments)),
        ):
            found = form.unwrapped(out.data)
            assert (found.endpoint, found.kind) == (form.name(digest(family, TCP, REMOTE)), ASK)
        for old in FORMATS:
            answer = ip(family, NODE[family], CLIENT[family]) / TCP(sport=TUNNEL, dport=4000, flags="A", seq=1, ack=1)
            frame = node.frame(old.wrapped(answer, family, from_node2(family), 0, ANSWER))
            assert by_xdp(node, frame).result == b.XDP_TX
            assert node.tc(frame).result == b.TC_REDIRECT
    assert node.flows() == flows


@each_family
def test_who_may_send_geneve(node: Bench, family: Family) -> None:
    """Other nodes alone, for clients alone, to frontends and endpoints that there are."""
    form = GENEVE
    stranger = {Family.IPV4: "172.18.0.66", Family.IPV6: "fd00:172:18::66"}[family]
    endpoint, ends = digest(family, TCP, POD), from_node2(family)

    def ask(source: str, to: int = endpoint, ends: tuple[str, str] = ends, port: int = 80) -> Any:
        inner = ip(family, source, VIP[family]) / TCP(sport=4000, dport=port, flags="S")
        return form.wrapped(inner, family, ends, to, ASK)

    client = CLIENT[family]
    assert refused(node, ask(client, ends=(stranger, NODE[family]))) == "tunnel_sender"
    assert refused(node, ask(client, ends=(client, NODE[family]))) == "tunnel_sender"
    for source in (NODE[family], NODE2[family], POD[family], REMOTE[family]):
        assert refused(node, ask(source)) == "tunnel_source", source
    assert refused(node, ask(client, port=81)) == "tunnel_frontend"
    assert refused(node, ask(client, to=endpoint ^ 1)) == "tunnel_endpoint"
    for data in (ask(client, ends=(stranger, NODE[family])), ask(client, to=endpoint ^ 1)):
        frame = node.frame(data)
        out = node.xdp(frame)
        assert (out.result, out.data) == (b.XDP_PASS, frame), "XDP leaves it to tc as it is"
    assert node.tc(node.frame(ask(client))).result == b.TC_NEXT  # the very packet that is fine


def left_alone(node: Bench, packet: Any) -> str:
    """The reason for which a packet goes on as it came; nothing is noted, by XDP neither."""
    frame, before = node.frame(packet), node.flows()
    assert (node.xdp(frame).result, node.xdp(frame).data) == (b.XDP_PASS, frame)
    with node.counted() as counted:
        out = node.tc(frame)
    assert (out.result, out.data) == (b.TC_NEXT, frame)
    assert node.flows() == before
    [reason] = counted
    return reason.partition(":")[2]


@each_family
def test_other_programs_tunnels_of_ip_in_ip_are_left_alone(node: Bench, family: Family) -> None:
    """Between the same nodes: what is inside decides. From elsewhere nothing is looked at."""
    stranger = {Family.IPV4: "172.18.0.66", Family.IPV6: "fd00:172:18::66"}[family]
    loopback = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}[family]
    client, endpoint, ends = CLIENT[family], digest(family, TCP, POD), from_node2(family)

    def sent(
        source: str,
        to: str = VIP[family],
        port: int = 80,
        ends: tuple[str, str] = ends,
        kind: int = ASK,
        own: int = 4000,
    ) -> Any:
        inner = ip(family, source, to) / TCP(sport=own, dport=port, flags="S")
        return IPIP.wrapped(inner, family, ends, endpoint, kind)

    for source in (REMOTE[family], POD[family], NODE[family], NODE2[family], loopback):  # Calico's, say
        assert left_alone(node, sent(source)) == "other_tunnel", source
    assert left_alone(node, sent(REMOTE[family], POD[family], 8080)) == "other_tunnel"
    assert left_alone(node, sent(client, POD[family], LOCAL)) == "other_tunnel"
    assert left_alone(node, sent(client, port=81)) == "other_tunnel"
    assert left_alone(node, sent(client, kind=0)) == "other_tunnel", "no node of ours sends that"
    assert left_alone(node, sent(client, kind=ANSWER)) == "other_tunnel", "an answer from no frontend"
    assert left_alone(node, sent(REMOTE[family], client, own=80, kind=ANSWER)) == "other_tunnel"
    assert left_alone(node, sent(client, ends=(stranger, NODE[family]))) == "protocol"
    assert left_alone(node, sent(client, ends=(NODE2[family], client))) == "protocol"
    for inside in (Raw(b""), Raw(bytes(12)), Raw(bytes(60)), Raw(bytes(sent(client))[HEADER[family] :][:24])):
        assert left_alone(node, IPIP.wrapped(inside, family, ends, endpoint, ASK)) == "other_tunnel", inside
    echo = ip(family, client, VIP[family], **({"proto": 1} if family is Family.IPV4 else {"nh": 58})) / Raw(bytes(40))
    assert left_alone(node, IPIP.wrapped(echo, family, ends, endpoint, ASK)) == "other_tunnel"
    if family is Family.IPV4:
        later = IP(src=client, dst=VIP[family], id=99, frag=5, proto=17) / Raw(bytes(64))
        assert left_alone(node, IPIP.wrapped(later, family, ends, endpoint, ASK)) == "other_tunnel"
    other = FAMILIES[1 - FAMILIES.index(family)]
    crossed = ip(other, CLIENT[other], VIP[other]) / TCP(sport=4000, dport=80, flags="S")
    assert left_alone(node, IPIP.wrapped(crossed, family, ends, endpoint, ASK)) == "other_tunnel"
    assert node.tc(node.frame(sent(client))).result == b.TC_NEXT  # the very packet that is fine
    assert node.flows() == 2


@each_family
def test_ip_in_ip_for_an_endpoint_that_is_not_here_is_dropped(node: Bench, family: Family) -> None:
    """It is ours by what is inside."""
    wrong = IPIP.wrapped(
        ip(family, CLIENT[family], VIP[family]) / TCP(sport=4000, dport=80, flags="S"),
        family, from_node2(family), digest(family, TCP, POD) ^ 1, ASK,
    )  # fmt: skip
    assert refused(node, wrong) == "tunnel_endpoint"


@each_family
def test_the_identification_may_have_counted_up(node: Bench, family: Family) -> None:
    """As it does where a kernel cuts an aggregate: the kind stays, and so does a flow that there is."""
    node.tc(node.frame(asked(IPIP, family, TCP)))
    for run, result in ((node.tc, b.TC_NEXT), (node.xdp, b.XDP_PASS)):
        inner = ip(family, CLIENT[family], VIP[family]) / TCP(sport=4000, dport=80, flags="A")
        frame = node.frame(IPIP.wrapped(inner, family, from_node2(family), SHORT_NAME & 44, ASK, guard=1))
        out = run(frame)
        assert (out.result, ip_of(out.data).dst) == (result, POD[family])
    assert node.flows() == 2


def test_endpoints_that_have_one_short_name_are_told_apart(node: Bench) -> None:
    """By another format, which all nodes open; where packets go in IP in IP, and only there."""
    found: dict[int, int] = {}
    port = 20000
    while True:
        name = IPIP.name(endpoint_digest(b.REMOTE, port, Protocol.TCP))
        if name in found:
            break
        found[name] = port
        port += 1
    ports = {found[name]: "alike", port: "alike", port + 1: "other"}
    made = entry("alike", [b.REMOTE], node_port=31999, target=8080)
    cluster = tuple(replace(made.cluster[0], port=each) for each in ports)
    alike = forwarded(replace(made, cluster=cluster), Forwarding.DSR)
    for form in (IPIP, GENEVE, IPIP):
        use(node, form)
        node.remove(alike) if alike.key in node.plan.entries else None
        node.install(alike)
        met = {}
        for source in range(5000, 5060):
            sent = IP(src=b.CLIENT, dst=b.NODE) / TCP(sport=source, dport=31999, flags="S")
            out = node.tc(node.frame(sent)).data
            by = next(each for each in FORMATS if opens(each, out))
            told = by.unwrapped(out).endpoint
            [to] = [each for each in ports if by.name(endpoint_digest(b.REMOTE, each, Protocol.TCP)) == told]
            met[to] = by.dispatch
        plain = dict.fromkeys(ports, form.dispatch)
        if form is IPIP:
            plain |= {each: Dispatch.VXLAN for each, what in ports.items() if what == "alike"}
        assert met == plain
        node.forget()
    node.remove(alike)


def opens(form: Format, frame: bytes) -> bool:
    """Whether a frame is in this format."""
    try:
        form.unwrapped(frame)
    except (AssertionError, IndexError, ValueError):
        return False
    return True


@each_new
def test_what_passes_by_is_none_of_ours(node: Bench, form: Format) -> None:
    inner = IP(src=b.CLIENT, dst=VIP[Family.IPV4]) / TCP(dport=80, flags="S")
    frame = node.frame(form.wrapped(inner, Family.IPV4, (b.NODE2, "203.0.113.9"), 0, ASK))
    out = node.tc(frame)
    assert (out.result, out.data) == (b.TC_NEXT, frame)


@each_transport
@each_family
@each_new
def test_what_does_not_fit_is_answered(node: Bench, form: Format, family: Family, transport: Any) -> None:
    """With the MTU less this format's bytes, by the frontend. What just fits is forwarded."""
    use(node, form)
    fits = 1500 - form.overhead(family)
    header = HEADER[family] + (20 if transport is TCP else 8)
    kept = {"flags": "DF"} if family is Family.IPV4 else {}
    node.xdp(node.frame(ip(family, CLIENT[family], NODE[family]) / segment(transport, 4000, TUNNEL)))
    head = ip(family, CLIENT[family], NODE[family], **kept) / segment(transport, 4000, TUNNEL, "A")
    whole = node.frame(head / Raw(bytes(fits - header)))
    for out in (node.tc(whole), by_xdp(node, whole), by_xdp(node, whole)):
        assert len(bytes(form.unwrapped(out.data).outer)) == 1500
    frame = node.frame(head / Raw(bytes(fits - header + 1)))
    out = node.xdp(frame)
    assert (out.result, out.data) == (b.XDP_PASS, frame)
    answer, mtu = too_big(node.tc(frame))
    assert (answer.src, answer.dst, mtu) == (NODE[family], CLIENT[family], fits)


@each_new
def test_a_big_datagram_without_df_is_cut(node: Bench, form: Format) -> None:
    """Into fragments that fit, at both ends; later fragments go where the first went."""
    use(node, form)
    sent = IP(src=b.CLIENT, dst=b.NODE, id=7) / UDP(sport=4000, dport=TUNNEL) / Raw(bytes(1472))
    first = form.unwrapped(node.tc(node.frame(sent)).data, whole=False)
    assert (first.inner.flags, first.inner.frag, first.inner.len) == ("MF", 0, 276)
    later = IP(src=b.CLIENT, dst=b.NODE, id=7, frag=32, proto=17) / Raw(bytes(1224))
    second = form.unwrapped(node.tc(node.frame(later)).data, whole=False)
    assert (second.endpoint, second.inner.frag) == (first.endpoint, 32)
    name, ends = digest(Family.IPV4, UDP, POD), from_node2(Family.IPV4)
    for fragment in (
        IP(src=b.CLIENT, dst=VIP[Family.IPV4], id=9, flags="MF")
        / UDP(sport=4000, dport=80, len=24, chksum=0)
        / Raw(b"a" * 8),
        IP(src=b.CLIENT, dst=VIP[Family.IPV4], id=9, frag=2, proto=17) / Raw(b"b" * 8),
    ):
        out = node.tc(node.frame(form.wrapped(fragment, Family.IPV4, ends, name, ASK)))
        assert out.result == b.TC_NEXT
        assert ip_of(out.data).dst == POD[Family.IPV4]


def option(number: int, words: int = 0, owner: int = 0x0101) -> Any:
    """Somebody else's option."""
    return GeneveOptions(classid=owner, type=number, length=words, data=bytes(words * 4))


@each_family
def test_geneve_options_of_others_are_skipped(node: Bench, family: Family) -> None:
    """As long as they are not critical: before ours and behind it, as many as there may be."""
    plain = bytes(ip_of(node.tc(node.frame(asked(GENEVE, family, TCP))).data))
    for before, behind in (
        ((option(1),), ()),
        ((), (option(1, 3),)),
        ((option(3, 31),), (option(0, 0), option(127, 27))),
        ((option(ASK, 1),), (option(ASK, 1, OPTION_CLASS + 1), option(9, 2, OPTION_CLASS))),
        (tuple(option(n) for n in range(30)), tuple(option(n) for n in range(31))),
    ):
        node.forget()
        frame = node.frame(asked(GENEVE, family, TCP, before=before, behind=behind))
        out = node.xdp(frame)
        assert (out.result, out.data) == (b.XDP_PASS, frame), "which tc is for"
        out = node.tc(frame)
        assert out.result == b.TC_NEXT
        assert bytes(ip_of(out.data)) == plain


@each_family
def test_geneve_that_is_not_understood_is_dropped(node: Bench, family: Family) -> None:
    """By the reason that it has: an option that must be understood is another thing than what no node sends."""

    def why(**change: Any) -> str:
        return refused(node, asked(GENEVE, family, TCP, **change))

    assert why(before=(option(0x80),), critical=1) == "tunnel_option"
    assert why(behind=(option(0x81, 3),)) == "tunnel_option", "even if the header does not say that one is there"
    assert why(behind=(option(0x80 | ASK, 1, OPTION_CLASS),), critical=1) == "tunnel_option"
    for change in (
        {"vni": 7},
        {"version": 1},
        {"oam": 1},
        {"proto": 0x6558},
        {"proto": TYPES[FAMILIES[1 - FAMILIES.index(family)]]},
        {"ours": 0},
        {"ours": 2},
        {"ours": 0, "before": (option(ASK, 2, OPTION_CLASS),)},
        {"optionlen": 1},
        {"optionlen": 3},
        {"optionlen": 63},
        {"before": (option(1, 4),), "optionlen": 3},
    ):
        assert why(**change) == "tunnel_format", change
    assert node.tc(node.frame(asked(GENEVE, family, TCP, reserved=5, reserved2=9))).result == b.TC_NEXT, "as is to be"


@each_transport
def test_both_formats_of_a_flow_meet_one_entry(node: Bench, transport: Any) -> None:
    """A roll at the other node: its packets of a flow come in one format and then in another."""
    for number, form in enumerate((*FORMATS, *FORMATS)):
        flags = "S" if not number else "A"
        assert node.tc(node.frame(asked(form, Family.IPV4, transport, flags))).result == b.TC_NEXT
        assert node.xdp(node.frame(asked(form, Family.IPV4, transport, "A"))).result == b.XDP_PASS
    held = node.flow(CLIENT[Family.IPV4], 4000, VIP[Family.IPV4], 80, PROTOCOLS[transport])
    assert held is not None
    assert (held["packets"], node.flows()) == (4 * len(FORMATS), 2)
