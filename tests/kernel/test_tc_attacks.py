"""What somebody can do who sends packets with other people's addresses, and sees none of theirs: nothing."""

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from scapy.layers.inet import TCP, UDP

from dataplane.model.net import Family
from dataplane.planes.ebpf.flows.collect import sweep
from dataplane.planes.ebpf.flows.entries import FLOW_TABLES
from dataplane.planes.ebpf.maps.layout import constant
from tests.kernel.bpf_packets import bench as b
from tests.kernel.bpf_packets.bench import DEVICE, Bench, ip, ip_of
from tests.kernel.bpf_packets.talk import OPEN, Talk, age
from tests.kernel.test_tc_packets import ADDRESSES, FAMILIES, PASSED, SENT, Runner, _bench, node, run

__all__ = ["_bench", "node", "run"]

ATTEMPTS = 40
STRICT, LOOSE = constant("DEVICE_STRICT"), constant("DEVICE_LOOSE")
NO_SOURCES = (bytes(16), bytes(16))
UPLINK = constant("DEVICE_UPLINK") | constant("DEVICE_XDP_TARGET")
ATTACKS = {
    "reset": ["R"],
    "reset with acknowledgment": ["RA"],
    "reset and SYN": ["R", "S"],
    "SYN": ["S"],
    "FIN": ["FA"],
    "both FINs": ["F", "FA"],
    "SYN-ACK": ["SA"],
    "data": ["PA"],
}


def forged(node: Bench, flow: Talk, client: bool, flags: str, chance: random.Random, **known: int) -> bytes:
    """A segment in the name of one end, with numbers drawn by chance where they are not known."""
    source, ports = (flow.client, (4000, 30080)) if client else (flow.remote, (8080, flow.source_port))
    family = Family.IPV6 if ":" in source else Family.IPV4
    numbers = {"seq": chance.randrange(2**32), "ack": chance.randrange(2**32) if "A" in flags else 0}
    segment = TCP(sport=ports[0], dport=ports[1], flags=flags, **(numbers | known))
    return node.frame(ip(family, source, flow.own) / segment)


def known(flow: Talk) -> list[tuple[int, int, int] | None]:
    """What the entries say of the connection."""
    return [(e["facts"], e["sequence_end"], e["acknowledged"]) if e else None for e in flow.entries()]


@pytest.mark.parametrize("client", [True, False], ids=["client", "backend"])
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_blind_segments_change_nothing_of_an_idle_connection(
    node: Bench, run: Runner, family: Family, attack: str, client: bool
) -> None:
    flow, chance = Talk(node, family, TCP), random.Random(attack)
    flow.play(f"{OPEN}, ask PA, answer PA, ask A")
    before, port = known(flow), flow.source_port
    for _ in range(ATTEMPTS):
        for flags in ATTACKS[attack]:
            run(forged(node, flow, client, flags, chance))
        assert known(flow) == before
    age(node, 130, *FLOW_TABLES)
    sweep(node.maps)
    assert flow.play("ask PA, answer A") == "flow"
    assert (flow.source_port, node.flows()) == (port, 2)
    flow.play("answer FA, ask FA, answer A")
    assert node.flows() == 1  # and its end is seen: only the port rests


@pytest.mark.parametrize("flags", ["R", "RA", "FA", "SA", "A"])
@pytest.mark.parametrize("family", FAMILIES)
def test_blind_segments_do_not_disturb_a_handshake(node: Bench, run: Runner, family: Family, flags: str) -> None:
    flow, chance = Talk(node, family, TCP), random.Random(flags)

    def disturb() -> None:
        for client in (True, False):
            for _ in range(ATTEMPTS):
                run(forged(node, flow, client, flags, chance))

    flow.ask("S")
    disturb()
    flow.answer("SA")
    disturb()
    assert flow.ask("A") == "flow"
    disturb()
    assert [e and e["facts"] & constant("FLOW_ESTABLISHED") for e in flow.entries()] == [32, 32]
    flow.play("ask FA, answer FA, ask A")
    assert node.flows() == 0


