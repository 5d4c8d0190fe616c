"""XDP's short way of established flows, of Services whose packets are translated and of those that are forwarded to the
endpoint's node, does what the general code does: verdict, bytes, reasons, entries, counters."""

import itertools
import random
import struct
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether

from dataplane.kernel.ebpf.bpf import AttachType, ProgramType
from dataplane.model.net import Family, Protocol
from dataplane.planes.ebpf.attach.programs import load_programs
from dataplane.planes.ebpf.flows.entries import FLOW_TABLES
from dataplane.planes.ebpf.maps.layout import constant, fields_of, reason_names
from dataplane.planes.ebpf.maps.mapset import NODE_KEY
from dataplane.planes.ebpf.views.events import EventStream
from dataplane.policy.forwarding import Forwarding
from tests.kernel.bpf_packets import bench as b
from tests.kernel.bpf_packets.bench import Bench, bench, entry
from tests.kernel.bpf_packets.segments import Numbers
from tests.kernel.test_forwarding_packets import ANSWER, NODE2, forwarded, wrapped

PORTS = {Forwarding.SNAT: 30080, Forwarding.DSR: 30081, Forwarding.TUNNEL: 30082}
"""Node ports by how packets get to the endpoint."""
FLOWS = [(way, family, transport) for way in PORTS for family in (Family.IPV4, Family.IPV6) for transport in (TCP, UDP)]
_ENTRIES = {Forwarding.SNAT: 2, Forwarding.DSR: 1, Forwarding.TUNNEL: 2}
TABLES = FLOW_TABLES
ROUNDS = 400
_LONG = 1 << 62


class Packet(NamedTuple):
    """A frame of an established flow, what it is counted as, and whether the short way is for it."""

    frame: bytes
    reasons: dict[str, int]
    short: bool


class Outcome(NamedTuple):
    """What one packet led to. service: what its counters rose by; entries: without the time of the last packet."""

    result: int
    data: bytes
    reasons: dict[str, int]
    service: tuple[int, ...]
    entries: dict[str, dict[bytes, bytes]]


