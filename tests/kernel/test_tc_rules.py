"""Rules that a program could break without losing a packet: when flows end, who may enter, which set, whose port.

Time passes by making entries older.
"""

import ipaddress
import socket
import struct
import time
from typing import Any

import msgspec
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Raw

from dataplane.kernel.namespaces import netns
from dataplane.model.net import Family, Protocol
from dataplane.planes.ebpf.flows.collect import sweep
from dataplane.planes.ebpf.flows.entries import FLOW_TABLES
from dataplane.planes.ebpf.maps.encode import address_bytes
from dataplane.planes.ebpf.maps.layout import constant, fields_of, size_of
from dataplane.planes.ebpf.views.events import EventStream
from dataplane.planes.ebpf.views.records import service_counters
from tests.kernel.bpf_packets import bench as b
from tests.kernel.bpf_packets.bench import Bench, entry, ip, ip_of
from tests.kernel.bpf_packets.talk import OPEN, Talk, age, one_port
from tests.kernel.test_tc_packets import ADDRESSES, FAMILIES, PASSED, SENT, Runner, _bench, node, run, sent
from tests.kernel.test_tc_random import folded

__all__ = ["_bench", "node", "run"]

LIVES = [
    ("ask S", TCP, 120, 2),
    ("ask S, answer SA", TCP, 120, 2),
    (OPEN, TCP, 86400, 2),
    (f"{OPEN}, ask FA", TCP, 3600, 2),
    (f"{OPEN}, answer FA", TCP, 3600, 2),
    (f"{OPEN}, ask FA, answer FA", TCP, 120, 2),
    (f"{OPEN}, answer FA, ask FA, answer A", TCP, 120, 1),  # the backend's TIME-WAIT: its port rests
    ("ask A", UDP, 30, 2),
    ("ask A, answer A, ask A", UDP, 30, 2),  # a stream only after two seconds
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("script", "transport", "seconds", "entries"), LIVES)
def test_flows_are_collected_in_their_time(
    node: Bench, family: Family, script: str, transport: Any, seconds: int, entries: int
) -> None:
    begun = time.monotonic()
    Talk(node, family, transport).play(script)
    while transport is UDP and time.monotonic() - begun > 1.5:  # a busy machine made a stream of them
        node.forget(*FLOW_TABLES)
        begun = time.monotonic()
        Talk(node, family, transport).play(script)
    assert node.flows() == entries
    age(node, seconds - 5, *FLOW_TABLES, just_used=True)
    sweep(node.maps)
    assert node.flows() == entries
    age(node, 10, *FLOW_TABLES)
    sweep(node.maps)
    assert node.flows() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_flow_lives_while_one_of_its_directions_does(node: Bench, family: Family) -> None:
    flow = Talk(node, family, TCP)
    flow.play(OPEN)
    for last in (flow.ask, flow.answer):
        age(node, 86400 + 5, *FLOW_TABLES)
        last()
        sweep(node.maps)
        assert node.flows() == 2
        assert flow.ask() == "flow"


@pytest.mark.parametrize("family", FAMILIES)
def test_datagrams_both_ways_for_two_seconds_are_a_stream(node: Bench, family: Family) -> None:
    flow = Talk(node, family, UDP)
    flow.play("ask A, answer A")
    for key, value in node.maps.items("udp_flows"):
        raw = bytearray(value)
        (begun,) = struct.unpack_from("=I", raw, fields_of("translation")["begun"])
        struct.pack_into("=I", raw, fields_of("translation")["begun"], begun - 3)
        node.maps.put("udp_flows", key, bytes(raw))
    flow.play("ask A, answer A")
    age(node, 100, *FLOW_TABLES)
    sweep(node.maps)
    assert node.flows() == 2
    age(node, 25, *FLOW_TABLES)
    sweep(node.maps)
    assert node.flows() == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "script",
    [
        "ask S, answer RA",
        "ask S, ask R",
        f"{OPEN}, answer R",
        f"{OPEN}, ask R",
        f"{OPEN}, ask FA, answer FA, ask A",
        f"{OPEN}, ask FA, answer A, answer FA, ask A",
    ],
)
def test_a_connection_that_has_ended_for_both_ends_is_gone_at_once(node: Bench, family: Family, script: str) -> None:
    """In the last two the client remembers it, not the backend, so that even its port is free."""
    flow = Talk(node, family, TCP)
    flow.play(script)
    assert node.flows() == 0
    assert flow.ask("A") == "tcp_no_syn"