@pytest.mark.parametrize("client", [True, False], ids=["client", "backend"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_reset_behind_data_that_was_not_acknowledged(node: Bench, run: Runner, family: Family, client: bool) -> None:
    """Its receiver takes it if it has the data. Where it does not, both ends go on, and so does the flow; where they
    do not, it is over in seconds."""
    flow = Talk(node, family, TCP)
    flow.play(OPEN)
    say, other = (flow.ask, flow.answer) if client else (flow.answer, flow.ask)
    flag = constant("FLOW_RST_FORWARD" if client else "FLOW_RST_REPLY")
    for goes_on in (True, False):
        say("PA", b"x" * 100)
        run(forged(node, flow, client, "R", random.Random(1), seq=flow.numbers.sent(client=client)))
        assert [bool(e and e["facts"] & flag) for e in flow.entries()] == [True, True]
        if goes_on:
            other("A")
            say("PA", b"y")
            assert [bool(e and e["facts"] & flag) for e in flow.entries()] == [False, False]
            age(node, 130, *FLOW_TABLES)
            sweep(node.maps)
            assert node.flows() == 2
    age(node, 15, *FLOW_TABLES)
    sweep(node.maps)
    assert node.flows() == 0


@pytest.mark.parametrize("client", [True, False], ids=["client", "backend"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fin_amid_what_was_sent_is_none(node: Bench, run: Runner, family: Family, client: bool) -> None:
    flow = Talk(node, family, TCP)
    flow.play(OPEN)
    (flow.ask if client else flow.answer)("PA", b"x" * 100)
    before = known(flow)
    sent, heard = flow.numbers.sent(client=client), flow.numbers.sent(client=not client)
    run(forged(node, flow, client, "FA", random.Random(1), seq=(sent - 50) % 2**32, ack=heard))
    assert known(flow) == before


@contextmanager
def device(node: Bench, index: int, mac: str, flags: int) -> Iterator[None]:
    """A device of the bench is of another kind meanwhile."""
    key = index.to_bytes(4, "little")
    before = node.maps.get("devices", key)
    assert before is not None
    node.maps.put("devices", key, DEVICE.pack(flags, index, *bytes.fromhex(mac.replace(":", "")), 0, *NO_SOURCES))
    try:
        yield
    finally:
        node.maps.put("devices", key, before)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_datagram_from_elsewhere_moves_no_pods_flow(node: Bench, family: Family) -> None:
    """Only the pod itself, straight to the endpoint, does: its device tells it from an impostor."""
    _, _, remote, pod, cluster_ip, _ = ADDRESSES[family]
    question = node.frame(ip(family, pod, cluster_ip) / UDP(sport=4000, dport=80) / b"question", pod=True)
    straight = ip(family, pod, remote) / UDP(sport=4000, dport=8080) / b"straight"

    def ask() -> str:
        with node.counted() as counted:
            assert ip_of(node.tc(question, pod=True).data).dst == remote
        return next(iter(counted))

    assert ask() == "tc_ingress:new_flow"
    node.tc(node.frame(straight))
    with device(node, node.up, node.up_mac, constant("DEVICE_POD")):  # another pod's
        node.tc(node.frame(straight))
    assert (ask(), node.flows()) == ("tc_ingress:flow", 2)
    node.tc(node.frame(straight, pod=True), pod=True)
    assert node.flows() == 0


def _martians(family: Family) -> list[str]:
    if family is Family.IPV4:
        return ["224.0.0.5", "239.255.255.250", "255.255.255.255", "0.0.0.0", "0.1.2.3"]
    return ["ff02::1", "ff0e::1", "::"]


@pytest.mark.parametrize("reverse_path", [0, STRICT, LOOSE], ids=["0", "strict", "loose"])
@pytest.mark.parametrize("family", FAMILIES)
def test_martians_never_reach_a_backend(node: Bench, run: Runner, family: Family, reverse_path: int) -> None:
    own = ADDRESSES[family][1]
    with device(node, node.up, node.up_mac, UPLINK | reverse_path):
        for source in _martians(family):
            for layer in (TCP(sport=4000, dport=30080, flags="S"), UDP(sport=4000, dport=30080)):
                frame = node.frame(ip(family, source, own) / layer)
                with node.counted() as counted:
                    out = run(frame)
                assert (out.result in PASSED, out.data) == (True, frame)
                assert next(iter(counted)).endswith(":martian"), source
    assert node.flows() == 0


@pytest.fixture
def crooked(node: Bench) -> Iterator[Bench]:
    """203.0.113.0/25 is behind the pod's device, 203.0.113.128/26 nowhere, the rest where it comes from."""
    node.links.route("203.0.113.0/25", device="pod0", source=b.NODE)
    node.links.route("2001:db8::/64", device="pod0")
    node.links.route("203.0.113.128/26", kind="unreachable")
    yield node
    for arguments in (["203.0.113.0/25"], ["unreachable", "203.0.113.128/26"], ["2001:db8::/64", "dev", "pod0"]):
        subprocess.run(["ip", "-n", node.namespace, "route", "del", *arguments], check=True)


@pytest.mark.parametrize(
    ("source", "reached"),
    [("203.0.113.9", (0, LOOSE)), ("203.0.113.130", (0,)), ("203.0.113.200", (0, STRICT, LOOSE))],
    ids=["another device's", "nobody's", "its own"],
)
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_spoofed_source_within_the_ranges_reaches_no_backend(
    crooked: Bench, run: Runner, source: str, reached: tuple[int, ...], protocol: Any
) -> None:
    """As far as rp_filter tells: what leaves by redirect never meets the stack, which would look."""
    for number, setting in enumerate((0, STRICT, LOOSE)):
        fields = {"flags": "S"} if protocol is TCP else {}
        packet = ip(Family.IPV4, source, "192.0.2.1") / protocol(sport=4000 + number, dport=80, **fields)
        frame = crooked.frame(packet)
        with device(crooked, crooked.up, crooked.up_mac, UPLINK | setting), crooked.counted() as counted:
            out = run(frame)
        assert (out.result in SENT) == (setting in reached), (setting, counted)
        if setting not in reached:
            assert out.data == frame
            assert next(iter(counted)).endswith(":reverse_path")


def test_ipv6_has_no_such_filter(crooked: Bench, run: Runner) -> None:
    with device(crooked, crooked.up, crooked.up_mac, UPLINK | STRICT):
        frame = crooked.frame(ip(Family.IPV6, "2001:db8::9", "fd00:192:2::1") / TCP(sport=4000, dport=80, flags="S"))
        assert run(frame).result in SENT