class Pair:
    """The program as it is and without its short way, over the same maps, which hold an established flow of each
    kind with its next hop known."""

    def __init__(self, node: Bench, flags: tuple[str, ...]) -> None:
        self.node = node
        self.short = node.programs["xdp_uplink"]
        self.general = load_programs(
            "xdp.c", ProgramType.XDP, {"xdp_uplink": AttachType.XDP}, node.maps.fds, node.maps.specs,
            ["-DONLY_GENERAL=1", *flags],
        )["xdp_uplink"]  # fmt: skip
        self.packets = [
            packet for way, family, transport in FLOWS for packet in self._establish(way, family, transport)
        ]
        assert node.flows() == sum(_ENTRIES[way] for way, _, _ in FLOWS)
        self._established = {table: dict(node.maps.items(table)) for table in TABLES}
        self.sent = b.XDP_REDIRECT if flags else b.XDP_TX

    def begin(self) -> None:
        """From now on the flows start as they were established, just used, with a next hop that stays known."""
        self.state = {table: dict(flows) for table, flows in self._established.items()}
        self.change("hop_until_ns", _LONG.to_bytes(8, "little"))
        self.change("last_ns", time.monotonic_ns().to_bytes(8, "little"))

    def change(self, field: str, value: bytes) -> None:
        """From now on the flows start with this field so."""
        at = fields_of("translation")[field]
        for flows in self.state.values():
            flows.update({key: raw[:at] + value + raw[at + len(value) :] for key, raw in flows.items()})

    def _establish(self, way: Forwarding, family: Family, transport: Any) -> list[Packet]:
        """Packets of both directions, as they are on the way when the flow is established; of the client alone where
        answers do not pass."""
        node, four, port = self.node, family is Family.IPV4, PORTS[way]
        kind, client = (IP, b.CLIENT) if four else (IPv6, b.CLIENT_6)
        own, remote = (b.NODE, b.REMOTE) if four else (b.NODE_6, b.REMOTE_6)
        numbers = Numbers()

        def body(ports: tuple[int, int], flags: str, data: bytes, *, client: bool) -> Any:
            if transport is UDP:
                return UDP(sport=ports[0], dport=ports[1]) / data
            return numbers.segment(ports, flags, data, client=client)

        def answer(flags: str, data: bytes) -> Any:
            if way is Forwarding.SNAT:
                return kind(src=remote, dst=own) / body((8080, snat), flags, data, client=False)
            inner = kind(src=own, dst=client) / body((port, 4000), flags, data, client=False)
            return wrapped(inner, family, 0, ANSWER)

        out = node.xdp(node.frame(kind(src=client, dst=own) / body((4000, port), "S", b"", client=True)))
        snat = b.parse(out.data)[transport].sport if way is Forwarding.SNAT else 0
        if way is not Forwarding.DSR:
            self._send(answer("SA", b""))
        self._age("udp_flows")
        for _ in range(2):
            ask = kind(src=client, dst=own) / body((4000, port), "A", b"question", client=True)
            self._send(ask)
            if way is not Forwarding.DSR:
                reply = answer("A", b"answer")
                self._send(reply)
        if way is Forwarding.SNAT:
            return [Packet(node.frame(ask), {"flow": 1}, True), Packet(node.frame(reply), {"reply": 1}, True)]
        asked = Packet(node.frame(ask), {"flow": 1, "forwarded": 1}, True)
        return [asked] if way is Forwarding.DSR else [asked, Packet(node.frame(reply), {"reply": 1}, False)]

    def _age(self, table: str) -> None:
        """All flows of a table began some seconds earlier."""
        at = fields_of("translation")["begun"]
        for key, value in list(self.node.maps.items(table)):
            (begun,) = struct.unpack_from("=I", value, at)
            self.node.maps.put(table, key, value[:at] + struct.pack("=I", begun - 5) + value[at + 4 :])

    def _send(self, packet: Any) -> None:
        """Until it leaves: one look at the next hop in 32 is left to the stack."""
        while self.node.xdp(self.node.frame(packet)).result == b.XDP_PASS:
            pass

    def restore(self) -> None:
        """All flows as they were at the start, and no others."""
        for table, flows in self.state.items():
            self.node.maps.remove(table, [key for key, _ in self.node.maps.items(table) if key not in flows])
            for key, value in flows.items():
                self.node.maps.put(table, key, value)

    def run(self, program: Any, frame: bytes) -> Outcome:
        """The outcome of a packet in one of the programs."""
        self.restore()
        self.node.programs["xdp_uplink"] = program
        before = self._service()
        reasons = self._reasons()
        ran = self.node.xdp(frame)
        reasons = {name: count - reasons[name] for name, count in self._reasons().items() if count != reasons[name]}
        risen = tuple(new - old for old, new in zip(before, self._service(), strict=True))
        entries = {table: {k: _timeless(v) for k, v in self.node.maps.items(table)} for table in TABLES}
        return Outcome(ran.result, ran.data, reasons, risen, entries)

    def _reasons(self) -> dict[str, int]:
        """The program's counters."""
        first = constant("HOOK_XDP") * constant("REASON_COUNT")
        return {
            name: sum(int.from_bytes(raw, "little") for raw in self.node.maps.per_cpu("counters", first + number))
            for number, name in enumerate(reason_names())
        }

    def _service(self) -> list[int]:
        """The counters of all Services, of all processors together."""
        found = []
        for number in range(len(FLOWS) + 1):
            each = [struct.unpack("=5Q", raw) for raw in self.node.maps.per_cpu("service_counters", number)]
            found += [sum(column) for column in zip(*each, strict=True)]
        return found


def _timeless(value: bytes) -> bytes:
    at = fields_of("translation")["last_ns"]
    return value[:at] + value[at + 8 :]