@pytest.mark.parametrize("family", FAMILIES)
def test_only_a_connection_that_ended_gives_way_to_a_new_one(node: Bench, family: Family) -> None:
    for end, reason in (("ask FA", "flow"), ("answer R", "new_flow"), ("ask FA, answer FA", "new_flow")):
        flow = Talk(node, family, TCP, 4100 + len(end) + len(reason))
        flow.play(f"{OPEN}, {end}")
        assert flow.ask("S") == reason, end


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fragment_is_not_remembered_for_ever(node: Bench, family: Family) -> None:
    client, own, *_ = ADDRESSES[family]
    datagram = bytes(UDP(sport=4000, dport=30080, len=1408)) + b"x" * 1392

    def fragment(first: bool) -> bytes:
        body = Raw(datagram if first else b"y" * 8)
        if family is Family.IPV4:
            return node.frame(
                IP(src=client, dst=own, id=9, flags=int(first), frag=0 if first else 175, proto=17) / body
            )
        header = IPv6ExtHdrFragment(nh=17, id=9, m=int(first), offset=0 if first else 175)
        return node.frame(IPv6(src=client, dst=own) / header / body)

    assert node.tc(fragment(True)).result == b.TC_REDIRECT
    age(node, -0.004, "fragments")  # by another processor's clock
    assert node.tc(fragment(False)).result == b.TC_REDIRECT
    age(node, 35, "fragments")
    late = fragment(False)
    with node.counted() as counted:
        assert node.tc(late).data == late
    assert counted == {"tc_ingress:fragment_unknown": 1}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_error_about_somebody_elses_packet_is_passed_on(node: Bench, family: Family) -> None:
    """It quotes the right ports and receiver, but a sender whom it is not sent to."""
    flow = Talk(node, family, UDP)
    flow.ask()
    other = "203.0.113.77" if family is Family.IPV4 else "2001:db8::77"
    quoted = bytes(ip(family, other, flow.remote) / UDP(sport=flow.source_port, dport=8080) / (b"x" * 64))
    if family is Family.IPV4:
        frame = node.frame(IP(src=b.ROUTER, dst=flow.own) / ICMP(type=3, code=4, nexthopmtu=1300) / Raw(quoted))
    else:
        frame = node.frame(IPv6(src=b.ROUTER_6, dst=flow.own) / ICMPv6PacketTooBig(mtu=1300) / Raw(quoted))
    with node.counted() as counted:
        assert node.tc(frame).data == frame
    assert counted == {"tc_ingress:icmp_unrelated": 1}


def test_a_mapped_address_on_the_wire_is_no_ipv4_client(node: Bench, run: Runner) -> None:
    for source, target in ((f"::ffff:{b.CLIENT}", b.NODE_6), (b.CLIENT_6, f"::ffff:{b.NODE}")):
        frame = node.frame(IPv6(src=source, dst=target) / UDP(sport=4000, dport=30080) / b"x")
        with node.counted() as counted:
            out = run(frame)
        assert (out.result in PASSED, out.data) == (True, frame)
        assert next(iter(counted)).endswith(":malformed")