@pytest.fixture(scope="module", params=[(), ("-DNO_XDP_TX=1",)], ids=["device", "veth"])
def _pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with bench(*request.param) as node:
        node.accept(*NODE2.values())
        for way, family, transport in FLOWS:
            protocol = Protocol.TCP if transport is TCP else Protocol.UDP
            remote = b.REMOTE if family is Family.IPV4 else b.REMOTE_6
            name = f"{way.name}-{family.name}-{protocol.name}".lower()
            made = entry(name, [remote], node_port=PORTS[way], protocol=protocol, family=family)
            node.install(made if way is Forwarding.SNAT else forwarded(made, way))
        yield Pair(node, request.param)


@pytest.fixture
def pair(_pair: Pair) -> Pair:
    _pair.begin()
    return _pair


def _changed(chance: random.Random, frame: bytes) -> bytes:
    """Often as it is; else some bytes changed, cut, added, or a VLAN tag put in."""
    data = bytearray(frame)
    for _ in range(chance.choice((0, 1, 1, 1, 2))):
        at, values = chance.randrange(min(len(data), 78)), (0, 1, 2, 4, 5, 16, 0x45, 0x60, 255, chance.randrange(256))
        data[at] = chance.choice(values)
    how = chance.random()
    if how < 0.1:
        return bytes(data[: chance.randrange(14, len(data) + 1)])
    if how < 0.2:
        return bytes(data) + chance.randbytes(chance.randrange(1500))
    if how < 0.25:
        whole = Ether(frame)
        return bytes(Ether(src=whole.src, dst=whole.dst) / Dot1Q(vlan=7) / whole.payload)
    return bytes(data)


def test_packets_as_they_should_be_have_the_same_fate(pair: Pair) -> None:
    for packet in pair.packets:
        short, general = pair.run(pair.short, packet.frame), pair.run(pair.general, packet.frame)
        assert short == general
        assert short.result == pair.sent
        assert short.reasons == packet.reasons
        assert any(short.service)


def test_packets_as_they_should_be_take_the_short_way(pair: Pair) -> None:
    """It trusts what the entry keeps with the next hop, which the general code works out again."""
    pair.change("transport_change", b"\x12\x34")
    pair.change("last_ns", _LONG.to_bytes(8, "little"))  # or a slow machine takes the flows for idle
    for packet in pair.packets:
        short, general = pair.run(pair.short, packet.frame), pair.run(pair.general, packet.frame)
        assert short.result == general.result == pair.sent
        assert (short.data != general.data) is packet.short


def test_random_packets_have_the_same_fate(pair: Pair) -> None:
    chance = random.Random(7)
    fates: set[str] = set()
    for _ in range(ROUNDS):
        pair.begin()  # or a busy machine takes so long that some flows have been idle for too long
        frame = _changed(chance, chance.choice(pair.packets).frame)
        short, general = pair.run(pair.short, frame), pair.run(pair.general, frame)
        fates |= short.reasons.keys()
        if any(short.service[::5]):  # a new connection: with a port by chance
            short, general = (o._replace(data=b"", entries={}) for o in (short, general))
        assert short == general, frame.hex()
    assert {"flow", "reply", "forwarded", "not_for_us"} <= fates


@pytest.mark.parametrize("family", [Family.IPV4, Family.IPV6])
def test_segments_of_no_flow_pass_by(pair: Pair, family: Family) -> None:
    """The short way lets go of segments without SYN, FIN and RST, and of those alone: they are counted the same."""
    own, other, group = pair.node.up_mac, "02:00:00:00:00:99", "33:33:00:00:00:01"
    four = family is Family.IPV4
    header = IP(src=b.CLIENT, dst=b.POD) if four else IPv6(src=b.CLIENT_6, dst=b.POD_6)
    for flags, mac in itertools.product(("A", "PA", "FA", "RA", "R", "S", "SA"), (own, other, group)):
        frame = bytes(Ether(dst=mac, src=b.ROUTER_MAC) / header / TCP(sport=4999, dport=8080, flags=flags) / b"data")
        short, general = pair.run(pair.short, frame), pair.run(pair.general, frame)
        assert short == general, (flags, mac)
        assert short.result == b.XDP_PASS
        assert short.data == frame
        assert short.reasons == {"not_for_us" if mac == group else "not_service" if flags == "S" else "tcp_no_syn": 1}


@pytest.mark.parametrize("family", [Family.IPV4, Family.IPV6])
def test_segments_that_pass_by_are_told_to_who_watches(pair: Pair, family: Family) -> None:
    four = family is Family.IPV4
    header = IP(src=b.CLIENT, dst=b.POD) if four else IPv6(src=b.CLIENT_6, dst=b.POD_6)
    frame = pair.node.frame(header / TCP(sport=4999, dport=8080, flags="A"))
    with EventStream(pair.node.maps) as events:
        for program in (pair.short, pair.general):
            pair.run(program, frame)
            assert [event.reason for event in events.poll(2)] == ["tcp_no_syn"]


@pytest.fixture
def takes_over(pair: Pair) -> Iterator[None]:
    """The node takes over other nodes' connections, to every Service as if by Maglev."""
    maps = pair.node.maps
    before = [("node", NODE_KEY, maps.get("node", NODE_KEY) or b"")]
    before += [("frontends", key, value) for key, value in maps.items("frontends")]
    for name, key, value in before:
        changed = bytearray(value)
        if name == "node":
            at = fields_of("node")["flags"]
            flags = int.from_bytes(value[at : at + 4], "little") | constant("NODE_TAKES_OVER")
            changed[at : at + 4] = flags.to_bytes(4, "little")
        else:
            changed[fields_of("frontend")["flags"]] |= constant("FRONTEND_MAGLEV")
        maps.put(name, key, bytes(changed))
    yield
    for name, key, value in before:
        maps.put(name, key, value)


@pytest.mark.usefixtures("takes_over")
@pytest.mark.parametrize("family", [Family.IPV4, Family.IPV6])
def test_segments_that_another_nodes_connection_may_have_do_not_pass_by(pair: Pair, family: Family) -> None:
    header = IP(src=b.CLIENT, dst=b.NODE) if family is Family.IPV4 else IPv6(src=b.CLIENT_6, dst=b.NODE_6)
    frame = pair.node.frame(header / TCP(sport=4999, dport=PORTS[Forwarding.DSR], flags="A"))
    for program in (pair.short, pair.general):
        ran = pair.run(program, frame)
        assert (ran.result, ran.reasons) == (pair.sent, {"taken_over": 1, "flow": 1, "forwarded": 1})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("packets", (255).to_bytes(8, "little")),
        ("last_ns", bytes(8)),
        ("hop_ifindex", bytes(4)),
        ("hop_mtu", (20).to_bytes(2, "little")),
        ("backend_generation", (0xFFFFFF).to_bytes(4, "little")),
        ("flags", (constant("FLOW_RST_REPLY") | constant("FLOW_SNAT")).to_bytes(4, "little")),
        ("flags", (constant("FLOW_ESTABLISHED") | constant("FLOW_FORWARDED")).to_bytes(4, "little")),
        ("flags", constant("FLOW_FORWARDED").to_bytes(4, "little")),
        ("flags", (constant("FLOW_FORWARDED") | constant("FLOW_DSR")).to_bytes(4, "little")),
        ("hop_mtu", (90).to_bytes(2, "little")),
        ("tunnel", (9).to_bytes(2, "little")),
        ("noted", constant("FLOW_FIN_REPLY").to_bytes(4, "little")),
        ("ifindex", bytes(4)),
        ("sequence_end", (1 << 30).to_bytes(4, "little")),
        ("acknowledged", (1 << 30).to_bytes(4, "little")),
        ("flags", constant("FLOW_REPLY").to_bytes(4, "little")),
        ("hop_source", b"\2\2\2\2\2\2"),
    ],
)
def test_entries_out_of_the_ordinary_have_the_same_effect(pair: Pair, field: str, value: bytes) -> None:
    pair.change(field, value)
    for packet in pair.packets:
        short, general = pair.run(pair.short, packet.frame), pair.run(pair.general, packet.frame)
        if any(short.service[::5]):
            short, general = (o._replace(data=b"", entries={}) for o in (short, general))
        assert short == general