@pytest.mark.parametrize("family", FAMILIES)
def test_node_ports_answer_on_the_nodes_addresses_only(node: Bench, run: Runner, family: Family) -> None:
    client, _, _, _, cluster_ip, vip = ADDRESSES[family]
    for address in (cluster_ip, vip):
        frame = node.frame(ip(family, client, address) / UDP(sport=4000, dport=30080) / b"x")
        with node.counted() as counted:
            assert run(frame).data == frame
        assert next(iter(counted)).endswith(":not_service")


@pytest.mark.parametrize("family", FAMILIES)
def test_policy_local_chooses_local_endpoints_only(node: Bench, family: Family) -> None:
    client, own, remote, pod, *_ = ADDRESSES[family]
    service = entry(f"local-only-{family.name}", [remote, pod], node_port=30094, local_policy=True, family=family)
    node.install(service)
    try:
        seen = set()
        for number in range(40):
            packet = ip(family, client, own) / TCP(sport=4000 + number, dport=30094, flags="S")
            out = ip_of(node.tc(node.frame(packet)).data)
            seen.add((out.src, out.dst))
        assert seen == {(client, pod)}
    finally:
        node.remove(service)


@pytest.mark.parametrize("here", [True, False], ids=["named", "not named"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_endpoint_of_the_nodes_own_gets_its_share_and_sees_the_client(
    node: Bench, family: Family, here: bool
) -> None:
    """Nothing leaves by a device, so there is no address to masquerade with: looking for one left such flows to the
    slow path, which chose again. Whether the endpoint names this node does not matter."""
    client, own, *_ = ADDRESSES[family]
    made = entry(f"own-{family.name}", [own], node_port=30095, family=family)
    service = msgspec.structs.replace(made, cluster=tuple(msgspec.structs.replace(x, local=here) for x in made.cluster))
    node.install(service)
    node.configure(node.plan.node, parity=True)
    try:
        frame = node.frame(ip(family, client, own) / TCP(sport=4100, dport=30095, flags="S"))
        with node.counted() as counted:
            out = ip_of(node.tc(frame).data)
        assert (out.src, out.dst, out[TCP].sport, out[TCP].dport) == (client, own, 4100, 8080)
        assert counted == {"tc_ingress:new_flow": 1}
    finally:
        node.configure(node.plan.node)
        node.remove(service)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pod_of_another_node_keeps_its_address_by_the_slow_path_only(
    node: Bench, run: Runner, family: Family
) -> None:
    """Its own node may use the same port towards the same endpoint. Where this node's address replaces its own towards
    every endpoint there is no such danger, nor for pods of this node, whose every flow the programs see. Which endpoint
    it would be must not decide: the slow path chooses afresh."""
    client, own, remote, pod, *_ = ADDRESSES[family]
    here = entry(f"here-{family.name}", [pod], node_port=30096, family=family)
    away = entry(f"away-{family.name}", [remote[:-1] + "9"], node_port=30097, family=family)
    node.install(here, away)
    try:
        for who, port, reasons in (
            (remote, 30096, {"remote_pod"}),
            (remote, 30097, {"remote_pod"}),
            (client, 30096, {"new_flow", "left_to_tc"}),
        ):
            frame = node.frame(ip(family, who, own) / TCP(sport=4300, dport=port, flags="S"))
            with node.counted() as counted:
                out = run(frame)
            assert {name.partition(":")[2] for name in counted} <= reasons, (who, port)
            assert out.data == frame or "remote_pod" not in reasons
        frame = node.frame(ip(family, pod, own) / TCP(sport=4300, dport=30097, flags="S"))
        with node.counted() as counted:
            node.tc(frame, pod=True)
        assert counted == {"tc_ingress:new_flow": 1}
        node.configure(node.plan.node, parity=True)
        for port in (30096, 30097):
            with node.counted() as counted:
                run(node.frame(ip(family, remote, own) / TCP(sport=4300, dport=port, flags="S")))
            assert {name.partition(":")[2] for name in counted} <= {"new_flow", "left_to_tc"}, port
    finally:
        node.configure(node.plan.node)
        node.remove(here)
        node.remove(away)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_datagram_to_a_port_that_the_node_itself_uses_is_left_to_conntrack(
    node: Bench, run: Runner, family: Family
) -> None:
    """It may be the answer to one of the node's own processes, whose port happens to be a node port's. TCP has no such
    doubt: a SYN is no answer."""
    client, own, remote, *_ = ADDRESSES[family]
    services = [
        entry(f"{protocol.name}-{family.name}", [remote], node_port=30098, family=family, protocol=protocol)
        for protocol in (Protocol.UDP, Protocol.TCP)
    ]
    node.install(*services)

    def reasons(transport: Any) -> set[str]:
        with node.counted() as counted:
            run(node.frame(ip(family, client, own) / transport))
        return {name.partition(":")[2] for name in counted}

    try:
        with netns.in_netns(node.namespace, socket.socket, family.socket_family, socket.SOCK_DGRAM) as sock:
            sock.bind((own, 30098))
            assert reasons(UDP(sport=4400, dport=30098)) == {"own_port"}
            assert reasons(TCP(sport=4400, dport=30098, flags="S")) == {"new_flow"}
        assert reasons(UDP(sport=4400, dport=30098)) == {"new_flow"}
    finally:
        for service in services:
            node.remove(service)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("transport", [TCP, UDP])
def test_who_listens_at_a_services_address_comes_first(
    node: Bench, run: Runner, family: Family, transport: Any
) -> None:
    """A clusterIP that is one of the node's own addresses too, as for a DNS cache on each node."""
    client, own, remote, *_ = ADDRESSES[family]
    protocol = Protocol.TCP if transport is TCP else Protocol.UDP
    service = entry(f"cache-{family.name}", [remote], ip=own, port=53, family=family, protocol=protocol)
    node.install(service)

    def reason() -> str:
        flags = {"flags": "S"} if transport is TCP else {}
        with node.counted() as counted:
            run(node.frame(ip(family, client, own) / transport(sport=4400, dport=53, **flags)))
        [name] = counted
        return name.partition(":")[2]

    try:
        kind = socket.SOCK_STREAM if transport is TCP else socket.SOCK_DGRAM
        with netns.in_netns(node.namespace, socket.socket, family.socket_family, kind) as listener:
            listener.bind((own, 53))
            if transport is TCP:
                listener.listen()
            assert reason() == "own_port"
        assert reason() == "new_flow"
    finally:
        node.remove(service)


@pytest.mark.parametrize("family", FAMILIES)
def test_affinity_lasts_for_its_time(node: Bench, run: Runner, family: Family) -> None:
    client, own, remote, *_ = ADDRESSES[family]
    separator = "." if family is Family.IPV4 else ":"
    prefix = remote.rpartition(separator)[0] + separator
    service = entry(
        f"sticky-{family.name}", [f"{prefix}{n}" for n in range(20, 60)], node_port=30095, affinity=60, family=family
    )
    node.install(service)
    ports = iter(range(4000, 5000))

    def ask(who: str = client) -> str:
        packet = ip(family, who, own) / TCP(sport=next(ports), dport=30095, flags="S")
        return str(ip_of(run(node.frame(packet)).data).dst)

    try:
        assert len({ask() for _ in range(20)}) == 1
        first = ask()
        age(node, 55, "affinity", just_used=True)
        assert ask() == first
        seen = set()
        for number in range(20):
            age(node, 65 + number, "affinity")  # a stale choice is drawn anew by its time, which has a tick's grain
            seen.add(ask())
        assert len(seen) > 5
        others = {ask(f"203.0.113.{n}" if family is Family.IPV4 else f"2001:db8::{n}") for n in range(1, 40)}
        assert len(others) > 5
    finally:
        node.remove(service)
        node.forget("affinity")


@pytest.mark.parametrize("family", FAMILIES)
def test_affinity_runs_from_the_last_connection(node: Bench, run: Runner, family: Family) -> None:
    client, own, remote, *_ = ADDRESSES[family]
    pods = [remote[:-1] + str(n) for n in range(2, 10)]
    service = entry(f"lasting-{family.name}", pods, node_port=30085, affinity=60, family=family)
    node.install(service)
    try:
        seen = set()
        for port in range(4000, 4012):
            packet = ip(family, client, own) / TCP(sport=port, dport=30085, flags="S")
            seen.add(sent(node, run, node.frame(packet)).dst)
            age(node, 40, "affinity")
    finally:
        node.remove(service)
        node.forget("affinity")
    assert len(seen) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_remembered_for_another_service_does_not_count(node: Bench, run: Runner, family: Family) -> None:
    """A Service gets the number that another one had; what was remembered under it names that one's endpoint."""
    client, own, remote, *_ = ADDRESSES[family]
    pods = [remote[:-1] + str(n) for n in range(2, 8)]
    other = entry(f"other-{family.name}", pods[:3], node_port=30086, affinity=60, family=family)
    service = entry(f"later-{family.name}", pods[3:], node_port=30087, affinity=60, family=family)
    node.install(other, service)
    ports = iter(range(4000, 4100))

    def ask(number: int) -> str:
        packet = ip(family, client, own) / TCP(sport=next(ports), dport=number, flags="S")
        return str(sent(node, run, node.frame(packet)).dst)

    try:
        assert ask(30086) in pods[:3]
        [(key, value)] = node.maps.items("affinity")
        at = fields_of("affinity_key")["service"]
        number = struct.pack("=I", node.tables.installed[service.key].service)
        node.maps.put("affinity", key[:at] + number + key[at + 4 :], value)
        first = ask(30087)
        assert first in pods[3:]
        assert {ask(30087) for _ in range(10)} == {first}
    finally:
        node.remove(other)
        node.remove(service)
        node.forget("affinity")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_flow_that_finds_no_room_leaves_nothing(node: Bench, family: Family) -> None:
    """There is room for the entry of its answers, which is made first, and for no other."""
    client, own, *_ = ADDRESSES[family]
    count, spec = b.SIZES.tcp_flows - 1, node.maps.specs["tcp_flows"]
    keys = b"".join(number.to_bytes(spec.key_size, "big") for number in range(count))
    node.maps.put_many("tcp_flows", keys, bytes(spec.value_size) * count, count)
    for port in (30080, 30081):
        frame = node.frame(ip(family, client, own) / TCP(sport=4000, dport=port, flags="S"))
        with node.counted() as counted:
            assert node.tc(frame).data == frame
        assert counted == {"tc_ingress:tcp_flows_full": 1}
        assert node.flows("tcp_flows") == count


@pytest.mark.parametrize("family", FAMILIES)
def test_another_processors_clock_that_is_ahead_makes_nothing_old(node: Bench, run: Runner, family: Family) -> None:
    """Clocks are read once a tick on each processor: what another one noted may be a little later than now."""
    client, own, remote, *_ = ADDRESSES[family]
    prefix = remote[: -len(remote.rpartition("." if family is Family.IPV4 else ":")[2])]
    pods = [f"{prefix}{n}" for n in range(20, 60)]
    service = entry(f"ahead-{family.name}", pods, node_port=30099, affinity=60, family=family)
    node.install(service)
    try:
        seen = set()
        for port in range(4000, 4020):
            packet = ip(family, client, own) / TCP(sport=port, dport=30099, flags="S")
            seen.add(ip_of(run(node.frame(packet)).data).dst)
            age(node, -0.004, "affinity", *FLOW_TABLES)
        assert len(seen) == 1
        flow = Talk(node, family, UDP)
        flow.ask()
        age(node, -0.004, *FLOW_TABLES)
        assert flow.ask() == "flow"
    finally:
        node.remove(service)
        node.forget("affinity")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_range_of_one_address_lets_in_that_one_alone(node: Bench, run: Runner, family: Family) -> None:
    vip = "192.0.2.10" if family is Family.IPV4 else "fd00:192:2::10"
    one, next_to_it = ("203.0.113.8", "203.0.113.9") if family is Family.IPV4 else ("2001:db8::8", "2001:db8::9")
    cidr = f"{one}/{32 if family is Family.IPV4 else 128}"
    service = entry(f"one-{family.name}", [ADDRESSES[family][2]], load_balancer=vip, family=family, ranges=(cidr,))
    node.install(service)
    try:
        for source in (one, next_to_it):
            frame = node.frame(ip(family, source, vip) / TCP(sport=4000, dport=80, flags="S"))
            assert (run(frame).result in SENT) == (source == one), source
    finally:
        node.remove(service)


@pytest.mark.parametrize("word", range(4))
def test_addresses_that_differ_in_one_word_are_two(node: Bench, word: int) -> None:
    """A pod that meets itself is masqueraded, another one is not."""
    _, own, _, pod, *_ = ADDRESSES[Family.IPV6]
    other = str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(pod)) ^ 2 << 96 - 32 * word))
    for client, kept in ((pod, False), (other, True)):
        frame = node.frame(ip(Family.IPV6, client, own) / TCP(sport=4000, dport=30081, flags="S"), pod=True)
        packet = ip_of(node.tc(frame, pod=True).data)
        assert packet.dst == pod
        assert (packet.src == client) is kept


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_tenant_of_a_backends_place_is_another_backend(node: Bench, family: Family) -> None:
    flow = Talk(node, family, UDP)
    flow.ask()
    assert flow.ask() == "flow"
    kept = node.flow(flow.client, 4000, flow.own, 30080, 17)
    assert kept is not None
    at = kept["backend"] * size_of("backend") + fields_of("backend")["generation"]
    memory = node.maps.memory["backends"]
    before = bytes(memory[at : at + 4])
    try:
        memory[at : at + 4] = struct.pack("=I", 0x7FFFFFFF)
        assert flow.ask() == "moved"
    finally:
        memory[at : at + 4] = before


@pytest.mark.parametrize("family", FAMILIES)
def test_datagrams_stay_with_a_backend_that_serves_though_it_is_in_no_set(node: Bench, family: Family) -> None:
    """New flows go to the others; when it serves no more, nothing stays."""
    remote = ADDRESSES[family][2]
    before = entry(f"remote-{family.name}-udp".lower(), [remote], protocol=Protocol.UDP, node_port=30080, family=family,
                   ip=ADDRESSES[family][4])  # fmt: skip
    other = entry(before.key.name, [remote[:-1] + "9"], protocol=Protocol.UDP, node_port=30080, family=family,
                  ip=ADDRESSES[family][4])  # fmt: skip
    flow, later = Talk(node, family, UDP), Talk(node, family, UDP, 4001)
    flow.play("ask A, answer A")
    try:
        node.install(msgspec.structs.replace(other, lingering=before.cluster))
        assert flow.ask() == "flow"
        assert later.ask() == "new_flow"
        assert (later.entries()[0] or {})["destination"] == address_bytes(remote[:-1] + "9")
        node.install(other)
        assert flow.ask() == "moved"
    finally:
        node.install(before)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_established_flows_port_is_nobody_elses(node: Bench, run: Runner, family: Family) -> None:
    with one_port(node):
        flow = Talk(node, family, TCP)
        flow.play(OPEN)
        assert all(e is not None and e["facts"] & constant("FLOW_ESTABLISHED") for e in flow.entries())
        frame = node.frame(ip(family, flow.client, flow.own) / TCP(sport=4001, dport=30080, flags="S"))
        with node.counted() as counted:
            assert run(frame).data == frame
        assert next(iter(counted)).endswith(":snat_exhausted")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_udp_checksum_that_comes_to_zero_is_sent_as_ones(node: Bench, run: Runner, family: Family) -> None:
    client, own, remote, *_ = ADDRESSES[family]
    with one_port(node):
        blank = bytes(ip(family, own, remote) / UDP(sport=61000, dport=8080, chksum=0) / b"\0\0")
        size = 20 if family is Family.IPV4 else 40
        addresses = blank[12:20] if size == 20 else blank[8:40]
        missing = 0xFFFF - folded(addresses + struct.pack("!HH", 17, 10) + blank[size:])
        question = ip(family, client, own) / UDP(sport=4000, dport=30080) / struct.pack("!H", missing)
        out = run(node.frame(question))
    assert out.result in SENT
    packet = ip_of(out.data)
    assert (packet.src, packet.dst, packet[UDP].sport) == (own, remote, 61000)
    assert packet[UDP].chksum == 0xFFFF


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_frontends_of_one_protocol_are_not_the_others(
    node: Bench, run: Runner, family: Family, protocol: Protocol
) -> None:
    client, own, remote, *_ = ADDRESSES[family]
    service = entry(f"only-{family.name}", [remote], protocol=protocol, node_port=30096, family=family)
    node.install(service)
    try:
        for layer, wanted in (
            (TCP(sport=4000, dport=30096, flags="S"), Protocol.TCP),
            (UDP(sport=4000, dport=30096), Protocol.UDP),
        ):
            assert (run(node.frame(ip(family, client, own) / layer)).result in SENT) == (wanted is protocol)
    finally:
        node.remove(service)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tags", [Dot1Q(vlan=5), Dot1AD(vlan=5) / Dot1Q(vlan=6), Dot1Q(vlan=0)])
def test_xdp_leaves_tagged_frames_to_those_whose_vlan_it_is(node: Bench, family: Family, tags: Any) -> None:
    client, own, *_ = ADDRESSES[family]
    packet = ip(family, client, own) / TCP(sport=4000, dport=30080, flags="S") / b"x"
    frame = bytes(Ether(dst=node.up_mac, src=b.ROUTER_MAC) / tags / packet)
    with node.counted() as counted:
        out = node.xdp(frame)
    assert (out.result, out.data) == (b.XDP_PASS, frame)
    assert counted == {"xdp:left_to_tc": 1}


@pytest.mark.parametrize("family", FAMILIES)
def test_who_watches_hears_of_a_flow_that_xdp_begins_and_tc_serves(node: Bench, family: Family) -> None:
    """tc finds its entry, so to it the flow is none that begins. Its other packets are only passed on."""
    client, own, _, pod, *_ = ADDRESSES[family]
    service = entry(f"left-{family.name}", [pod], node_port=30094, family=family)
    node.install(service)
    try:
        with EventStream(node.maps, hooks=("xdp",)) as stream:
            for flags in "SA":
                frame = node.frame(ip(family, client, own) / TCP(sport=4700, dport=30094, flags=flags))
                with node.counted() as counted:
                    assert node.xdp(frame).result == b.XDP_PASS
                assert counted == {"xdp:left_to_tc": 1}
            first, second = stream.poll(1)
    finally:
        node.remove(service)
    assert (first.reason, first.backend, first.source) == ("begun", (pod, 8080), (client, 4700))
    assert (second.reason, second.backend) == ("left_to_tc", None)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_connection_is_counted_once(node: Bench, family: Family) -> None:
    """However often its first packet comes."""

    def told() -> tuple[int, int, int]:
        counters = service_counters(node.maps).get(f"default/remote-{family.name}-tcp".lower())
        return (counters.connections, counters.packets, counters.reply_packets) if counters else (0, 0, 0)

    flow, before = Talk(node, family, TCP), told()
    flow.play("ask S, ask S, answer SA, ask A, answer A")
    assert tuple(now - then for now, then in zip(told(), before, strict=True)) == (1, 3, 2)
